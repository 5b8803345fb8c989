package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// node is one in a folder, of programs that are scripts.
type node struct {
	Node
	t       *testing.T
	did     []string
	unready string // the version that never gets ready
	writes  string // what a new build makes of the store's version
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t}
	n.Exe, n.DataDir, n.ServerDir = filepath.Join(dir, "bin", "knarr"), filepath.Join(dir, "data"), filepath.Join(dir, "data", "server")
	n.Process, n.Patience, n.Say = n, time.Second, func(string) {}
	clock := time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)
	n.Now = func() time.Time { clock = clock.Add(time.Minute); return clock }
	n.CopyStore = func(_ context.Context, from, to string) error {
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return os.WriteFile(to, text, 0o600)
	}
	n.put(n.Exe, program("v1.0.0", "v1.36.4+knarr1"))
	n.put(n.store(), "store of 1.36")
	n.put(filepath.Join(n.ServerDir, "version"), "v1.36.4+knarr1\n")
	return n
}

// program is a script that knows its version only.
func program(knarr, kubernetes string) string {
	return fmt.Sprintf("#!/bin/sh\necho '{\"knarr\": \"%s\", \"kubernetes\": \"%s\"}'\n", knarr, kubernetes)
}

func (n *node) put(path, text string) {
	n.t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o755)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) read(path string) string {
	n.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

// release is a folder with a build.
func (n *node) release(knarr, kubernetes string) string {
	dir := n.t.TempDir()
	n.put(filepath.Join(dir, "knarr"), program(knarr, kubernetes))
	return dir
}

func (n *node) Reload(context.Context) error {
	n.did = append(n.did, "reload")
	if n.writes != "" {
		n.put(filepath.Join(n.ServerDir, "version"), n.writes+"\n")
		n.put(n.store(), "store of "+n.writes)
	}
	return nil
}

func (n *node) Await(ctx context.Context) error {
	if n.unready != "" && strings.Contains(n.read(n.Exe), n.unready) {
		return errors.New("the API server fails")
	}
	return nil
}

func (n *node) Stop(context.Context) error  { n.did = append(n.did, "stop"); return nil }
func (n *node) Start(context.Context) error { n.did = append(n.did, "start"); return nil }

func TestUpgradeReplacesTheBuildAndRollbackBringsItBack(t *testing.T) {
	n := newNode(t)
	b, err := n.Upgrade(t.Context(), n.release("v1.1.0", "v1.36.5+knarr1"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(n.read(n.Exe), "v1.1.0") || !slices.Equal(n.did, []string{"reload"}) {
		t.Errorf("%s, did %q", n.read(n.Exe), n.did)
	}
	if got := n.read(filepath.Join(b.dir, storeName)); got != "store of 1.36" {
		t.Errorf("the backup's store is %q", got)
	}
	n.put(n.store(), "later")
	all, err := n.Backups()
	if err != nil || len(all) != 1 || all[0].Knarr != "v1.0.0" || all[0].Next.Knarr != "v1.1.0" {
		t.Fatalf("backups %+v, %v", all, err)
	}
	if err := n.Rollback(t.Context(), all[0], false); err != nil {
		t.Fatal(err)
	}
	// The old build can read it, so nothing written since is lost.
	if got := n.read(n.store()); got != "later" || !strings.Contains(n.read(n.Exe), "v1.0.0") {
		t.Errorf("after the rollback the store is %q", got)
	}
	if !slices.Equal(n.did, []string{"reload", "stop", "start"}) {
		t.Errorf("did %q", n.did)
	}
	if err := n.Rollback(t.Context(), all[0], true); err != nil {
		t.Fatal(err)
	}
	if got := n.read(n.store()); got != "store of 1.36" || n.read(filepath.Join(b.dir, "replaced", storeName)) != "later" {
		t.Errorf("asked to, the store is %q", got)
	}
}

func TestBuildThatIsNotReadyIsTakenBackWithTheStoreItSpoiled(t *testing.T) {
	n := newNode(t)
	n.unready, n.writes = "v2.0.0", "v1.37.0+knarr1"
	_, err := n.Upgrade(t.Context(), n.release("v2.0.0", "v1.37.0+knarr1"))
	if err == nil || !strings.Contains(err.Error(), "the old one is back") || !strings.Contains(err.Error(), "the API server fails") {
		t.Fatal(err)
	}
	if !strings.Contains(n.read(n.Exe), "v1.0.0") || n.read(n.store()) != "store of 1.36" || n.read(filepath.Join(n.ServerDir, "version")) != "v1.36.4+knarr1\n" {
		t.Errorf("back are %s%s", n.read(n.Exe), n.read(n.store()))
	}
	if !slices.Equal(n.did, []string{"reload", "stop", "start"}) {
		t.Errorf("did %q", n.did)
	}
}

func TestStepsThatCannotBeTakenAreRefusedBeforeAnythingChanges(t *testing.T) {
	n := newNode(t)
	broken := t.TempDir()
	n.put(filepath.Join(broken, "knarr"), "#!/bin/sh\nexit 1\n")
	for want, dir := range map[string]string{
		"older than what the store has seen": n.release("v0.9.0", "v1.35.2+knarr1"),
		"more than one minor version":        n.release("v3.0.0", "v1.38.0+knarr1"),
		"is it Knarr":                        broken,
	} {
		if _, err := n.Upgrade(t.Context(), dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	n.CopyStore = func(context.Context, string, string) error { return errors.New("disk full") }
	if _, err := n.Upgrade(t.Context(), n.release("v1.1.0", "v1.36.5+knarr1")); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Error(err)
	}
	if all, err := n.Backups(); err != nil || len(all) != 0 || len(n.did) != 0 || !strings.Contains(n.read(n.Exe), "v1.0.0") {
		t.Errorf("backups %v, %v; did %q", all, err, n.did)
	}
}

func TestOnlyTheNewestBackupsAreKept(t *testing.T) {
	n := newNode(t)
	for i := range 4 {
		if _, err := n.Upgrade(t.Context(), n.release(fmt.Sprintf("v1.1.%d", i), "v1.36.4+knarr1")); err != nil {
			t.Fatal(err)
		}
	}
	all, err := n.Backups()
	if err != nil || len(all) != kept || all[0].Next.Knarr != "v1.1.3" {
		t.Errorf("%d backups, %v", len(all), err)
	}
}
