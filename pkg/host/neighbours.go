package host

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// process is another process on the machine.
type process struct {
	pid  int
	name string // at most 15 letters of it
}

// processes lists those that /proc shows, apart from this one.
func (m *Machine) processes() []process {
	dir, err := os.Open(m.path("/proc"))
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // what was read until an error is of use
	var all []process
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == os.Getpid() {
			continue
		}
		if comm := m.read("/proc/" + name + "/comm"); comm != "" {
			all = append(all, process{pid, comm})
		}
	}
	slices.SortFunc(all, func(a, b process) int { return a.pid - b.pid })
	return all
}

// neighbour tells whether a process shares this network namespace and is in no
// pod: what a container has of its own does not get in the way.
func (m *Machine) neighbour(pid int) bool {
	dir := fmt.Sprintf("/proc/%d", pid)
	theirs, err1 := os.Readlink(m.path(dir + "/ns/net"))
	ours, err2 := os.Readlink(m.path("/proc/thread-self/ns/net"))
	return err1 == nil && err2 == nil && theirs == ours && !strings.Contains(m.read(dir+"/cgroup"), "kubepods")
}

// arguments are those that a process was started with.
func (m *Machine) arguments(pid int) []string {
	return strings.Split(m.read(fmt.Sprintf("/proc/%d/cmdline", pid)), "\x00")
}

func (s *survey) checkOtherKubernetes(f *findings) string {
	for _, p := range s.processes() {
		what := ""
		switch p.name {
		case "kubelet", "kubelite", "k3s-server", "k3s-agent":
			what = p.name
		case "knarr":
			// One on the same data dir is told by second-knarr; our parent is the first
			// process of a container, which started us.
			if args := s.arguments(p.pid); len(args) > 1 && args[1] == "server" && p.pid != s.holder() && p.pid != os.Getppid() && !slices.Contains(args, "--disable-agent") {
				what = "another knarr server"
			}
		}
		if what == "" || !s.neighbour(p.pid) {
			continue
		}
		const why = "two kubelets on one machine end each other's pods"
		where := fmt.Sprintf("process %d", p.pid)
		if p.name == "knarr" {
			// It may be a control plane only, by its configuration file.
			f.warnf(what+" runs here", where, why, fmt.Sprintf("stop it (kill %d), or see that it has no node (--disable-agent)", p.pid))
			continue
		}
		f.errorf(what+" runs here", where, why, "stop it and keep it from starting (k3s-killall.sh, systemctl disable --now kubelet, snap disable microk8s, k0s stop), or use another machine")
	}
	if unit, file := s.enabledKubernetes(); unit != "" && len(f.results) == 0 {
		f.warnf(unit+" starts at the next boot", file, "two kubelets on one machine end each other's pods", "systemctl disable "+unit+", or use another machine")
	}
	return "no other Kubernetes is here"
}

// enabledKubernetes finds a service of another Kubernetes that systemd or
// OpenRC starts, and the file that makes it so.
func (s *survey) enabledKubernetes() (unit, file string) {
	for _, unit := range []string{
		"k3s", "k3s-agent", "rke2-server", "rke2-agent", "k0scontroller", "k0sworker",
		"kubelet", "snap.microk8s.daemon-kubelite", "snap.microk8s.daemon-kubelet",
	} {
		for _, file := range []string{"/etc/systemd/system/multi-user.target.wants/" + unit + ".service", "/etc/runlevels/default/" + unit} {
			if _, err := os.Lstat(s.path(file)); err == nil {
				return unit, file
			}
		}
	}
	return "", ""
}

// checkFirewall looks for programs that drop what pods send.
func (s *survey) checkFirewall(f *findings) string {
	const why = "it drops packets between pods, and from pods to this node"
	var networks []string
	for _, p := range slices.Concat(s.cfg.ClusterCIDR, s.cfg.ServiceCIDR) {
		networks = append(networks, p.String())
	}
	known := false
	for _, p := range s.processes() {
		if p.name != "firewalld" || !s.neighbour(p.pid) {
			continue
		}
		known = true
		if !s.mention("/etc/firewalld/zones/*.xml", networks) {
			f.warnf("firewalld runs", fmt.Sprintf("process %d", p.pid), why, "firewall-cmd --permanent --zone=trusted --add-source="+
				strings.Join(networks, " --add-source=")+" && firewall-cmd --reload, or systemctl disable --now firewalld")
		}
	}
	if strings.Contains(strings.ToLower(s.read("/etc/ufw/ufw.conf")), "enabled=yes") {
		known = true
		// Services' addresses never show up there: they are translated before.
		var rules []string
		for _, p := range s.cfg.ClusterCIDR {
			rules = append(rules, "ufw allow from "+p.String(), "ufw route allow from "+p.String(), "ufw route allow to "+p.String())
		}
		if !s.mention("/etc/ufw/user*.rules", networks[:len(s.cfg.ClusterCIDR)]) {
			f.warnf("ufw is on", "/etc/ufw/ufw.conf", why, strings.Join(rules, " && ")+", or ufw disable")
		}
	}
	if known {
		return "the host's firewall knows the pod network"
	}
	chains, err := s.kernel().ForwardDrops()
	if err != nil {
		return "" // nftables is a check of its own
	}
	for _, chain := range chains {
		f.warnf("forwarded packets are dropped", "nftables chain "+chain, "pods reach nothing beyond their node unless one of its rules lets them",
			"add a rule that accepts from and to "+networks[0]+" (Docker: iptables -I DOCKER-USER -s "+networks[0]+" -j ACCEPT, and the same with -d)")
	}
	return "no firewall drops forwarded packets"
}

// mention tells whether the files together name each of the networks.
func (s *survey) mention(pattern string, networks []string) bool {
	files, err := filepath.Glob(s.path(pattern))
	if err != nil {
		return false
	}
	var text strings.Builder
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		text.Write(b)
	}
	for _, n := range networks {
		if !strings.Contains(text.String(), n) {
			return false
		}
	}
	return true
}

func (s *survey) checkCloudSetup(f *findings) string {
	for _, unit := range []string{"NetworkManager.service.wants/nm-cloud-setup.service", "multi-user.target.wants/nm-cloud-setup.service", "timers.target.wants/nm-cloud-setup.timer"} {
		file := "/etc/systemd/system/" + unit
		if _, err := os.Lstat(s.path(file)); err == nil {
			f.warnf("nm-cloud-setup is enabled", file, "its routing rules take packets away from pods", "systemctl disable nm-cloud-setup.service nm-cloud-setup.timer, and reboot")
			break
		}
	}
	return "nm-cloud-setup is not enabled"
}
