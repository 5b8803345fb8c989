package backup

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/knarr-dev/knarr/pkg/datastore"
)

// childVariable has the test's own executable write to a store, copied by a
// replica, until it is killed.
const childVariable = "KNARR_TEST_REPLICA"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		if err := writeAndReplicate(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// writeAndReplicate tells the number of each write once it is acknowledged.
func writeAndReplicate(dir string) error {
	ctx := context.Background()
	s, err := datastore.Open(ctx, datastore.Config{Path: filepath.Join(dir, "server", "db", "state.db")})
	if err != nil {
		return err
	}
	r := &Replica{Config: func() (Config, error) { return replicaOf(dir), nil }, Log: quiet()}
	ready := make(chan struct{})
	go func() {
		if err := r.Run(ctx, ready); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}()
	<-ready
	c := s.Client().Client
	for n := 0; ; n++ {
		if _, err := c.Put(ctx, fmt.Sprint("/registry/configmaps/default/", n%40), strconv.Itoa(n)); err != nil {
			return err
		}
		fmt.Println(n)
		time.Sleep(time.Millisecond)
	}
}

func replicaOf(dir string) Config {
	return Config{DataDir: dir, Node: "edge-1", Storage: Folder{Path: dir + "-replica"}}
}

// TestReplicaHasWhatWasWrittenBeforeTheDiskWasLost kills the writer at any moment
// and takes its disk away.
func TestReplicaHasWhatWasWrittenBeforeTheDiskWasLost(t *testing.T) {
	from := server(t, "sqlite")
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childVariable+"="+from)
	var said, errs bytes.Buffer
	child.Stderr = &errs
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = said.ReadFrom(out)
	}()
	storage := replicaOf(from).Storage
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		objects, err := storage.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(objects) >= 5 { // a backup, and four files of changes
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d files in a minute: %v", len(objects), objects)
		}
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-read
	_ = child.Wait() // killed
	if errs.Len() > 0 {
		t.Fatal(errs.String())
	}
	if err := os.RemoveAll(from); err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(said.String())
	last, err := strconv.Atoi(lines[len(lines)-1])
	if err != nil {
		t.Fatal(err)
	}

	to := replicaOf(from)
	to.DataDir = t.TempDir()
	if _, err := RestoreReplica(t.Context(), to, false); err != nil {
		t.Fatal(err)
	}
	has := highest(t, to.DataDir)
	// It is the state of one moment: each key has the latest of its values then.
	for key, n := range values(t, to.DataDir) {
		if n <= has-40 || n%40 != key {
			t.Errorf("key %d has %d, and the latest of all is %d", key, n, has)
		}
	}
	if has > last+1 {
		t.Errorf("%d was acknowledged last, and %d is there", last, has)
	}
	t.Logf("of %d writes %d are lost, a write a millisecond or less", last+1, last-has)
	if has < 0 || last-has > last/2+5000 {
		t.Errorf("of %d writes only %d are there", last, has)
	}
}

func values(t *testing.T, dir string) map[int]int {
	t.Helper()
	s := openStore(t, dir, "sqlite")
	defer s.Close()
	got, err := s.Client().Client.Get(t.Context(), "/registry/configmaps/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	all := map[int]int{}
	for _, kv := range got.Kvs {
		key, err1 := strconv.Atoi(strings.TrimPrefix(string(kv.Key), "/registry/configmaps/default/"))
		n, err2 := strconv.Atoi(string(kv.Value))
		if err1 == nil && err2 == nil {
			all[key] = n
		}
	}
	return all
}

func highest(t *testing.T, dir string) int {
	t.Helper()
	most := -1
	for _, n := range values(t, dir) {
		most = max(most, n)
	}
	return most
}

// TestReplicaFollowsEitherDriverThroughDeletionsAndNewKeys compares the restored
// store with the one that is copied.
func TestReplicaFollowsEitherDriverThroughDeletionsAndNewKeys(t *testing.T) {
	for _, driver := range []string{"sqlite", "kine-sqlite"} {
		t.Run(driver, func(t *testing.T) {
			dir := server(t, driver)
			s := openStore(t, dir, driver)
			c := s.Client().Client
			keys := keysOf(t)["for a recipient"]
			cfg := replicaOf(dir)
			cfg.Keys = keys[0]
			log := quiet()
			copies := &copying{cfg: cfg, log: log}
			step := func() {
				t.Helper()
				if err := copies.copy(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			step() // the backup
			base := copies.base.Name
			for n := range 100 {
				key := fmt.Sprint("/registry/configmaps/default/", n%70)
				if _, err := c.Put(t.Context(), key, "changed\x00"+key); err != nil {
					t.Fatal(err)
				}
				if n%10 == 0 {
					kv, err := c.Get(t.Context(), key)
					if err != nil {
						t.Fatal(err)
					}
					r, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", kv.Kvs[0].ModRevision)).
						Then(clientv3.OpDelete(key)).Else(clientv3.OpGet(key)).Commit()
					if err != nil || !r.Succeeded {
						t.Fatal(err)
					}
				}
				if n%30 == 0 {
					step()
				}
			}
			step()
			step() // nothing is new
			if copies.files < 4 || copies.base.Name != base {
				t.Errorf("%d files after %s", copies.files, base)
			}
			same := func() {
				t.Helper()
				to := replicaOf(dir)
				to.DataDir, to.Keys = t.TempDir(), keys[1]
				if _, err := RestoreReplica(t.Context(), to, false); err != nil {
					t.Fatal(err)
				}
				restored := openStore(t, to.DataDir, driver)
				defer restored.Close()
				want, err1 := c.Get(t.Context(), "/registry/configmaps/", clientv3.WithPrefix())
				got, err2 := restored.Client().Client.Get(t.Context(), "/registry/configmaps/", clientv3.WithPrefix())
				if err1 != nil || err2 != nil || len(got.Kvs) != len(want.Kvs) {
					t.Fatalf("%d keys of %d (%v, %v)", len(got.Kvs), len(want.Kvs), err1, err2)
				}
				for n, kv := range want.Kvs {
					if is := got.Kvs[n]; !bytes.Equal(is.Key, kv.Key) || !bytes.Equal(is.Value, kv.Value) || is.ModRevision != kv.ModRevision || is.CreateRevision != kv.CreateRevision {
						t.Errorf("%v is restored as %v", kv, is)
					}
				}
			}
			same()

			// A key that changes has it begin anew; the one before is kept, no other.
			for n := range 3 {
				write(t, filepath.Join(dir, "server", "encryption-config.yaml"), strings.Repeat("key", n+2))
				step()
			}
			if copies.base.Name == base || copies.files != 0 {
				t.Errorf("after another key: %s, %d files", copies.base.Name, copies.files)
			}
			if all, err := List(t.Context(), cfg); err != nil || len(all) != 2 {
				t.Errorf("backups are left: %v, %v", all, err)
			}
			if _, err := c.Put(t.Context(), "/registry/configmaps/default/last", "it"); err != nil {
				t.Fatal(err)
			}
			step()
			same()
		})
	}
}

func TestDamagedReplicaIsRefused(t *testing.T) {
	dir := server(t, "sqlite")
	c := openStore(t, dir, "sqlite").Client().Client
	cfg := replicaOf(dir)
	copies := &copying{cfg: cfg, log: quiet()}
	for n := range 4 {
		if _, err := c.Put(t.Context(), "/registry/configmaps/default/new", fmt.Sprint(n)); err != nil {
			t.Fatal(err)
		}
		if err := copies.copy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	path := func(n int) string {
		return filepath.Join(cfg.Storage.(Folder).Path, fmt.Sprintf("%s.%08d%s", stem(copies.base.Name), n, changesEnding))
	}
	whole, err := os.ReadFile(path(2))
	if err != nil {
		t.Fatal(err)
	}
	restore := func() error {
		to := cfg
		to.DataDir = t.TempDir()
		_, err := RestoreReplica(t.Context(), to, false)
		return err
	}
	for _, at := range []int{0, len(whole) / 2, len(whole) - 1} {
		text := bytes.Clone(whole)
		text[at] ^= 1
		write(t, path(2), string(text))
		if err := restore(); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("byte %d: %v", at, err)
		}
	}
	other, err := os.ReadFile(path(1))
	if err != nil {
		t.Fatal(err)
	}
	write(t, path(2), string(other))
	if err := restore(); err == nil || !strings.Contains(err.Error(), "not those after") {
		t.Errorf("another's changes: %v", err)
	}
	write(t, path(2), string(whole))
	if err := restore(); err != nil {
		t.Error(err)
	}
}
