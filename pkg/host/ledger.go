package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/knarr-dev/knarr/pkg/durable"
)

// Kind is what sort of thing was changed on the host.
type Kind string

// The kinds, and what a Change's Name holds.
const (
	KindSysctl  Kind = "sysctl"   // net.ipv4.ip_forward
	KindLink    Kind = "link"     // cni0
	KindAddress Kind = "address"  // 10.43.0.10/32 lo
	KindTable   Kind = "nftables" // ip knarr
	KindMount   Kind = "mount"    // /run/knarr/netns/x
	KindCgroup  Kind = "cgroup"   // /sys/fs/cgroup/kubepods
	KindFile    Kind = "file"     // /etc/knarr/kubeconfig.yaml
	KindDir     Kind = "dir"      // /etc/knarr
	KindRoute   Kind = "route"    // 10.43.0.0/16 lo
	KindRoutes  Kind = "routes"   // 10.42.0.0/16: all by a gateway to parts of it
)

// Change is one thing that Knarr made or altered outside of its data dir.
type Change struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"`
	// Old and New are a sysctl's value before and since. A link's New is its
	// kind (bridge, vxlan …): one of another kind is not ours any more. A
	// folder's or cgroup's New may be "tree": it goes with all that is in it.
	Old string `json:"old,omitempty"`
	New string `json:"new,omitempty"`
}

// Tree marks a folder or cgroup of which everything inside is ours too.
const Tree = "tree"

// Ledger is the record of changes, kept in <data-dir>/host-changes.json. A
// change is recorded before it is made, so that none is forgotten in a crash;
// undoing one that was never made does nothing. It is safe for concurrent use.
type Ledger struct {
	machine *Machine
	path    string

	mu      sync.Mutex
	changes []Change
}

// OpenLedger reads the record of the real machine.
func OpenLedger(dataDir string) (*Ledger, error) { return new(Machine).OpenLedger(dataDir) }

// OpenLedger reads the record in dataDir; none is an empty one.
func (m *Machine) OpenLedger(dataDir string) (*Ledger, error) {
	l := &Ledger{machine: m, path: filepath.Join(dataDir, "host-changes.json")}
	b, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of host changes: %w", err)
	}
	if err := json.Unmarshal(b, &l.changes); err != nil {
		return nil, fmt.Errorf("read the record of host changes in %s (move it away to go on; uninstall then leaves those changes): %w", l.path, err)
	}
	return l, nil
}

// Record notes changes that are about to be made. One of the same kind and
// name takes the place of an older one. It writes only if something is new.
func (l *Ledger) Record(changes ...Change) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := slices.Clone(l.changes)
	for _, c := range changes {
		i := slices.IndexFunc(next, func(have Change) bool { return have.Kind == c.Kind && have.Name == c.Name })
		if i < 0 {
			next = append(next, c)
			continue
		}
		next[i] = c
	}
	return l.replace(next)
}

// Forget drops changes that their makers have undone themselves.
func (l *Ledger) Forget(changes ...Change) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.replace(slices.DeleteFunc(slices.Clone(l.changes), func(have Change) bool {
		return slices.ContainsFunc(changes, func(c Change) bool { return have.Kind == c.Kind && have.Name == c.Name })
	}))
}

// replace writes the record if next differs from it. The caller holds mu.
func (l *Ledger) replace(next []Change) error {
	if slices.Equal(next, l.changes) {
		return nil
	}
	b, err := json.MarshalIndent(next, "", "  ")
	if err == nil {
		err = durable.Replace(l.path, 0o600, bytes.NewReader(append(b, '\n')))
	}
	if err != nil {
		return fmt.Errorf("record host changes: %w", err)
	}
	l.changes = next
	return nil
}

// Changes returns what is recorded, the oldest first.
func (l *Ledger) Changes() []Change {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.changes)
}

func (l *Ledger) has(kind Kind, name string) bool {
	return slices.ContainsFunc(l.Changes(), func(c Change) bool { return c.Kind == kind && c.Name == name })
}

// MakeDir makes a folder outside of the data dir, and its parents, and records
// those that were not there.
func (l *Ledger) MakeDir(path string, mode os.FileMode) error {
	var made []Change
	for p := path; existing(p) != p; p = filepath.Dir(p) {
		made = append(made, Change{Kind: KindDir, Name: p})
	}
	slices.Reverse(made)
	if err := l.Record(made...); err != nil {
		return err
	}
	return os.MkdirAll(path, mode)
}

// Undo takes back what is recorded, the newest first, or only the given kinds.
// What others have changed since is left to them. It goes on after a failure;
// what could not be undone stays recorded.
func (l *Ledger) Undo(kinds ...Kind) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var kept []Change
	var errs []error
	for _, c := range slices.Backward(l.changes) {
		if len(kinds) > 0 && !slices.Contains(kinds, c.Kind) {
			kept = append(kept, c)
			continue
		}
		if err := l.machine.undo(c); err != nil {
			errs = append(errs, fmt.Errorf("undo %s %s: %w", c.Kind, c.Name, err))
			kept = append(kept, c)
		}
	}
	slices.Reverse(kept)
	return errors.Join(append(errs, l.replace(kept))...)
}
