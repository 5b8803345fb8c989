package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/throwaway/userns"
)

const defaultState = "/run/knarr-lab"

// sharedSysctls are what a node writes and no namespace holds back. They
// can't be hidden behind bind mounts: with anything mounted over a file in
// /proc the kernel refuses pods with a user namespace a /proc of their own.
func sharedSysctls() []string {
	return []string{
		"/proc/sys/fs/inotify/max_user_instances",
		"/proc/sys/fs/inotify/max_user_watches",
		"/proc/sys/vm/overcommit_memory",
		"/proc/sys/vm/panic_on_oom",
		"/proc/sys/kernel/panic",
		"/proc/sys/kernel/panic_on_oops",
		"/proc/sys/kernel/keys/root_maxkeys",
		"/proc/sys/kernel/keys/root_maxbytes",
	}
}

// A registry is the folder that records the labs of this machine: a file for
// each lab, locked for as long as its program lives, and one with the settings
// of the machine as they were before the first of them.
type registry string

// A record is what has to be undone by hand when a lab ends.
type record struct {
	Name    string  `json:"name"`
	PID     int     `json:"pid"`           // for people; the lock tells who lives
	Dir     string  `json:"dir,omitempty"` // folder to remove
	Cgroups cgroups `json:"cgroups"`
}

// A claim is the record of a lab of this program, locked.
type claim struct {
	reg  registry
	rec  record
	file *os.File
}

// A setting is a file of the kernel and what puts it back.
type setting struct {
	Path string `json:"path"`
	Undo string `json:"undo"`
}

// Sweep removes what labs left behind whose program died without closing them:
// processes, cgroups, folders, sysctls. Live labs are left alone. An empty
// state means Config.State's default.
func Sweep(ctx context.Context, state string) error {
	if state == "" {
		state = defaultState
	}
	if _, err := os.Stat(state); os.IsNotExist(err) {
		return nil
	}
	r := registry(state)
	return r.locked(func() error {
		_, err := r.sweep()
		return errors.Join(err, ctx.Err())
	})
}

func (r registry) locked(fn func() error) error { return LockFolder(string(r), fn) }

func (r registry) path(name string) string { return filepath.Join(string(r), name+".lab") }

func (r registry) machine() string { return filepath.Join(string(r), "machine.json") }

// claim records a lab before anything of it is made.
func (r registry) claim(rec record) (*claim, error) {
	c := &claim{reg: r, rec: rec}
	err := r.locked(func() (err error) {
		if _, err := r.sweep(); err != nil {
			slog.Warn("leftovers of a dead lab stay", "error", err)
		}
		if c.file, err = os.OpenFile(r.path(rec.Name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			if os.IsExist(err) {
				return fmt.Errorf("a lab of that name runs: close it, or choose another name")
			}
			return fmt.Errorf("record it: %w", err)
		}
		if err := unix.Flock(int(c.file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return fmt.Errorf("lock %s: %w", c.file.Name(), err)
		}
		if err := json.NewEncoder(c.file).Encode(rec); err != nil {
			return fmt.Errorf("record it: %w", err)
		}
		return r.noteMachine(rec.Cgroups)
	})
	if err != nil {
		if c.file != nil {
			err = errors.Join(err, c.release())
		}
		return nil, err
	}
	return c, nil
}

// release undoes the lab and forgets it.
func (c *claim) release() error {
	return c.reg.locked(func() error {
		if err := c.rec.undo(); err != nil {
			return err // its record stays, for a later sweep
		}
		err := errors.Join(os.Remove(c.file.Name()), c.file.Close())
		_, serr := c.reg.sweep()
		return errors.Join(err, serr)
	})
}

// sweep undoes dead labs, and puts the machine's settings back when none is
// alive. It tells how many are.
func (r registry) sweep() (alive int, err error) {
	names, err := filepath.Glob(r.path("*"))
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, name := range names {
		lives, err := r.sweepOne(name)
		if lives {
			alive++
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep lab %s: %w", strings.TrimSuffix(filepath.Base(name), ".lab"), err))
		}
	}
	if alive == 0 {
		errs = append(errs, r.restoreMachine())
	}
	return alive, errors.Join(errs...)
}

func (r registry) sweepOne(name string) (lives bool, err error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	var rec record
	// A record that can't be read was cut short before anything was made.
	if json.NewDecoder(f).Decode(&rec) == nil {
		if err := rec.undo(); err != nil {
			return false, err
		}
	}
	return false, os.Remove(name)
}

func (rec record) undo() error {
	if err := rec.Cgroups.kill(); err != nil {
		return err
	}
	if err := rec.Cgroups.remove(); err != nil {
		return err
	}
	if rec.Dir == "" {
		return nil
	}
	return os.RemoveAll(rec.Dir)
}

// noteMachine writes down the machine's settings, unless another lab has,
// and then changes those that labs need changed. Who is not the machine's root can
// change none.
func (r registry) noteMachine(cg cgroups) error {
	if userns.Inside() {
		return nil
	}
	if _, err := os.Stat(r.machine()); err == nil {
		return nil
	}
	var settings []setting
	for _, path := range sharedSysctls() {
		old, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("note sysctl: %w", err)
		}
		settings = append(settings, setting{path, strings.TrimSpace(string(old))})
	}
	controllers, apply := cg.missingControllers()
	data, err := json.Marshal(append(settings, controllers...))
	if err != nil {
		return err
	}
	if err := os.WriteFile(r.machine()+".new", data, 0o600); err != nil {
		return fmt.Errorf("note the machine's settings: %w", err)
	}
	if err := os.Rename(r.machine()+".new", r.machine()); err != nil {
		return fmt.Errorf("note the machine's settings: %w", err)
	}
	return apply()
}

func (r registry) restoreMachine() error {
	data, err := os.ReadFile(r.machine())
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var settings []setting
	if err := json.Unmarshal(data, &settings); err != nil {
		return fmt.Errorf("read %s: %w", r.machine(), err)
	}
	for _, s := range settings {
		now, err := os.ReadFile(s.Path)
		if err == nil && strings.TrimSpace(string(now)) == s.Undo {
			continue
		}
		if err := os.WriteFile(s.Path, []byte(s.Undo), 0); err != nil {
			return fmt.Errorf("put %q back into %s: %w", s.Undo, s.Path, err)
		}
	}
	return os.Remove(r.machine())
}
