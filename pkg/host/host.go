// Package host knows the machine under Knarr: what it can do (Detect), whether
// it is fit to run a node (Preflight), who already uses the data dir (Lock),
// and what Knarr changes on it, so that all of it can be taken back (Ledger).
//
// It reads the machine through a Machine, whose root folder a test can replace.
package host

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Machine is where the package reads from. The zero value is the real machine.
type Machine struct {
	// Root is put before every path of the system (/proc, /sys, /etc, /run, /lib).
	// Default "", the real ones.
	Root string
	// Kernel answers what no file tells. Default: the running kernel.
	Kernel Kernel
}

// Kernel is what can only be learned by asking the kernel. No method leaves
// anything behind, apart from loaded modules.
type Kernel interface {
	// LinkKind returns nil if links of this kind (veth, bridge, vxlan …) can be made.
	LinkKind(kind string) error
	// NFTables names the nftables features that kube-proxy and Knarr use and
	// that are missing. An error says that nftables is missing altogether.
	NFTables() (missing []string, err error)
	// LoadModule loads a module and what it needs.
	LoadModule(name string) error
	// Overlay returns nil if an overlay can have its upper folder below dir.
	Overlay(dir string) error
	// Network tells the addresses and routes of this network namespace.
	Network() (Network, error)
}

func (m *Machine) kernel() Kernel {
	if m.Kernel != nil {
		return m.Kernel
	}
	return runningKernel{}
}

func (m *Machine) path(p string) string {
	if m.Root == "" {
		return p
	}
	return filepath.Join(m.Root, p)
}

// read returns a file's text without surrounding space, or "" if there is none:
// most of what is read here exists only on some kernels.
func (m *Machine) read(p string) string {
	b, err := os.ReadFile(m.path(p))
	if err != nil {
		return ""
	}
	// The device tree ends its strings with a zero byte.
	return strings.TrimSpace(strings.TrimRight(string(b), "\x00"))
}

func (m *Machine) exists(p string) bool {
	_, err := os.Stat(m.path(p))
	return err == nil
}

// mount is one line of /proc/self/mountinfo.
type mount struct {
	point, fstype  string
	options, super []string
}

func (mt mount) has(option string) bool { return slices.Contains(mt.options, option) }

// mounts lists the mounts that this process can see, the newest last. One that
// lies at or above an older one's place hides it.
func (m *Machine) mounts() []mount {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var all []mount
	for line := range strings.Lines(m.read("/proc/self/mountinfo")) {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 6 || len(right) < 3 {
			continue
		}
		mt := mount{
			point: unescape.Replace(left[4]), fstype: right[0],
			options: strings.Split(left[5], ","), super: strings.Split(right[2], ","),
		}
		all = slices.DeleteFunc(all, func(older mount) bool { return within(older.point, mt.point) })
		all = append(all, mt)
	}
	return all
}

// mountOf finds the mount that path lies on.
func (m *Machine) mountOf(path string) (mount, bool) {
	var best mount
	found := false
	for _, mt := range m.mounts() {
		if !within(path, mt.point) || found && len(mt.point) < len(best.point) {
			continue
		}
		best, found = mt, true
	}
	return best, found
}

func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// existing returns path, or its nearest ancestor that exists.
func existing(path string) string {
	for {
		if _, err := os.Stat(path); err == nil {
			return path
		}
		parent := filepath.Dir(path)
		if parent == path {
			return path
		}
		path = parent
	}
}
