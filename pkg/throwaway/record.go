package throwaway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/scratch"
	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
	"github.com/knarr-dev/knarr/pkg/throwaway/userns"
)

// DirVariable names the folder of all throwaway clusters. Its default is
// /var/lib/knarr-throwaway, and it is there only while there is a cluster. It
// must lie on a file system that can carry an overlay: ext4, xfs; no overlay. The
// default of others than root is ~/.local/state/knarr-throwaway.
const DirVariable = "KNARR_THROWAWAY_DIR"

const defaultDir = "/var/lib/knarr-throwaway"

// machineRoot tells whether this process may do anything to the machine.
func machineRoot() bool { return os.Geteuid() == 0 && !userns.Inside() }

// A folder holds a folder for each cluster, with
//
//	cluster.json  its record
//	lock          held by its keeper for as long as that lives
//	kubeconfig    the administrator's
//	NODE.log      what the node's server or agent wrote
//	keeper.log    what the keeper wrote
//	knarr-NAME/   the lab's folder with the nodes' disks
//	labs/         what is known of the lab, if it is not root's
//
// It is on a disk and not below /run, so that what a power cut left is found.
type folder string

func thisFolder() (folder, error) {
	dir := os.Getenv(DirVariable)
	if dir == "" && machineRoot() {
		return defaultDir, nil
	}
	if dir == "" {
		state := os.Getenv("XDG_STATE_HOME")
		if home, err := os.UserHomeDir(); state == "" && err == nil {
			state = filepath.Join(home, ".local", "state")
		}
		if !filepath.IsAbs(state) {
			return "", fmt.Errorf("find a folder for clusters: HOME is not set: set it, or %s", DirVariable)
		}
		return folder(filepath.Join(state, "knarr-throwaway")), nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("%s: %w", DirVariable, err)
	}
	return folder(dir), nil
}

// A Record is what other processes know of a cluster.
type Record struct {
	Name string `json:"name"`
	// ID tells this cluster from others that had or will have its name.
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	// Slot is the third byte of its subnet.
	Slot int `json:"slot"`
	// UserNamespace is set if it is not root's, but of a user namespace's root.
	UserNamespace bool `json:"userNamespace,omitempty"`
	// Keeper is the process that keeps it.
	Keeper int `json:"keeper"`
	// Ready is when all its nodes were ready first; zero before.
	Ready time.Time    `json:"ready,omitzero"`
	Nodes []NodeRecord `json:"nodes"`
	// Server is the API server's address on this machine: https://127.0.0.1:PORT.
	Server string `json:"server,omitempty"`
	Ports  []Port `json:"ports,omitempty"`
	// Registry is the shared registry's name, localhost:PORT, if the cluster has it.
	Registry string `json:"registry,omitempty"`
	// Kubeconfig is the file with its context; empty if there is none.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// KubeconfigMade is set if that file was made for it.
	KubeconfigMade bool `json:"kubeconfigMade,omitempty"`
}

// A NodeRecord is where a node is.
type NodeRecord struct {
	Name string     `json:"name"`
	Host lab.Handle `json:"host"`
}

// Subnet of the nodes: each cluster has its own, so that addresses in logs tell
// clusters apart, though none can reach another.
func (r *Record) Subnet() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(r.Slot), 0}), 24)
}

// Context is the cluster's name in kubeconfigs.
func (r *Record) Context() string { return "knarr-" + r.Name }

func (f folder) dir(name string) string { return filepath.Join(string(f), name) }

func (f folder) file(name, file string) string { return filepath.Join(string(f), name, file) }

// labState is where the cluster's lab is recorded; empty is where root's are.
func (f folder) labState(rec *Record) string {
	if rec.UserNamespace {
		return f.file(rec.Name, "labs")
	}
	return ""
}

func (f folder) locked(fn func() error) error { return lab.LockFolder(string(f), fn) }

// claim makes the folder of a new cluster, and what tells that its maker lives:
// the lock, which is given up by closing all copies of it.
func (f folder) claim(rec *Record) (lock *os.File, err error) {
	err = f.locked(func() error {
		alive, err := f.sweep()
		if err := errors.Join(err, scratch.Sweep()); err != nil {
			slog.Warn("leftovers of a dead cluster stay", "error", err)
		}
		if slices.ContainsFunc(alive, func(r *Record) bool { return r.Name == rec.Name }) {
			return fmt.Errorf("there is a cluster %s: choose another --name, or end it with \"knarr down %s\"", rec.Name, rec.Name)
		}
		for slices.ContainsFunc(alive, func(r *Record) bool { return r.Slot == rec.Slot }) {
			rec.Slot++
		}
		if rec.Slot > 255 {
			return errors.New("there are 256 clusters, and no address range is left: end some with \"knarr down\"")
		}
		if err := os.Mkdir(f.dir(rec.Name), 0o700); err != nil {
			return fmt.Errorf("make folder of cluster: %w", err)
		}
		if lock, err = os.OpenFile(f.file(rec.Name, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			return err
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return fmt.Errorf("lock %s: %w", lock.Name(), err)
		}
		return f.write(rec)
	})
	if err != nil && lock != nil {
		lock.Close()
	}
	return lock, err
}

// write puts a record in place of the one before. Only the one who holds the
// cluster's lock does so.
func (f folder) write(rec *Record) error {
	text, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	path := f.file(rec.Name, "cluster.json")
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("record cluster: %w", err)
	}
	return os.Rename(path+".new", path)
}

func (f folder) read(name string) (*Record, error) {
	text, err := os.ReadFile(f.file(name, "cluster.json"))
	if err != nil {
		return nil, fmt.Errorf("read record of cluster %s: %w", name, err)
	}
	rec := &Record{}
	if err := json.Unmarshal(text, rec); err != nil {
		return nil, fmt.Errorf("read record of cluster %s: %w", name, err)
	}
	return rec, nil
}

// lives tells whether somebody holds the cluster's lock.
func (f folder) lives(name string) (bool, error) {
	lock, err := os.OpenFile(f.file(name, "lock"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer lock.Close()
	err = unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// sweep removes what dead clusters left, and returns those that live. The caller
// holds the folder's lock.
func (f folder) sweep() (alive []*Record, err error) {
	var errs []error
	if machineRoot() {
		errs = append(errs, lab.Sweep(context.Background(), ""))
	}
	entries, err := os.ReadDir(string(f))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		lives, err := f.lives(e.Name())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		rec, err := f.read(e.Name())
		if lives && err == nil {
			alive = append(alive, rec)
			continue
		}
		if lives {
			errs = append(errs, err)
			continue
		}
		if err != nil {
			// Cut short before anything was made.
			rec = &Record{Name: e.Name()}
		}
		errs = append(errs, f.undo(rec))
	}
	return alive, errors.Join(errs...)
}

// undo removes what a cluster has beside its lab. Root's labs are gone already.
func (f folder) undo(rec *Record) error {
	err := killMarked(rec.ID)
	if rec.UserNamespace && !userns.Inside() {
		err = errors.Join(err, f.undoLab(rec))
	}
	if rec.Kubeconfig != "" {
		err = errors.Join(err, forgetContext(rec))
	}
	if err != nil {
		return fmt.Errorf("remove cluster %s: %w", rec.Name, err)
	}
	if err := os.RemoveAll(f.dir(rec.Name)); err != nil {
		return fmt.Errorf("remove cluster %s: %w", rec.Name, err)
	}
	return nil
}

// undoLab has a process that is root of the same ids remove what files of a lab are
// owned by them.
func (f folder) undoLab(rec *Record) error {
	if _, err := os.Stat(f.labState(rec)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	cmd := exec.Command("/proc/self/exe", "internal", "undo-lab", f.labState(rec))
	cmd.Args[0] = "knarr"
	var said bytes.Buffer
	cmd.Stderr = &said
	err := userns.Start(context.Background(), cmd, "")
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}

// UndoLab removes what dead labs left that are recorded in a folder. It is what Knarr
// calls itself with.
func UndoLab(ctx context.Context, state string) error { return lab.Sweep(ctx, state) }

// Sweep removes what clusters left behind whose keeper was killed, and whatever
// was left by a power cut; also the temporary folders of control planes that are no
// throwaway clusters.
func Sweep() error {
	f, err := thisFolder()
	if err != nil {
		return err
	}
	return errors.Join(scratch.Sweep(), f.locked(func() error {
		_, err := f.sweep()
		return err
	}))
}

// List tells which clusters live, by name.
func List() ([]*Cluster, error) {
	f, err := thisFolder()
	if err != nil {
		return nil, err
	}
	var all []*Cluster
	err = f.locked(func() error {
		alive, err := f.sweep()
		if err != nil {
			slog.Warn("leftovers of a dead cluster stay", "error", err)
		}
		for _, rec := range alive {
			all = append(all, &Cluster{Record: rec, folder: f})
		}
		return nil
	})
	return all, err
}
