package host

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// minKernel is the first kernel whose nftables kube-proxy can use.
var minKernel = [2]int{5, 13}

func (s *survey) checkKernel(f *findings) string {
	release := s.read("/proc/sys/kernel/osrelease")
	if v, ok := kernelVersion(release); ok && (v[0] < minKernel[0] || v[0] == minKernel[0] && v[1] < minKernel[1]) {
		f.errorf("kernel "+release+" is too old", "/proc/sys/kernel/osrelease",
			"kube-proxy's nftables mode needs "+fmt.Sprintf("%d.%d", minKernel[0], minKernel[1]), "boot a newer kernel")
	}
	return "kernel " + release
}

func (s *survey) checkLinks(f *findings) string {
	if s.cfg.FlannelBackend == "none" {
		return ""
	}
	kinds := []string{"veth", "bridge"}
	if s.cfg.FlannelBackend == "vxlan" {
		kinds = append(kinds, "vxlan")
	}
	for _, kind := range kinds {
		// The kernel loads the module by itself when it is asked.
		if err := s.kernel().LinkKind(kind); err != nil {
			do := s.moduleAdvice(kind)
			if kind == "vxlan" {
				do += ", or use --flannel-backend=host-gw"
			}
			f.errorf(kind+" links can't be made", "kernel "+s.read("/proc/sys/kernel/osrelease")+": "+err.Error(), "the pod network is made of such links", do)
		}
	}
	return strings.Join(kinds, ", ") + " links can be made"
}

func (s *survey) checkBridgeFilter(f *findings) string {
	if s.cfg.FlannelBackend == "none" {
		return ""
	}
	if !s.exists("/proc/sys/net/bridge/bridge-nf-call-iptables") && !s.module("br_netfilter") {
		if err := s.kernel().LoadModule("br_netfilter"); err != nil {
			f.errorf("kernel module br_netfilter is missing", err.Error(),
				"a pod could not reach another on the same node through a Service", s.moduleAdvice("br_netfilter"))
		}
	}
	return "packets on bridges are filtered"
}

func (s *survey) checkNFTables(f *findings) string {
	why := "Services and the pod network are nftables rules"
	missing, err := s.kernel().NFTables()
	if err != nil {
		// Some kernels do not load a netfilter subsystem by themselves.
		if s.kernel().LoadModule("nf_tables") == nil {
			missing, err = s.kernel().NFTables()
		}
	}
	if err != nil {
		f.errorf("nftables does not work", err.Error(), why, s.moduleAdvice("nf_tables"))
		return ""
	}
	if len(missing) > 0 {
		f.errorf("nftables lacks "+strings.Join(missing, ", "), "kernel "+s.read("/proc/sys/kernel/osrelease"), why,
			s.moduleAdvice("nft_"+missing[0]))
	}
	return "nftables has all that Services need"
}

// module tells whether a module is loaded or built in.
func (m *Machine) module(name string) bool {
	if m.exists("/sys/module/" + name) {
		return true
	}
	builtin := m.read(filepath.Join("/lib/modules", m.read("/proc/sys/kernel/osrelease"), "modules.builtin"))
	return strings.Contains(builtin, "/"+name+".ko")
}

// moduleAdvice says how this machine gets a kernel module.
func (m *Machine) moduleAdvice(name string) string {
	release := m.read("/proc/sys/kernel/osrelease")
	os := m.read("/etc/os-release")
	switch {
	case m.inContainer():
		return "run modprobe " + name + " on the machine outside of this container"
	case m.exists("/lib/modules") && !m.exists("/lib/modules/"+release):
		return "reboot: the running kernel's modules were removed by an update"
	case strings.Contains(os, "ID=ubuntu") && m.raspberryPi():
		return "apt install linux-modules-extra-raspi, or boot a kernel with module " + name
	case strings.Contains(os, "ID=ubuntu"):
		return "apt install linux-modules-extra-" + release + ", or boot a kernel with module " + name
	}
	return "run modprobe " + name + ", or boot a kernel that has it"
}

func (m *Machine) inContainer() bool {
	return m.exists("/.dockerenv") || m.exists("/run/.containerenv") || m.exists("/run/systemd/container")
}

// kernelVersion takes the first two numbers of a release such as 6.1.0-13-amd64.
func kernelVersion(release string) ([2]int, bool) {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return [2]int{}, false
	}
	major, err1 := strconv.Atoi(parts[0])
	end := strings.IndexFunc(parts[1], func(r rune) bool { return r < '0' || r > '9' })
	if end >= 0 {
		parts[1] = parts[1][:end]
	}
	minor, err2 := strconv.Atoi(parts[1])
	return [2]int{major, minor}, err1 == nil && err2 == nil
}
