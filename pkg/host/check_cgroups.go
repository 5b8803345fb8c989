package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

func (s *survey) checkCgroups(f *findings) string {
	c := s.groups()
	if c.Mode == CgroupNone {
		f.errorf("no cgroups are mounted", cgroupDir, "pods are accounted and limited by them",
			"mount -t cgroup2 cgroup2 "+cgroupDir+" (Alpine: rc-update add cgroups boot && rc-service cgroups start)")
		return ""
	}
	if c.ReadOnly {
		f.errorf("the cgroups are mounted read-only", cgroupDir, "a node makes a group for each pod", "give the container --privileged")
	}
	for _, name := range c.Needs() {
		if !c.Has(name) {
			f.errorf("the "+name+" cgroup controller is missing", cgroupDir+", cgroup "+string(c.Mode),
				"the kubelet does not start without it", s.controllerAdvice(name))
		}
	}
	return "cgroup " + string(c.Mode) + " with " + strings.Join(c.Needs(), ", ")
}

func (s *survey) controllerAdvice(name string) string {
	enabled, known := s.kernelControllers()[name]
	switch {
	case name == "memory" && (known && !enabled || s.raspberryPi()):
		return "add " + strconv.Quote("cgroup_memory=1 cgroup_enable=memory") + " to " + s.commandLineFile() + " and reboot"
	case known && !enabled:
		return "remove cgroup_disable=" + name + " from " + s.commandLineFile() + " and reboot"
	case enabled && s.groups().Mode != CgroupV2:
		return "mount it: mkdir -p " + cgroupDir + "/" + name + " && mount -t cgroup -o " + name + " cgroup " + cgroupDir + "/" + name
	case s.groups().Mode == CgroupV2 && s.exists(cgroupDir+"/cgroup.type"):
		return "enable it in the parent's cgroup.subtree_control (systemd: Delegate=yes)"
	}
	return "boot a kernel that has it, or cgroup v2 (systemd.unified_cgroup_hierarchy=1)"
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

// checkDriver tells who will make the pods' groups, and whether pods of before
// have theirs elsewhere.
func (s *survey) checkDriver(f *findings) string {
	driver, unit := s.cgroupDriver(s.groups())
	fine := "cgroupfs, since no systemd service runs this process"
	other, advice := DriverSystemd, "start it as the systemd service that it was before, or reboot"
	if driver == DriverSystemd {
		fine = "systemd, which runs this process as " + unit
		other, advice = DriverCgroupfs, "start it as it was started before, or reboot"
	}
	if dir := s.podGroups(other); dir != "" {
		f.warnf("the cgroup driver is now "+driver, "pods of before have groups of "+other+"'s, such as "+dir,
			"the kubelet does not find them there, and starts those pods anew", advice)
	}
	return fine
}

// podGroups finds a pod's group as the driver names it, "" if there is none.
func (s *survey) podGroups(driver string) string {
	tree := cgroupDir
	if memory := s.controllerDir("memory"); memory != "" {
		tree = memory
	}
	// Both drivers put guaranteed pods first and the other classes below.
	dirs := []string{"kubepods", "kubepods/burstable", "kubepods/besteffort"}
	if driver == DriverSystemd {
		dirs = []string{"kubepods.slice", "kubepods.slice/kubepods-burstable.slice", "kubepods.slice/kubepods-besteffort.slice"}
	}
	for _, dir := range dirs {
		dir = filepath.Join(tree, dir)
		entries, err := os.ReadDir(s.path(dir))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if e.IsDir() && (strings.HasPrefix(e.Name(), "pod") || strings.Contains(e.Name(), "-pod")) {
				return filepath.Join(dir, e.Name())
			}
		}
	}
	return ""
}

func (s *survey) checkSwap(f *findings) string {
	var areas []string
	for line := range strings.Lines(s.read("/proc/swaps")) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] != "Filename" {
			areas = append(areas, fields[0])
		}
	}
	if len(areas) == 0 {
		return "swap is off"
	}
	where := strings.Join(areas, ", ")
	if s.groups().Mode == CgroupV2 {
		return fmt.Sprintf("swap is on (%s), pods do not use it", where)
	}
	f.warnf("swap is on", where, "under cgroup v1 pods are swapped out too, so that their memory limits mean less", "swapoff -a, or boot with cgroup v2")
	return ""
}
