package host

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Cgroup drivers, as the kubelet and containerd name them.
const (
	DriverCgroupfs = "cgroupfs"
	DriverSystemd  = "systemd"
)

// Facts is what Knarr adapts itself to on this machine.
type Facts struct {
	Hostname string
	// KernelRelease is as uname -r tells it.
	KernelRelease string
	Cgroups       Cgroups
	// CgroupDriver is systemd if systemd runs the machine and runs us as a
	// service, else cgroupfs. It must not change while pods run.
	CgroupDriver string
	// Systemd is set if process 1 is systemd.
	Systemd bool
	// Unit is the systemd service that we run in, "" outside of one.
	Unit string
	// RestrictOOMScoreAdj is set if oom_score_adj can't be lowered: runc then
	// fails for pods that ask for less than ours, unless the CRI is told.
	RestrictOOMScoreAdj bool
	// OOMScoreAdj is this process' own value, -1000 to 1000.
	OOMScoreAdj int
	// UserNamespace is set if root here is not root of the machine.
	UserNamespace bool
	IPv4, IPv6    DefaultRoute
	ResolvConf    ResolvConf
	// AppArmor and SELinux are set if the kernel enforces them or could.
	AppArmor, SELinux bool
}

// Detect looks at the real machine.
func Detect() (Facts, error) { return new(Machine).Detect() }

// Detect looks at the machine. It changes nothing, and takes about a millisecond.
func (m *Machine) Detect() (Facts, error) {
	net, err := m.kernel().Network()
	if err != nil {
		return Facts{}, fmt.Errorf("look at the machine's network: %w", err)
	}
	f := Facts{
		Hostname:      m.read("/proc/sys/kernel/hostname"),
		KernelRelease: m.read("/proc/sys/kernel/osrelease"),
		Cgroups:       m.cgroups(),
		Systemd:       m.read("/proc/1/comm") == "systemd",
		UserNamespace: m.inUserNamespace(),
		IPv4:          net.DefaultRoute(false),
		IPv6:          net.DefaultRoute(true),
		ResolvConf:    m.resolvConf(),
		AppArmor:      strings.HasPrefix(m.read("/sys/module/apparmor/parameters/enabled"), "Y"),
		SELinux:       m.exists("/sys/fs/selinux/enforce"),
	}
	f.OOMScoreAdj, _ = strconv.Atoi(m.read("/proc/self/oom_score_adj"))
	// The kernel asks for the capability in the first user namespace.
	f.RestrictOOMScoreAdj = f.UserNamespace || !m.capable(unix.CAP_SYS_RESOURCE)
	f.CgroupDriver, f.Unit = m.cgroupDriver(f.Cgroups)
	return f, nil
}

// cgroupDriver chooses the driver; with systemd's comes our service.
func (m *Machine) cgroupDriver(c Cgroups) (driver, unit string) {
	if m.read("/proc/1/comm") == "systemd" {
		unit = unitOf(c.Own)
	}
	if unit == "" {
		return DriverCgroupfs, ""
	}
	return DriverSystemd, unit
}

// unitOf finds the system service in a cgroup's path. Services of a user's own
// systemd do not count: they can't make groups for pods.
func unitOf(cgroup string) string {
	if strings.HasPrefix(cgroup, "/user.slice/") {
		return ""
	}
	for p := cgroup; p != "/" && p != "."; p = path.Dir(p) {
		if strings.HasSuffix(p, ".service") {
			return path.Base(p)
		}
	}
	return ""
}

// status returns a field of /proc/self/status.
func (m *Machine) status(field string) string {
	for line := range strings.Lines(m.read("/proc/self/status")) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// capable tells whether this process has a capability now.
func (m *Machine) capable(bit uint) bool {
	set, err := strconv.ParseUint(m.status("CapEff"), 16, 64)
	return err == nil && set&(1<<bit) != 0
}

// root tells whether the effective user is 0.
func (m *Machine) root() bool {
	ids := strings.Fields(m.status("Uid"))
	return len(ids) > 1 && ids[1] == "0"
}

// inUserNamespace tells whether user ids here are others outside.
func (m *Machine) inUserNamespace() bool {
	f := strings.Fields(m.read("/proc/self/uid_map"))
	return len(f) > 0 && (len(f) != 3 || f[0] != "0" || f[1] != "0" || f[2] != "4294967295")
}

// ResolvConf is the file that names the DNS servers to ask for the world's names.
type ResolvConf struct {
	// Path is "" if no file names a usable server: every one is a loopback
	// address, which inside a pod is the pod itself, or there is none.
	Path    string
	Servers []netip.Addr
}

// resolvConf prefers the host's own file. Where that names only a local stub
// (127.0.0.53), the stub's own list of servers is taken, which avoids both the
// loop of a cluster DNS that asks itself and an address that pods can't reach.
func (m *Machine) resolvConf() ResolvConf {
	for _, p := range []string{
		"/etc/resolv.conf",
		"/run/systemd/resolve/resolv.conf",
		"/run/NetworkManager/no-stub-resolv.conf",
	} {
		servers := slices.DeleteFunc(m.nameservers(p), func(ip netip.Addr) bool { return ip.IsLoopback() || ip.IsUnspecified() })
		if len(servers) > 0 {
			return ResolvConf{Path: p, Servers: servers}
		}
	}
	return ResolvConf{}
}

// nameservers lists those that a resolv.conf names.
func (m *Machine) nameservers(path string) []netip.Addr {
	var servers []netip.Addr
	for line := range strings.Lines(m.read(path)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if ip, err := netip.ParseAddr(f[1]); err == nil {
			servers = append(servers, ip)
		}
	}
	return servers
}
