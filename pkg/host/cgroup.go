package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// CgroupMode is how the machine has mounted its control groups.
type CgroupMode string

// The modes. A hybrid machine has v1 controllers and, beside them, a v2 tree
// that container runtimes do not use.
const (
	CgroupNone   CgroupMode = "none"
	CgroupV1     CgroupMode = "v1"
	CgroupHybrid CgroupMode = "hybrid"
	CgroupV2     CgroupMode = "v2"
)

const cgroupDir = "/sys/fs/cgroup"

// Cgroups describes the control groups as container runtimes will use them.
type Cgroups struct {
	Mode CgroupMode
	// Mount is where the v2 tree is mounted, "" if it is not.
	Mount string
	// Own is the group of this process: in the v2 tree under v2, else in
	// systemd's named tree, else in memory's. It starts with a slash.
	Own string
	// Controllers are usable ones, sorted: those of the v2 tree under v2, else
	// those mounted as v1.
	Controllers []string
	// ReadOnly is set if the tree is mounted read-only, as in an unprivileged container.
	ReadOnly bool
}

// Has tells whether a controller is usable.
func (c Cgroups) Has(controller string) bool { return slices.Contains(c.Controllers, controller) }

// Needs are the controllers that a node must have.
func (c Cgroups) Needs() []string {
	if c.Mode == CgroupV2 {
		return []string{"cpu", "cpuset", "memory", "pids"}
	}
	return []string{"cpu", "cpuacct", "cpuset", "memory", "pids"}
}

func (m *Machine) cgroups() Cgroups { return m.cgroupsOn(m.mountTable()) }

func (m *Machine) cgroupsOn(table []mount) Cgroups {
	c := Cgroups{Mode: CgroupNone}
	v1 := map[string]bool{}
	// A node has a thousand mounts, of which these few matter.
	near := slices.DeleteFunc(slices.Clone(table), func(mt mount) bool {
		return mt.fstype != "cgroup2" && !within(mt.point, cgroupDir) && !within(cgroupDir, mt.point)
	})
	for _, mt := range visible(near) {
		switch {
		case mt.fstype == "cgroup2":
			c.Mount = mt.point
			if mt.point == cgroupDir {
				c.ReadOnly = mt.has("ro")
			}
		case mt.fstype == "cgroup" && within(mt.point, cgroupDir):
			for _, o := range mt.super {
				v1[o] = true
			}
			c.ReadOnly = c.ReadOnly || mt.has("ro")
		}
	}
	switch {
	case c.Mount == cgroupDir:
		c.Mode = CgroupV2
		c.Controllers = strings.Fields(m.read(filepath.Join(c.Mount, "cgroup.controllers")))
	case len(v1) > 0 && c.Mount != "":
		c.Mode = CgroupHybrid
	case len(v1) > 0:
		c.Mode = CgroupV1
	}
	if c.Mode != CgroupV2 {
		// The options of a mount hold more than controllers; the kernel's list
		// tells them apart and leaves out what the command line disabled.
		for name, enabled := range m.kernelControllers() {
			if enabled && v1[name] {
				c.Controllers = append(c.Controllers, name)
			}
		}
	}
	slices.Sort(c.Controllers)
	c.Own = m.ownCgroup(c.Mode)
	return c
}

// kernelControllers reads /proc/cgroups: what was compiled in, and whether it
// is enabled.
func (m *Machine) kernelControllers() map[string]bool {
	all := map[string]bool{}
	for line := range strings.Lines(m.read("/proc/cgroups")) {
		f := strings.Fields(line)
		if len(f) == 4 && !strings.HasPrefix(f[0], "#") {
			all[f[0]] = f[3] == "1"
		}
	}
	return all
}

func (m *Machine) ownCgroup(mode CgroupMode) string {
	paths := m.ownCgroups()
	order := []string{"name=systemd", "memory", ""}
	if mode == CgroupV2 {
		order = []string{""}
	}
	for _, controller := range order {
		if p, ok := paths[controller]; ok {
			return p
		}
	}
	return "/"
}

// ownCgroups are the groups of this process by controller; that of the v2 tree
// has no name.
func (m *Machine) ownCgroups() map[string]string {
	paths := map[string]string{}
	for line := range strings.Lines(m.read("/proc/self/cgroup")) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, controller := range strings.Split(f[1], ",") {
			paths[controller] = f[2]
		}
	}
	return paths
}

// PrepareCgroups prepares the real machine.
func PrepareCgroups(f Facts) error { return new(Machine).PrepareCgroups(f) }

// PrepareCgroups makes room for the pods' groups where no systemd does it: in
// a container or a namespace of its own with cgroup v2, the processes sit in
// the tree's root, and the kernel refuses to hand controllers to the children
// of a group that has processes. They are moved into the leaf /init, and the
// controllers are enabled below the root. Elsewhere it does nothing.
func (m *Machine) PrepareCgroups(f Facts) error {
	c := f.Cgroups
	if c.Mode != CgroupV2 || f.CgroupDriver != DriverCgroupfs || c.Own != "/" {
		return nil
	}
	root := m.path(c.Mount)
	if err := MoveToLeaf(root); err != nil {
		return fmt.Errorf("move the processes of cgroup %s into a leaf (needed before pods can have limits; is it mounted writable?): %w", c.Mount, err)
	}
	enabled := strings.Fields(m.read(filepath.Join(c.Mount, "cgroup.subtree_control")))
	for _, controller := range c.Controllers {
		if slices.Contains(enabled, controller) {
			continue
		}
		// One at a time: the kernel takes all of a line or nothing, and a
		// controller that pods can do without must not keep out the others.
		err := writeFile(filepath.Join(root, "cgroup.subtree_control"), "+"+controller)
		if err != nil && slices.Contains(c.Needs(), controller) {
			return fmt.Errorf("enable the %s controller below cgroup %s (pods need it for their limits): %w", controller, c.Mount, err)
		}
	}
	return nil
}

// CgroupLeaf is the group to which MoveToLeaf moves processes.
const CgroupLeaf = "init"

// MoveToLeaf moves the processes of a v2 group, given by its folder, into a group
// below it, so that it may hand controllers to others. It does nothing where there are
// none, and to the machine's true root group, which may have both.
func MoveToLeaf(root string) error {
	// Only the true root lacks this file.
	if _, err := os.Stat(filepath.Join(root, "cgroup.type")); err != nil {
		return nil
	}
	leaf := filepath.Join(root, CgroupLeaf)
	moved := map[string]bool{}
	for {
		b, err := os.ReadFile(filepath.Join(root, "cgroup.procs"))
		if err != nil {
			return err
		}
		before := len(moved)
		for _, pid := range strings.Fields(string(b)) {
			if moved[pid] {
				continue
			}
			if pid == "0" {
				return errors.New("it holds a process of another pid namespace; give Knarr a cgroup namespace of its own")
			}
			if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			moved[pid] = true
			// A process that has ended in the meantime needs no move.
			if err := writeFile(filepath.Join(leaf, "cgroup.procs"), pid); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		}
		// Children forked while their parents were moved show up in the next look.
		if len(moved) == before {
			return nil
		}
	}
}

// writeFile writes one value to a file of the kernel, which takes it whole or
// not at all. The files exist already; only in tests are they created.
func writeFile(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value + "\n")
	return errors.Join(err, f.Close())
}
