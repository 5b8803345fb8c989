// Package upgrade puts another build in the place of a node's, and takes it back
// when it does not do. The node's pods go on meanwhile: only Knarr's own process
// starts anew.
//
// Before anything is replaced, the executables and a copy of the store go into a
// folder of <data-dir>/upgrades, from which Rollback restores them.
package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/knarr-dev/knarr/pkg/host"
)

const (
	folder     = "upgrades"
	recordName = "backup.json"
	storeName  = "state.db"
	// kept is how many backups are left when a new one has been made. Each has
	// an executable and a store.
	kept = 2
)

// programs are what a release replaces. The second may be missing.
var programs = [...]string{"knarr", "knarr-crictl"}

// Version is what a build says about itself.
type Version struct {
	Knarr      string `json:"knarr"`
	Kubernetes string `json:"kubernetes"`
}

// VersionOf asks an executable.
func VersionOf(ctx context.Context, exe string) (Version, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var v Version
	out, err := exec.CommandContext(ctx, exe, "version", "-o", "json").Output()
	if err == nil {
		err = json.Unmarshal(out, &v)
	}
	if err != nil {
		return v, fmt.Errorf("ask %s for its version (is it Knarr, and for this kind of machine?): %w", exe, err)
	}
	return v, nil
}

// Process is the Knarr that runs on the node.
type Process interface {
	// Reload has it start anew, in place, by the executable that is there now. It
	// does nothing if none runs.
	Reload(ctx context.Context) error
	// Await returns when it runs by that executable and is ready.
	Await(ctx context.Context) error
	// Stop ends it, Start starts it by the init system.
	Stop(ctx context.Context) error
	Start(ctx context.Context) error
}

// Node is what is upgraded.
type Node struct {
	// Exe is where the executable lies. Its name is knarr.
	Exe     string
	DataDir string
	// ServerDir has the store; empty on an agent.
	ServerDir string
	Process   Process
	// CopyStore copies a store that is in use to a new file.
	CopyStore func(ctx context.Context, from, to string) error
	// Patience is how long a new build may take to be ready.
	Patience time.Duration
	// Now is the clock. Default: time.Now.
	Now func() time.Time
	// Say gets a line for each step.
	Say func(string)
}

// Backup is what was made before an upgrade.
type Backup struct {
	// ID is its folder's name, by the time in UTC.
	ID string `json:"-"`
	// Version is of the build in it.
	Version
	// Next is what took its place.
	Next Version `json:"next"`
	// Store is set if there is a copy of the store.
	Store bool `json:"store"`
	// Exe is where the executable lies that was replaced.
	Exe string `json:"exe"`

	dir string
}

// Upgrade puts the executables in dir in the place of the node's. When the new
// build is not ready in time, the old one is put back, with the store as it was
// if it can't read the new one's, and the error tells so.
func (n *Node) Upgrade(ctx context.Context, dir string) (*Backup, error) {
	next, err := VersionOf(ctx, filepath.Join(dir, programs[0]))
	if err != nil {
		return nil, err
	}
	before, err := VersionOf(ctx, n.Exe)
	if err != nil {
		return nil, err
	}
	if n.ServerDir != "" {
		if err := host.CheckStoreVersion(n.ServerDir, next.Kubernetes); err != nil {
			return nil, fmt.Errorf("%s is older than what the store has seen: %w", next.Knarr, err)
		}
	}
	if err := CheckStep(before.Kubernetes, next.Kubernetes); err != nil {
		return nil, err
	}
	b, err := n.backup(ctx, before, next)
	if err != nil {
		return nil, fmt.Errorf("back up before the upgrade (nothing was changed): %w", err)
	}
	n.Say(fmt.Sprintf("backed up %s in %s", before.Knarr, b.dir))
	if err := n.replace(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("replace the executable: %w", err), n.replace(b.dir))
	}
	n.Say(fmt.Sprintf("replaced %s by %s", n.Exe, next.Knarr))
	if err = n.Process.Reload(ctx); err == nil {
		err = n.await(ctx)
	}
	if err == nil {
		n.prune()
		return b, nil
	}
	n.Say(fmt.Sprintf("%s is not ready, so %s is put back", next.Knarr, before.Knarr))
	// Whoever called off the upgrade wants a node all the same.
	back := context.WithoutCancel(ctx)
	if failed := n.restore(back, b, false); failed != nil {
		return nil, fmt.Errorf("the new build does not do (%w), and the old one could not be put back; its files are in %s: %w", err, b.dir, failed)
	}
	return nil, fmt.Errorf("the new build does not do, and the old one is back: %w", err)
}

func (n *Node) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, n.Patience, fmt.Errorf("it was not ready within %s", n.Patience))
	defer cancel()
	err := n.Process.Await(ctx)
	if err != nil && ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return err
}

// CheckStep refuses a step that Kubernetes does not allow: over more than one
// minor version at once.
func CheckStep(from, to string) error {
	a, err1 := minor(from)
	b, err2 := minor(to)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if b > a+1 {
		return fmt.Errorf("from Kubernetes %s to %s is more than one minor version: upgrade to one of v1.%d first", from, to, a+1)
	}
	return nil
}

func minor(version string) (int, error) {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) == 3 && parts[0] == "1" {
		if n, err := strconv.Atoi(parts[1]); err == nil {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%q is not a Kubernetes version", version)
}

// backup saves executables and store.
func (n *Node) backup(ctx context.Context, before, next Version) (*Backup, error) {
	now := time.Now
	if n.Now != nil {
		now = n.Now
	}
	b := &Backup{ID: now().UTC().Format("20060102T150405Z"), Version: before, Next: next, Store: n.ServerDir != "", Exe: n.Exe}
	b.dir = filepath.Join(n.DataDir, folder, b.ID)
	if err := os.MkdirAll(filepath.Dir(b.dir), 0o700); err != nil {
		return nil, err
	}
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		return nil, err
	}
	err := n.fill(ctx, b)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(b.dir))
	}
	return b, nil
}

func (n *Node) fill(ctx context.Context, b *Backup) error {
	for i, name := range programs {
		from := n.Exe
		if i > 0 {
			from = filepath.Join(filepath.Dir(n.Exe), name)
		}
		if err := share(from, filepath.Join(b.dir, name)); err != nil && (i == 0 || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	if b.Store {
		from := n.store()
		if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
			b.Store = false // it never ran
		} else if err := n.CopyStore(ctx, from, filepath.Join(b.dir, storeName)); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return err
	}
	// Last: without it there is no backup.
	return os.WriteFile(filepath.Join(b.dir, recordName), append(text, '\n'), 0o600)
}

func (n *Node) store() string { return filepath.Join(n.ServerDir, "db", storeName) }

// share makes a second name for a file, or a copy where there can't be one.
func share(from, to string) error {
	if err := os.Link(from, to); err == nil || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return copyNew(from, to, 0o755)
}

// copyNew makes a file that there is not yet. It is on the disk when it returns, or
// not there.
func copyNew(from, to string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return errors.Join(err, os.Remove(to))
	}
	return nil
}

// replace puts the programs of dir in the node's place, each in one step.
func (n *Node) replace(dir string) error {
	for i, name := range programs {
		to := filepath.Join(filepath.Dir(n.Exe), name)
		if i == 0 {
			to = n.Exe
		}
		if err := put(filepath.Join(dir, name), to); err != nil && (i == 0 || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return nil
}

// put gives path a new file, in one step.
func put(from, path string) error {
	if _, err := os.Stat(from); err != nil {
		return err
	}
	next := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s-%d.new", filepath.Base(path), os.Getpid()))
	defer os.Remove(next)
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := share(from, next); err != nil {
		return err
	}
	// Two names of one file would make rename do nothing, so the old name goes
	// only by the rename itself.
	return os.Rename(next, path)
}

// Backups lists them, the newest first.
func (n *Node) Backups() ([]*Backup, error) {
	entries, err := os.ReadDir(filepath.Join(n.DataDir, folder))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list backups of upgrades: %w", err)
	}
	var all []*Backup
	for _, e := range slices.Backward(entries) {
		b := &Backup{ID: e.Name(), dir: filepath.Join(n.DataDir, folder, e.Name())}
		text, err := os.ReadFile(filepath.Join(b.dir, recordName))
		if err != nil || json.Unmarshal(text, b) != nil {
			continue // one that was not completed
		}
		all = append(all, b)
	}
	return all, nil
}

// prune removes all but the newest backups, and what is left of broken ones.
func (n *Node) prune() {
	all, err := n.Backups()
	if err != nil || len(all) == 0 {
		return
	}
	entries, _ := os.ReadDir(filepath.Join(n.DataDir, folder)) // it was read just now
	for _, e := range entries {
		if !slices.ContainsFunc(all[:min(kept, len(all))], func(b *Backup) bool { return b.ID == e.Name() }) {
			_ = os.RemoveAll(filepath.Join(n.DataDir, folder, e.Name())) // tried again next time
		}
	}
}

// Rollback brings back what was before an upgrade. The store is brought back if
// the old build can't read it as it is now, or if withStore asks for it; all
// that was written since the upgrade is then put aside with the backup.
func (n *Node) Rollback(ctx context.Context, b *Backup, withStore bool) error {
	if withStore && !b.Store {
		return fmt.Errorf("backup %s has no store", b.ID)
	}
	return n.restore(ctx, b, withStore)
}

func (n *Node) restore(ctx context.Context, b *Backup, withStore bool) error {
	if err := n.Process.Stop(ctx); err != nil {
		return fmt.Errorf("stop knarr: %w", err)
	}
	if err := n.replace(b.dir); err != nil {
		return fmt.Errorf("put the executable back: %w", err)
	}
	if newer := (*host.NewerStoreError)(nil); n.ServerDir != "" && errors.As(host.CheckStoreVersion(n.ServerDir, b.Kubernetes), &newer) {
		if !b.Store {
			return fmt.Errorf("%s can't read the store, and backup %s has none: %w", b.Kubernetes, b.ID, newer)
		}
		withStore = true
	}
	if withStore {
		if err := n.restoreStore(b); err != nil {
			return fmt.Errorf("put the store back: %w", err)
		}
	}
	if err := n.Process.Start(ctx); err != nil {
		return fmt.Errorf("start knarr: %w", err)
	}
	return n.await(ctx)
}

// restoreStore puts the store of today aside and the backup's in its place.
func (n *Node) restoreStore(b *Backup) error {
	aside := filepath.Join(b.dir, "replaced")
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return err
	}
	next := n.store() + ".restored"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := copyNew(filepath.Join(b.dir, storeName), next, 0o600); err != nil {
		return err
	}
	for _, end := range []string{"-shm", "-wal", ""} {
		err := os.Rename(n.store()+end, filepath.Join(aside, storeName+end))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(next, n.store()); err != nil {
		return err
	}
	n.Say("the store is as it was at the upgrade; that of now is in " + aside)
	return host.RecordStoreVersion(n.ServerDir, b.Kubernetes)
}
