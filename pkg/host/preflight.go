package host

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Config is what Preflight must know of the configuration.
type Config struct {
	DataDir, RunDir          string
	ClusterCIDR, ServiceCIDR []netip.Prefix
	// NodeIPs are the addresses that the user names. Default: none.
	NodeIPs []netip.Addr
	// DisableAgent leaves out everything that only a node needs.
	DisableAgent bool
	// Snapshotter is probed if it is overlayfs.
	Snapshotter string
	// FlannelBackend is vxlan, host-gw or none. With none the pod network is
	// another program's care, and so are its links.
	FlannelBackend string
	// KubeVersion is ours, v1.36.4+knarr1; ServerDir, if set, holds the store
	// that it is compared with.
	KubeVersion, ServerDir string
}

// maxRunDir leaves room for the names of containerd's sockets.
const maxRunDir = 70

// Severity says whether a problem stops the start.
type Severity int

// Severities.
const (
	Warning Severity = iota
	Error
)

// Problem is one thing that is not as it should be, told in one line.
type Problem struct {
	Severity Severity
	// What is wrong, where it was found, why it matters, what to do about it.
	// With Where empty, What tells it all.
	What, Where, Why, Do string
}

// Error returns the problem as one line without its end.
func (p Problem) Error() string {
	if p.Where == "" {
		return p.What
	}
	return fmt.Sprintf("%s (%s): %s; %s", p.What, p.Where, p.Why, p.Do)
}

// Problems is what Preflight found, in the order of the checks.
type Problems []Problem

// Err joins those that stop the start, one a line; nil if there are none.
func (ps Problems) Err() error {
	var errs []error
	for _, p := range ps {
		if p.Severity == Error {
			errs = append(errs, p)
		}
	}
	return errors.Join(errs...)
}

// Warnings returns those that do not stop the start.
func (ps Problems) Warnings() Problems {
	var out Problems
	for _, p := range ps {
		if p.Severity == Warning {
			out = append(out, p)
		}
	}
	return out
}

func (ps *Problems) errorf(what, where, why, do string) {
	*ps = append(*ps, Problem{Error, what, where, why, do})
}

func (ps *Problems) warnf(what, where, why, do string) {
	*ps = append(*ps, Problem{Warning, what, where, why, do})
}

// Preflight checks the real machine.
func Preflight(cfg Config) Problems { return new(Machine).Preflight(cfg) }

// Preflight checks whether the machine can carry what cfg asks for. It changes
// nothing, except that missing kernel modules are loaded.
func (m *Machine) Preflight(cfg Config) Problems {
	var ps Problems
	if cfg.ServerDir != "" {
		if err := CheckStoreVersion(cfg.ServerDir, cfg.KubeVersion); err != nil {
			ps = append(ps, Problem{Severity: Error, What: err.Error()})
		}
	}
	m.checkPlan(cfg, &ps)
	if cfg.DisableAgent {
		m.checkDataDir(cfg, &ps)
		return ps
	}
	if !m.checkRights(&ps) {
		// Without rights the other checks would tell of what is not so.
		return ps
	}
	// The kernel makes the probes of overlay and nftables wait some ten
	// milliseconds each, for nothing that they need: let them wait together.
	var overlay, nft Problems
	var probes sync.WaitGroup
	probes.Go(func() { m.checkOverlay(cfg, &overlay) })
	probes.Go(func() { m.checkNFTables(&nft) })
	m.checkDataDir(cfg, &ps)
	m.checkMounts(&ps)
	m.checkCgroups(&ps)
	m.checkKernel(cfg, &ps)
	m.checkNetwork(cfg, &ps)
	probes.Wait()
	return slices.Concat(ps, overlay, nft)
}

func (m *Machine) checkRights(ps *Problems) bool {
	if !m.root() {
		ps.errorf("not root", "effective user id", "a node makes namespaces, mounts and packet-filter rules",
			"run it with sudo, or as a systemd service")
		return false
	}
	ok := true
	for _, c := range []struct {
		name string
		bit  uint
	}{{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN}, {"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}} {
		if !m.capable(c.bit) {
			ok = false
			ps.errorf(c.name+" is missing", "/proc/self/status", "a node makes namespaces, mounts and packet-filter rules",
				"give the container --privileged, or the service its capabilities")
		}
	}
	return ok
}

func (m *Machine) checkDataDir(cfg Config, ps *Problems) {
	if len(cfg.RunDir) > maxRunDir {
		ps.errorf("the run dir's path is too long", cfg.RunDir, "the kernel takes at most 107 characters for a socket's path",
			fmt.Sprintf("choose one of at most %d", maxRunDir))
	}
	dir := existing(cfg.DataDir)
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		ps.errorf("the data dir can't be written", dir, err.Error(), "mount it writable, run as its owner, or choose another --data-dir")
		return
	}
	if mt, ok := m.mountOf(dir); ok && mt.has("noexec") && !cfg.DisableAgent {
		ps.errorf("the data dir lies on a filesystem mounted noexec", mt.point,
			"runc and the CNI plugins are unpacked there and run from there", "mount it without noexec, or choose another --data-dir")
	}
}

func (m *Machine) checkOverlay(cfg Config, ps *Problems) {
	if cfg.Snapshotter != "overlayfs" || unix.Access(existing(cfg.DataDir), unix.W_OK) != nil {
		return
	}
	if !m.filesystem("overlay") {
		_ = m.kernel().LoadModule("overlay") // the probe below tells
	}
	if err := m.kernel().Overlay(cfg.DataDir); err != nil {
		ps.errorf("overlayfs does not work in the data dir", cfg.DataDir,
			"containers' filesystems are overlays: "+err.Error(),
			"use ext4, xfs or btrfs for it, or --snapshotter=native (slower, takes more space)")
	}
}

func (m *Machine) filesystem(name string) bool {
	for line := range strings.Lines(m.read("/proc/filesystems")) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
			return true
		}
	}
	return false
}

func (m *Machine) checkMounts(ps *Problems) {
	if mt, ok := m.mountOf("/proc/sys"); ok && mt.has("ro") {
		ps.errorf("/proc/sys is read-only", mt.point, "a node must forward packets and set kernel parameters", "give the container --privileged")
	}
	if !m.exists("/dev/kmsg") {
		ps.errorf("/dev/kmsg is missing", "/dev", "the kubelet learns there of processes killed for memory, and does not start without it",
			"give the container --device=/dev/kmsg")
	}
}

func (m *Machine) checkCgroups(ps *Problems) {
	c := m.cgroups()
	if c.Mode == CgroupNone {
		ps.errorf("no cgroups are mounted", cgroupDir, "pods are accounted and limited by them",
			"mount -t cgroup2 cgroup2 "+cgroupDir+" (Alpine: rc-update add cgroups boot && rc-service cgroups start)")
		return
	}
	if c.ReadOnly {
		ps.errorf("the cgroups are mounted read-only", cgroupDir, "a node makes a group for each pod", "give the container --privileged")
	}
	for _, name := range c.Needs() {
		if c.Has(name) {
			continue
		}
		where, do := cgroupDir+", cgroup "+string(c.Mode), "boot a kernel that has it, or cgroup v2 (systemd.unified_cgroup_hierarchy=1)"
		enabled, known := m.kernelControllers()[name]
		switch {
		case name == "memory" && (known && !enabled || m.raspberryPi()):
			do = "add " + strconv.Quote("cgroup_memory=1 cgroup_enable=memory") + " to " + m.commandLineFile() + " and reboot"
		case known && !enabled:
			do = "remove cgroup_disable=" + name + " from " + m.commandLineFile() + " and reboot"
		case enabled && c.Mode != CgroupV2:
			do = "mount it: mkdir -p " + cgroupDir + "/" + name + " && mount -t cgroup -o " + name + " cgroup " + cgroupDir + "/" + name
		case c.Mode == CgroupV2 && m.exists(cgroupDir+"/cgroup.type"):
			do = "enable it in the parent's cgroup.subtree_control (systemd: Delegate=yes)"
		}
		ps.errorf("the "+name+" cgroup controller is missing", where, "the kubelet does not start without it", do)
	}
}

func (m *Machine) raspberryPi() bool {
	return strings.Contains(m.read("/proc/device-tree/model"), "Raspberry Pi")
}

// commandLineFile says where this machine keeps its kernel's command line.
func (m *Machine) commandLineFile() string {
	for _, p := range []string{"/boot/firmware/cmdline.txt", "/boot/cmdline.txt"} {
		if m.raspberryPi() && m.exists(p) {
			return "the one line in " + p
		}
	}
	if m.raspberryPi() {
		return "the one line in cmdline.txt on the boot partition"
	}
	if m.exists("/etc/default/grub") {
		return "GRUB_CMDLINE_LINUX in /etc/default/grub, run update-grub"
	}
	return "the kernel's command line"
}
