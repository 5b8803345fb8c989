package host

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const whyRoot = "a node makes namespaces, mounts and packet-filter rules"

func (s *survey) checkRoot(f *findings) string {
	if !s.root() {
		f.errorf("not root", "effective user id", whyRoot, "run it with sudo, or as a systemd service")
	}
	return "the effective user is root"
}

func (s *survey) checkCapabilities(f *findings) string {
	if !s.root() {
		return ""
	}
	if missing := s.missingCapabilities(); len(missing) > 0 {
		// One line, whatever is missing: it is one thing to do.
		f.errorf("of root's rights is missing: "+strings.Join(missing, ", "), "/proc/self/status", whyRoot,
			"give the container --privileged, or the service its capabilities")
	}
	return "CAP_SYS_ADMIN and CAP_NET_ADMIN are held"
}

func (m *Machine) missingCapabilities() []string {
	var missing []string
	for _, c := range []struct {
		name string
		bit  uint
	}{{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN}, {"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}} {
		if !m.capable(c.bit) {
			missing = append(missing, c.name)
		}
	}
	return missing
}

// checkOOMScore looks for the right to lower oom_score_adj.
func (s *survey) checkOOMScore(f *findings) string {
	const why = "no pod can be spared more than Knarr itself when memory runs out; Knarr has containerd heed that"
	if s.inUserNamespace() {
		f.warnf("OOM scores can't be lowered", "/proc/self/uid_map: root here is not the machine's root", why, "nothing, or run Knarr as the machine's root")
	} else if !s.capable(unix.CAP_SYS_RESOURCE) {
		f.warnf("CAP_SYS_RESOURCE is missing", "/proc/self/status", why, "nothing, or give the container --cap-add=SYS_RESOURCE")
	}
	return "OOM scores of pods can be lowered"
}

// checkKernelFiles looks for what containers often lack of the kernel's files.
func (s *survey) checkKernelFiles(f *findings) string {
	if mt, ok := mountOf(s.mountTable(), "/proc/sys"); ok && mt.has("ro") {
		f.errorf("/proc/sys is read-only", mt.point, "a node must forward packets and set kernel parameters", "give the container --privileged")
	}
	if !s.exists("/dev/kmsg") {
		f.errorf("/dev/kmsg is missing", "/dev", "the kubelet learns there of processes killed for memory, and does not start without it",
			"give the container --device=/dev/kmsg")
	}
	return "/proc/sys can be written, /dev/kmsg is there"
}

// checkFeatures looks for what containers are made of.
func (s *survey) checkFeatures(f *findings) string {
	var missing []string
	for _, kind := range []string{"cgroup", "ipc", "mnt", "net", "pid", "uts"} {
		if _, err := os.Lstat(s.path("/proc/self/ns/" + kind)); err != nil {
			missing = append(missing, kind)
		}
	}
	release := "kernel " + s.read("/proc/sys/kernel/osrelease")
	if len(missing) > 0 {
		f.errorf("the kernel has no "+strings.Join(missing, ", ")+" namespaces", release, "containers are made of them", "boot a kernel that has them")
	}
	if s.status("Seccomp") == "" {
		f.warnf("the kernel has no seccomp", release, "pods with the profile RuntimeDefault do not start", "boot a kernel with CONFIG_SECCOMP_FILTER")
	}
	if cpu := s.controllerDir("cpu"); cpu != "" && !s.exists(cpu+"/cpu.cfs_quota_us") {
		f.warnf("the kernel has no CPU quota", cpu, "pods with a CPU limit do not start", "boot a kernel with CONFIG_CFS_BANDWIDTH, or give --kubelet-arg=cpu-cfs-quota=false")
	}
	return "namespaces, seccomp and CPU quota are there"
}

// controllerDir is where a v1 controller is mounted, "" under cgroup v2.
func (s *survey) controllerDir(name string) string {
	if c := s.groups(); c.Mode != CgroupV1 && c.Mode != CgroupHybrid {
		return ""
	}
	for _, mt := range s.mountTable() {
		if mt.fstype == "cgroup" && within(mt.point, cgroupDir) && mt.carries(name) {
			return mt.point
		}
	}
	return ""
}

func (mt mount) carries(controller string) bool {
	for _, o := range mt.super {
		if o == controller {
			return true
		}
	}
	return false
}

// size writes a number of bytes for people.
func size(bytes uint64) string {
	switch {
	case bytes >= 10<<30:
		return fmt.Sprintf("%d GiB", bytes>>30)
	case bytes >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
	}
	return fmt.Sprintf("%d MiB", bytes>>20)
}
