// Package host knows the machine under Knarr: what it can do (Detect), whether
// it is fit to run a node (Preflight), who already uses the data dir (Lock),
// and what Knarr changes on it, so that all of it can be taken back (Ledger).
//
// It reads the machine through a Machine, whose root folder a test can replace.
package host

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Machine is where the package reads from. The zero value is the real machine.
type Machine struct {
	// Root is put before every path of the system (/proc, /sys, /etc, /run, /lib).
	// Default "", the real ones.
	Root string
	// Kernel answers what no file tells. Default: the running kernel.
	Kernel Kernel
	// Now is the clock. Default: time.Now.
	Now func() time.Time
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
	// Database returns nil if a file below dir can be locked and mapped, as
	// SQLite does with its own.
	Database(dir string) error
	// Space tells what the file system below dir has room for.
	Space(dir string) (Space, error)
	// Bind returns nil if a port can be listened on, tcp or udp, EADDRINUSE if
	// it is taken.
	Bind(network string, addr netip.AddrPort) error
	// ForwardDrops names the chains that drop forwarded packets which none of
	// their rules accepts.
	ForwardDrops() ([]string, error)
	// Network tells the addresses and routes of this network namespace.
	Network() (Network, error)
}

func (m *Machine) kernel() Kernel {
	if m.Kernel != nil {
		return m.Kernel
	}
	return runningKernel{}
}

func (m *Machine) now() time.Time {
	if m.Now != nil {
		return m.Now()
	}
	return time.Now()
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

// Space is how much room a file system has, in bytes and in files. Inodes is 0
// where their number has no limit.
type Space struct{ Size, Free, Inodes, FreeInodes uint64 }

// mount is one line of /proc/self/mountinfo.
type mount struct {
	point, fstype  string
	options, super []string
}

func (mt mount) has(option string) bool { return slices.Contains(mt.options, option) }

// mountTable lists the mounts of this process, the oldest first.
func (m *Machine) mountTable() []mount {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var all []mount
	for line := range strings.Lines(m.read("/proc/self/mountinfo")) {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 6 || len(right) < 3 {
			continue
		}
		all = append(all, mount{
			point: unescape.Replace(left[4]), fstype: right[0],
			options: strings.Split(left[5], ","), super: strings.Split(right[2], ","),
		})
	}
	return all
}

// mounts lists the mounts that this process can see, the newest last.
func (m *Machine) mounts() []mount { return visible(m.mountTable()) }

// visible leaves out what newer mounts hide: one that lies at or above an older
// one's place.
func visible(table []mount) []mount {
	var all []mount
	for _, mt := range table {
		all = slices.DeleteFunc(all, func(older mount) bool { return within(older.point, mt.point) })
		all = append(all, mt)
	}
	return all
}

// mountOf finds the mount that path lies on: the newest of those above it.
func mountOf(table []mount, path string) (mount, bool) {
	for _, mt := range slices.Backward(table) {
		if within(path, mt.point) {
			return mt, true
		}
	}
	return mount{}, false
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
