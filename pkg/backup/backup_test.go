package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/knarr-dev/knarr/pkg/datastore"
	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/knarr-dev/knarr/pkg/pki"
)

// server makes the state of one that has run, and returns its data dir.
func server(t *testing.T, driver string) string {
	t.Helper()
	dir := t.TempDir()
	s := openStore(t, dir, driver)
	c := s.Client().Client
	for n := range 50 {
		if _, err := c.Put(t.Context(), fmt.Sprint("/registry/configmaps/default/", n%40), fmt.Sprint("value ", n)); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	s.Close()
	certificates(t, dir, "192.0.2.1")
	for path, text := range map[string]string{
		"server/node-token": "knarr.0.abcdef.0123456789abcdef\n", "server/encryption-config.yaml": "key", "server/version": "v1.36.4+knarr1\n",
		"server/manifests/app.yaml": "kind: List\n", "server/run/left": "out", "server/tls/.left.new": "out",
	} {
		write(t, filepath.Join(dir, path), text)
	}
	return dir
}

func openStore(t *testing.T, dir, driver string) *datastore.Store {
	t.Helper()
	s, err := datastore.Open(t.Context(), datastore.Config{Path: filepath.Join(dir, "server", "db", "state.db"), Driver: driver})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func certificates(t *testing.T, dir, address string) *pki.PKI {
	t.Helper()
	p, err := pki.Ensure(pki.Config{Dir: filepath.Join(dir, "server", "tls"), NodeName: "edge-1", NodeIPs: []netip.Addr{netip.MustParseAddr(address)}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func configOf(dir string, keys Keys) Config {
	return Config{DataDir: dir, Node: "edge-1", Keys: keys, Storage: Folder{Path: filepath.Join(dir, "backups")}, Retention: 3}
}

// keysOf makes the keys of each kind: those to write and those to read with.
func keysOf(t *testing.T) map[string][2]Keys {
	t.Helper()
	dir := t.TempDir()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	phrase, public, secret := filepath.Join(dir, "phrase"), filepath.Join(dir, "public"), filepath.Join(dir, "secret")
	write(t, phrase, "correct horse battery staple\n")
	write(t, public, "# the operators'\n"+id.Recipient().String()+"\n")
	write(t, secret, id.String()+"\n")
	return map[string][2]Keys{
		"in the clear":      {},
		"with a passphrase": {{PassphraseFile: phrase}, {PassphraseFile: phrase}},
		"for a recipient":   {{RecipientsFile: public}, {IdentityFile: secret}},
	}
}

func create(t *testing.T, c Config) string {
	t.Helper()
	_, stored, err := Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(c.Storage.(Folder).Path, stored.Name)
}

func TestBackupOfARunningServerBringsAllOfItBack(t *testing.T) {
	for _, driver := range []string{"sqlite", "kine-sqlite"} {
		for name, keys := range keysOf(t) {
			t.Run(driver+" "+name, func(t *testing.T) {
				from := server(t, driver)
				running := openStore(t, from, driver)
				client := running.Client().Client
				last, err := client.Put(t.Context(), "/registry/configmaps/default/last", "it")
				if err != nil {
					t.Fatal(err)
				}
				file := create(t, configOf(from, keys[0]))
				if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
					t.Errorf("mode %v, %v", info.Mode(), err)
				}
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if sealed := bytes.HasPrefix(text, []byte(ageHead)); sealed != keys[0].Sealed() {
					t.Errorf("encrypted: %v", sealed)
				}
				if left, err := os.ReadDir(filepath.Join(from, workName)); err != nil || len(left) > 0 {
					t.Errorf("left behind: %v, %v", left, err)
				}

				to := configOf(t.TempDir(), keys[1])
				if _, err := Verify(t.Context(), to, file); err != nil {
					t.Fatal(err)
				}
				m, err := Restore(t.Context(), to, file, false)
				if err != nil {
					t.Fatal(err)
				}
				if m.Node != "edge-1" || m.Revision < last.Header.Revision || m.Aside != "" {
					t.Errorf("restored %+v", m)
				}
				for _, name := range []string{"node-token", "encryption-config.yaml", "manifests/app.yaml", "tls/client-ca.key", "tls/service-account.key"} {
					was, err1 := os.ReadFile(filepath.Join(from, "server", name))
					is, err2 := os.ReadFile(filepath.Join(to.DataDir, "server", name))
					if err1 != nil || err2 != nil || !bytes.Equal(was, is) {
						t.Errorf("%s was %q and is %q (%v, %v)", name, was, is, err1, err2)
					}
				}
				for _, name := range []string{"run", "tls/.left.new"} {
					if _, err := os.Stat(filepath.Join(to.DataDir, "server", name)); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%s: %v", name, err)
					}
				}
				if p := certificates(t, to.DataDir, "198.51.100.7"); len(p.Changes) != 2 || !strings.Contains(p.Changes[0]+p.Changes[1], "lacks the address 198.51.100.7") {
					t.Errorf("certificates on a machine with another address: %q", p.Changes)
				}
				restored := openStore(t, to.DataDir, driver)
				got, err := restored.Client().Client.Get(t.Context(), "/registry/configmaps/", clientv3.WithPrefix())
				if err != nil || len(got.Kvs) != 41 || got.Header.Revision < last.Header.Revision+leftOutRevisions {
					t.Errorf("%d keys at revision %d, %v", len(got.Kvs), got.Header.Revision, err)
				}
			})
		}
	}
}

func TestRestoreLeavesAClusterAloneUnlessForced(t *testing.T) {
	dir := server(t, "sqlite")
	c := configOf(dir, Keys{})
	file := create(t, c)
	if _, err := Restore(t.Context(), c, file, false); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("onto a cluster: %v", err)
	}
	lock, err := host.TakeLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), c, file, true); !errors.As(err, new(*host.InUseError)) {
		t.Errorf("while a server runs: %v", err)
	}
	lock.Close()
	write(t, filepath.Join(dir, "server", "node-token"), "changed since")
	// A name without a slash is one of the storage.
	r, err := Restore(t.Context(), c, filepath.Base(file), true)
	if err != nil {
		t.Fatal(err)
	}
	aside, err1 := os.ReadFile(filepath.Join(r.Aside, "node-token"))
	now, err2 := os.ReadFile(filepath.Join(dir, "server", "node-token"))
	if string(aside) != "changed since" || string(now) == "changed since" {
		t.Errorf("aside is %q, now is %q (%v, %v)", aside, now, err1, err2)
	}
}

// TestDamagedAndForeignFilesAreRefusedBeforeAnythingChanges damages a byte in many
// places, and cuts the file in some.
func TestDamagedAndForeignFilesAreRefusedBeforeAnythingChanges(t *testing.T) {
	all := keysOf(t)
	from := server(t, "sqlite")
	to := t.TempDir()
	refused := func(t *testing.T, what string, text []byte, keys Keys, want ...string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "file")
		write(t, file, string(text))
		_, err := Restore(t.Context(), configOf(to, keys), file, true)
		if err == nil {
			t.Fatalf("%s: it was restored", what)
		}
		if !slices.ContainsFunc(want, func(w string) bool { return strings.Contains(err.Error(), w) }) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := os.Stat(filepath.Join(to, "server")); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s: something was changed (%v)", what, err)
		}
	}
	for name, keys := range all {
		t.Run(name, func(t *testing.T) {
			whole, err := os.ReadFile(create(t, configOf(from, keys[0])))
			if err != nil {
				t.Fatal(err)
			}
			if name == "with a passphrase" {
				// One attempt costs a tenth of a second.
				refused(t, "half", whole[:len(whole)/2], keys[1], "damaged")
				return
			}
			for n := range 40 {
				at := n * (len(whole) - 1) / 39
				text := bytes.Clone(whole)
				text[at] ^= 1
				refused(t, fmt.Sprintf("byte %d of %d", at, len(whole)), text, keys[1], "damaged", "not a backup", "another key")
			}
			for _, length := range []int{30, len(whole) / 3, len(whole) - 1} {
				refused(t, fmt.Sprintf("cut to %d of %d", length, len(whole)), whole[:length], keys[1], "damaged", "not a backup")
			}
			if keys[0].Sealed() {
				refused(t, "without a key", whole, Keys{}, "give --identity-file")
				other := keysOf(t)[name][1]
				refused(t, "with another key", whole, other, "another key")
			}
		})
	}
	refused(t, "a text", []byte("something else\n"), Keys{}, "not a backup")
	refused(t, "nothing", nil, Keys{}, "not a backup")

	var other bytes.Buffer
	if err := writeArchive(&other, Manifest{Format: "knarr-backup/2"}, nil); err != nil {
		t.Fatal(err)
	}
	refused(t, "a later form", other.Bytes(), Keys{}, "newer one")
	other.Reset()
	if err := writeArchive(&other, Manifest{Format: format, Files: []File{{Path: "../../etc/passwd"}}}, nil); err != nil {
		t.Fatal(err)
	}
	refused(t, "a path that leads outside", other.Bytes(), Keys{}, "damaged")

	write(t, filepath.Join(from, "server", "version"), "v1.99.0\n")
	newer, err := os.ReadFile(create(t, configOf(from, Keys{})))
	if err != nil {
		t.Fatal(err)
	}
	refused(t, "of a newer Kubernetes", newer, Keys{}, "newer Kubernetes")
	write(t, filepath.Join(from, "server", "tls", "client-ca.key"), "-")
	mixed, err := os.ReadFile(create(t, configOf(from, Keys{})))
	if err != nil {
		t.Fatal(err)
	}
	refused(t, "with half an authority", mixed, Keys{}, "client-ca")
}

func TestDamagedStoreIsNotBackedUp(t *testing.T) {
	dir := server(t, "sqlite")
	path := filepath.Join(dir, "server", "db", "state.db")
	if err := os.Remove(path + "-wal"); err != nil { // the file has all that is in it
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := 4096; n < len(text); n++ {
		text[n] ^= 0x55
	}
	write(t, path, string(text))
	if _, _, err := Create(t.Context(), configOf(dir, Keys{})); err == nil {
		t.Error("it was")
	}
	if all, err := List(t.Context(), configOf(dir, Keys{})); err != nil || len(all) > 0 {
		t.Errorf("%v, %v", all, err)
	}
}

func TestPruneKeepsTheLatestOfTheServersOwnCluster(t *testing.T) {
	dir := server(t, "sqlite")
	c := configOf(dir, Keys{})
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	c.Now = func() time.Time { return now }
	var made []string
	for range 5 {
		now = now.Add(time.Hour)
		made = append(made, filepath.Base(create(t, c)))
	}
	folder := c.Storage.(Folder).Path
	others := []string{"knarr-00000000-20200101T000000.000Z.tar.zst", "notes.txt"}
	for _, name := range others {
		write(t, filepath.Join(folder, name), "another's")
	}
	deleted, err := Prune(t.Context(), c)
	if err != nil || len(deleted) != 2 || deleted[0].Name != made[0] || deleted[1].Name != made[1] {
		t.Errorf("deleted %v, %v", deleted, err)
	}
	left, err := List(t.Context(), c)
	if err != nil || len(left) != 4 || left[0].Name != others[0] || left[3].Name != made[4] || left[3].Size == 0 || left[3].Encrypted {
		t.Errorf("left are %v, %v", left, err)
	}
	if !left[3].Created.Equal(now) {
		t.Errorf("created at %v", left[3].Created)
	}
}

func TestKeysThatChangeMeanwhileAreNotMissed(t *testing.T) {
	dir := server(t, "sqlite")
	c := configOf(dir, Keys{})
	changes := 0
	c.Now = func() time.Time { // called for each copy, after files were first listed
		if changes++; changes < attempts {
			write(t, filepath.Join(dir, "server", "encryption-config.yaml"), fmt.Sprint("key ", changes))
		}
		return time.Now()
	}
	file := create(t, c)
	to := configOf(t.TempDir(), Keys{})
	if _, err := Restore(t.Context(), to, file, false); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(to.DataDir, "server", "encryption-config.yaml")); string(text) != fmt.Sprint("key ", attempts-1) {
		t.Errorf("%q, %v", text, err)
	}
	c.Now = func() time.Time {
		changes++
		write(t, filepath.Join(dir, "server", "encryption-config.yaml"), fmt.Sprint("key ", changes))
		return time.Now()
	}
	if _, _, err := Create(t.Context(), c); err == nil || !strings.Contains(err.Error(), "try again") {
		t.Errorf("files that change each time: %v", err)
	}
}

func TestOnlyOneBackupIsAtWork(t *testing.T) {
	dir := server(t, "sqlite")
	w, err := newWork(dir)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, workName, "left", "by a crash"), "x")
	if _, _, err := Create(t.Context(), configOf(dir, Keys{})); err == nil || !strings.Contains(err.Error(), "another") {
		t.Errorf("%v", err)
	}
	w.lock.Close() // as a crash does
	create(t, configOf(dir, Keys{}))
	if left, err := os.ReadDir(filepath.Join(dir, workName)); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestScheduleMakesUpForWhatWasMissedAndPrunes(t *testing.T) {
	dir := server(t, "sqlite")
	c := configOf(dir, Keys{})
	c.Retention = 2
	clock := newClock()
	c.Now = clock.now
	s := &Schedule{Config: func() (Config, error) { return c, nil }, When: "@every 6h", Log: quiet(), after: clock.after}
	run := func(t *testing.T) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		ready := make(chan struct{})
		go func() { ended <- s.Run(ctx, ready) }()
		<-ready
		return func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	count := func() int {
		all, err := List(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	stop := run(t)
	if wait := clock.waits(t); wait != 6*time.Hour {
		t.Errorf("the first comes after %s", wait)
	}
	for range 4 {
		clock.wake()
		if wait := clock.waits(t); wait.Round(time.Minute) != 6*time.Hour {
			t.Errorf("the next comes after %s", wait)
		}
	}
	if n := count(); n != 2 {
		t.Errorf("%d are left", n)
	}
	stop()

	clock.add(2 * time.Hour)
	stop = run(t)
	if wait := clock.waits(t); wait.Round(time.Minute) != 4*time.Hour {
		t.Errorf("after a short absence the next comes after %s", wait)
	}
	stop()
	clock.add(24 * time.Hour)
	stop = run(t)
	if wait := clock.waits(t); wait != settleTime {
		t.Errorf("one that was missed comes after %s", wait)
	}
	// One that fails is tried again, and the server goes on.
	path := filepath.Join(dir, "server", "tls", "server-ca.crt")
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	clock.wake()
	if wait := clock.waits(t); wait != retryAfter {
		t.Errorf("after a failure the next comes after %s", wait)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	clock.wake()
	if wait := clock.waits(t); wait.Round(time.Minute) != 6*time.Hour {
		t.Errorf("then the next comes after %s", wait)
	}
	stop()
}

// Backups of before and after new authorities are those of one cluster.
func TestClusterKeepsItsNameWhenItsAuthorityIsReplaced(t *testing.T) {
	cfg := pki.Config{Dir: filepath.Join(t.TempDir(), "tls"), NodeName: "node", ServiceIP: netip.MustParseAddr("10.43.0.1")}
	name := func() string {
		if _, err := pki.Ensure(cfg); err != nil {
			t.Fatal(err)
		}
		c, err := clusterOf(filepath.Dir(cfg.Dir))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	before := name()
	for range 2 {
		if err := pki.BeginRotation(cfg.Dir, "", time.Now(), time.Time{}); err != nil {
			t.Fatal(err)
		}
		if during := name(); during != before {
			t.Errorf("%s during the overlap, not %s", during, before)
		}
		if err := pki.FinishRotation(cfg.Dir); err != nil {
			t.Fatal(err)
		}
		if after := name(); after != before {
			t.Errorf("%s after it, not %s", after, before)
		}
	}
}
