package lab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/knarr-dev/knarr/pkg/throwaway/userns"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// leaf holds a host's own processes on the unified hierarchy, where a
	// cgroup with processes can't hand controllers to its children.
	leaf = host.CgroupLeaf
	// drainTime is how long killed processes may take to go.
	drainTime = 20 * time.Second
)

// A cgroup is one directory of one hierarchy.
type cgroup struct {
	Mount   string `json:"mount"`   // where the machine has the hierarchy
	V2      bool   `json:"v2"`      // the unified hierarchy
	Options string `json:"options"` // that mount a v1 hierarchy
	Path    string `json:"path"`    // below Mount
}

// cgroups are the same path in every hierarchy of the machine.
type cgroups []cgroup

func (c cgroup) dir() string { return filepath.Join(c.Mount, c.Path) }

// pure tells whether the machine has the unified hierarchy alone.
func (c cgroup) pure() bool { return c.V2 && c.Mount == cgroupRoot }

func (c cgroup) write(file, value string) error {
	path := filepath.Join(c.dir(), file)
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("write %q: %w", value, err)
	}
	return nil
}

// findCgroups names a path in every hierarchy that is mounted.
func findCgroups(path string) (cgroups, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found cgroups
	seen := map[string]bool{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		mount, super := strings.Fields(before), strings.Fields(after)
		if len(mount) < 6 || len(super) < 3 || !strings.HasPrefix(super[0], "cgroup") {
			continue
		}
		device, point := mount[2], mount[4]
		if seen[device] || point != cgroupRoot && !strings.HasPrefix(point, cgroupRoot+"/") {
			continue
		}
		seen[device] = true
		found = append(found, cgroup{
			Mount: point, V2: super[0] == "cgroup2",
			Options: controllerOptions(super[2]), Path: path,
		})
	}
	if len(found) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted below " + cgroupRoot)
	}
	return found, nil
}

// baseCgroup is the path below which labs have their cgroups: the root, or where this
// process may make some without being the machine's root. There it leaves its own
// cgroup for a leaf, for that one is to hand its controllers down.
func baseCgroup() (string, error) {
	if !userns.Inside() {
		// A container's own root hands nothing to hosts while it has processes.
		if err := host.MoveToLeaf(cgroupRoot); err != nil {
			return "", fmt.Errorf("move the processes of this container's cgroup into a leaf: %w", err)
		}
		return "", nil
	}
	own, err := userns.CgroupOf(os.ReadFile, os.Getpid())
	if err != nil || filepath.Base(own) == leaf {
		return filepath.Dir(own), err
	}
	base := cgroup{Mount: cgroupRoot, V2: true, Path: own}
	if err := host.MoveToLeaf(base.dir()); err != nil {
		return "", fmt.Errorf("leave for a leaf cgroup: %w", err)
	}
	if err := base.handDown(); err != nil {
		return "", fmt.Errorf("hand controllers of %s down: %w", base.dir(), err)
	}
	return own, nil
}

// controllerOptions keeps what says which v1 hierarchy is meant.
func controllerOptions(super string) string {
	opts := slices.DeleteFunc(strings.Split(super, ","), func(o string) bool {
		return slices.Contains([]string{"rw", "ro", "xattr", "noprefix", "clone_children"}, o) ||
			strings.Contains(o, "=") && !strings.HasPrefix(o, "name=")
	})
	if slices.ContainsFunc(opts, func(o string) bool { return strings.HasPrefix(o, "name=") }) {
		opts = append([]string{"none"}, opts...)
	}
	return strings.Join(opts, ",")
}

func (cg cgroups) below(name string) cgroups {
	sub := slices.Clone(cg)
	for i := range sub {
		sub[i].Path = filepath.Join(sub[i].Path, name)
	}
	return sub
}

// dirs are those that a process of the host is put into.
func (cg cgroups) dirs() []string {
	var dirs []string
	for _, c := range cg {
		if c.V2 {
			c.Path = filepath.Join(c.Path, leaf)
		}
		dirs = append(dirs, c.dir())
	}
	return dirs
}

// create makes the directories; those above must exist.
func (cg cgroups) create() error {
	for _, c := range cg {
		if err := os.Mkdir(c.dir(), 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if err := c.inheritCPUs(); err != nil {
			return fmt.Errorf("make cgroup %s: %w", c.dir(), err)
		}
	}
	return nil
}

// handDown gives every controller to the children, where there is a choice.
func (cg cgroups) handDown() error {
	for _, c := range cg {
		if err := c.handDown(); err != nil {
			return fmt.Errorf("hand controllers of %s down: %w", c.dir(), err)
		}
	}
	return nil
}

// inheritCPUs fills a v1 cpuset, which starts empty and then takes no process.
func (c cgroup) inheritCPUs() error {
	if c.V2 {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(filepath.Dir(c.dir()), file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := c.write(file, strings.TrimSpace(string(value))); err != nil {
			return err
		}
	}
	return nil
}

func (c cgroup) handDown() error {
	if !c.pure() {
		return nil
	}
	missing, err := c.missing()
	if err != nil || len(missing) == 0 {
		return err
	}
	return c.write("cgroup.subtree_control", "+"+strings.Join(missing, " +"))
}

// missing are the controllers that a unified cgroup keeps from its children.
func (c cgroup) missing() ([]string, error) {
	has, err := os.ReadFile(filepath.Join(c.dir(), "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	given, err := os.ReadFile(filepath.Join(c.dir(), "cgroup.subtree_control"))
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(strings.Fields(string(has)), func(name string) bool {
		return slices.Contains(strings.Fields(string(given)), name)
	}), nil
}

// missingControllers tells how to put back the root's list of controllers
// before apply completes it: what the root keeps, no host can have.
func (cg cgroups) missingControllers() (undo []setting, apply func() error) {
	apply = func() error { return nil }
	for _, c := range cg {
		c.Path = ""
		missing, err := c.missing()
		if !c.pure() || err != nil || len(missing) == 0 {
			continue
		}
		undo = append(undo, setting{filepath.Join(c.dir(), "cgroup.subtree_control"), "-" + strings.Join(missing, " -")})
		apply = c.handDown
	}
	return undo, apply
}

// add moves a process into the cgroups.
func (cg cgroups) add(pid int) error {
	for _, c := range cg {
		if err := c.write("cgroup.procs", strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("move process %d into its cgroup: %w", pid, err)
		}
	}
	return nil
}

// limit bounds memory, in bytes; 0 lifts the bound.
func (cg cgroups) limit(bytes int64) error {
	for _, c := range cg {
		file, none := "memory.limit_in_bytes", "-1"
		if c.V2 {
			file, none = "memory.max", "max"
		}
		if _, err := os.Stat(filepath.Join(c.dir(), file)); err != nil {
			continue
		}
		if bytes == 0 {
			return c.write(file, none)
		}
		return c.write(file, strconv.FormatInt(bytes, 10))
	}
	return errors.New("limit memory: the machine has no memory controller")
}

// kill ends every process in the cgroups and waits until they are gone.
func (cg cgroups) kill() error {
	i := slices.IndexFunc(cg, func(c cgroup) bool { return c.V2 })
	if i < 0 {
		return cg[:min(1, len(cg))].killEach()
	}
	c := cg[i]
	// It fails before Linux 5.14 and when all is gone already; the end of the
	// hosts' pid namespaces has killed all the same, and drain tells.
	_ = c.write("cgroup.kill", "1")
	return c.drain()
}

// killEach serves machines without the unified hierarchy, where no event tells
// that a cgroup is empty: remove's retries wait.
func (cg cgroups) killEach() error {
	for _, c := range cg {
		err := filepath.WalkDir(c.dir(), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return ignoreGone(err)
			}
			pids, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for _, pid := range strings.Fields(string(pids)) {
				if n, err := strconv.Atoi(pid); err == nil && n > 1 {
					unix.Kill(n, unix.SIGKILL) // gone already is as good
				}
			}
			return ignoreGone(err)
		})
		if err != nil {
			return fmt.Errorf("kill processes of %s: %w", c.dir(), err)
		}
	}
	return nil
}

// drain waits until no process is left in a unified cgroup and below.
func (c cgroup) drain() error {
	f, err := os.Open(filepath.Join(c.dir(), "cgroup.events"))
	if err != nil {
		return ignoreGone(err)
	}
	defer f.Close()
	deadline := time.Now().Add(drainTime)
	buf := make([]byte, 256)
	for {
		n, err := f.ReadAt(buf, 0)
		if n == 0 && err != nil {
			return ignoreGone(err)
		}
		if bytes.Contains(buf[:n], []byte("populated 0")) {
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("processes of %s are still there %s after they were killed", c.dir(), drainTime)
		}
		poll := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(poll, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for %s to empty: %w", f.Name(), err)
		}
	}
}

// remove removes the directories and all below, which must have no processes.
func (cg cgroups) remove() error {
	var errs []error
	for _, c := range cg {
		errs = append(errs, removeCgroup(c.dir()))
	}
	return errors.Join(errs...)
}

func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreGone(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	// A v1 hierarchy has no event for a task that leaves late: try again.
	deadline := time.Now().Add(drainTime)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		<-time.After(wait)
	}
}

// ignoreGone forgives that a cgroup vanished while it was looked at.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
