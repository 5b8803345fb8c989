package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// preflightCase is a machine on which one thing is wrong.
type preflightCase struct {
	files  map[string]string
	kernel fakeKernel
	now    func() time.Time
	cfg    func(*testing.T, *Config)
	want   string // in the line
	warn   bool   // else it stops the start
	// locked has process 4242 hold the data dir's lock.
	locked bool
	// several is set where one cause is told by more than one check.
	several bool
}

func (c preflightCase) preflight(t *testing.T) Report {
	t.Helper()
	m, cfg := fakeMachine(t, c.files), fitConfig(t)
	m.Kernel, m.Now = c.kernel, c.now
	if c.cfg != nil {
		c.cfg(t, &cfg)
	}
	if c.locked {
		path := filepath.Join(cfg.DataDir, "lock")
		if err := os.WriteFile(path, []byte("4242\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("1: POSIX  ADVISORY  WRITE 7 00:10:%[1]d 0 EOF\n2: FLOCK  ADVISORY  WRITE 4242 00:10:%[1]d 0 EOF\n", st.Ino)
		if err := os.WriteFile(m.path("/proc/locks"), []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return m.Preflight(cfg)
}

// preflightCases show each result that a check can have.
func preflightCases() map[string]preflightCase {
	all := map[string]preflightCase{}
	for _, group := range []map[string]preflightCase{kernelCases(), cgroupCases(), placeCases(), networkCases(), neighbourCases()} {
		for name, c := range group {
			all[name] = c
		}
	}
	return all
}

var errBroken = errors.New("operation not supported")

func kernelCases() map[string]preflightCase {
	nothing := fakeKernel{nftErr: errBroken, moduleErr: errBroken}
	noLink := func(kind string) fakeKernel { return fakeKernel{noLink: map[string]error{kind: errBroken}} }
	return map[string]preflightCase{
		"not root":               {files: map[string]string{"/proc/self/status": status("1000", "0")}, want: "run it with sudo"},
		"plain container":        {files: map[string]string{"/proc/self/status": status("0", "00000000a80425fb")}, want: "of root's rights is missing: CAP_SYS_ADMIN, CAP_NET_ADMIN"},
		"OOM scores stay":        {files: map[string]string{"/proc/self/status": status("0", "000001fffeffffff")}, want: "CAP_SYS_RESOURCE is missing", warn: true},
		"user namespace":         {files: map[string]string{"/proc/self/uid_map": "0 100000 65536\n"}, want: "root here is not the machine's root", warn: true},
		"old kernel":             {files: map[string]string{"/proc/sys/kernel/osrelease": "5.10.0-28-amd64\n"}, want: "kernel 5.10.0-28-amd64 is too old"},
		"no namespaces":          {files: map[string]string{"/proc/self/ns/pid": ""}, want: "no pid namespaces"},
		"no seccomp":             {files: map[string]string{"/proc/self/status": "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n"}, want: "CONFIG_SECCOMP_FILTER", warn: true},
		"no CPU quota":           {files: with(hybrid(""), map[string]string{"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": ""}), want: "CONFIG_CFS_BANDWIDTH", warn: true},
		"no nftables":            {kernel: nothing, want: "nftables does not work"},
		"no nftables, container": {files: map[string]string{"/.dockerenv": " "}, kernel: nothing, want: "run modprobe nf_tables on the machine outside"},
		"half of nftables":       {kernel: fakeKernel{nft: []string{"fib"}}, want: "nftables lacks fib"},
		"no vxlan on ubuntu": {files: map[string]string{"/etc/os-release": "ID=ubuntu\n"}, kernel: noLink("vxlan"),
			want: "apt install linux-modules-extra-6.1.0-13-amd64, or boot a kernel with module vxlan, or use --flannel-backend=host-gw"},
		"kernel updated, not rebooted": {files: map[string]string{"/lib/modules/6.9.0/modules.dep": "x"}, kernel: noLink("veth"), want: "reboot: the running kernel's modules were removed"},
		"no br_netfilter":              {files: map[string]string{"/proc/sys/net/bridge/bridge-nf-call-iptables": ""}, kernel: fakeKernel{moduleErr: errBroken}, want: "br_netfilter is missing"},
		"no kmsg":                      {files: map[string]string{"/dev/kmsg": ""}, want: "--device=/dev/kmsg"},
		"read-only sysctls": {files: map[string]string{"/proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" +
			"25 24 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n26 24 0:24 / /proc/sys ro - proc proc rw\n"}, want: "/proc/sys is read-only"},
	}
}

func cgroupCases() map[string]preflightCase {
	pi := map[string]string{
		"/proc/device-tree/model":           "Raspberry Pi 5 Model B Rev 1.0\x00",
		"/boot/firmware/cmdline.txt":        "console=tty1\n",
		"/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n",
		"/proc/cgroups":                     "cpuset\t0\t1\t1\ncpu\t0\t1\t1\nmemory\t0\t1\t0\npids\t0\t1\t1\n",
	}
	oldPi := with(pi, map[string]string{"/boot/firmware/cmdline.txt": "", "/boot/cmdline.txt": "console=tty1\n"})
	swap := map[string]string{"/proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 1000 0 -2\n"}
	return map[string]preflightCase{
		"raspberry pi":         {files: pi, want: `add "cgroup_memory=1 cgroup_enable=memory" to the one line in /boot/firmware/cmdline.txt and reboot`},
		"raspberry pi, before": {files: oldPi, want: `add "cgroup_memory=1 cgroup_enable=memory" to the one line in /boot/cmdline.txt and reboot`},
		"memory off, v1":       {files: hybrid("memory"), want: `add "cgroup_memory=1 cgroup_enable=memory"`},
		"pids off, v1":         {files: hybrid("pids"), want: "remove cgroup_disable=pids"},
		"no cgroups":           {files: map[string]string{"/proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"}, want: "rc-service cgroups start"},
		"cgroups read-only": {files: map[string]string{"/proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" +
			"25 24 0:23 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"}, want: "mounted read-only"},
		"other driver before": {files: map[string]string{"/sys/fs/cgroup/kubepods/besteffort/pod1234/cgroup.procs": "7\n"},
			want: "pods of before have groups of cgroupfs's, such as /sys/fs/cgroup/kubepods/besteffort/pod1234", warn: true},
		"service before": {files: map[string]string{"/proc/self/cgroup": "0::/user.slice/session-3.scope\n", "/sys/fs/cgroup/kubepods.slice/kubepods-pod1234.slice/cgroup.procs": "7\n"},
			want: "start it as the systemd service that it was before", warn: true},
		"swap, v1":      {files: with(hybrid(""), swap), want: "swapoff -a", warn: true},
		"little memory": {files: map[string]string{"/proc/meminfo": "MemTotal: 400000 kB\nMemAvailable: 390000 kB\n"}, want: "there is only 390 MiB of memory", warn: true},
		"memory is used up": {files: map[string]string{"/proc/meminfo": "MemTotal: 2000000 kB\nMemAvailable: 200000 kB\n"},
			want: "only 195 MiB of 1.9 GiB are free", warn: true},
		"memory limit above": {files: map[string]string{"/sys/fs/cgroup/system.slice/memory.max": "268435456\n", "/sys/fs/cgroup/system.slice/knarr.service/memory.max": "max\n"},
			want: "there is only 256 MiB of memory (/sys/fs/cgroup/system.slice/memory.max)", warn: true},
		"memory limit, v1": {files: with(hybrid(""), map[string]string{"/sys/fs/cgroup/memory/elsewhere/memory.limit_in_bytes": "268435456\n"}),
			want: "(/sys/fs/cgroup/memory/elsewhere/memory.limit_in_bytes)", warn: true},
	}
}

// placeCases are about the data dir, its file system and its files.
func placeCases() map[string]preflightCase {
	on := func(fstype string) map[string]string {
		return map[string]string{"/proc/self/mountinfo": "22 1 8:1 / / rw - " + fstype + " none rw\n25 24 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"}
	}
	put := func(name string, mode os.FileMode) func(*testing.T, *Config) {
		return func(t *testing.T, c *Config) {
			path := filepath.Join(c.DataDir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.WriteFile(path, []byte("garbage"), 0o600), os.Chmod(path, mode)); err != nil {
				t.Fatal(err)
			}
		}
	}
	built := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	early := func() time.Time { return built.AddDate(-6, 0, 0) }
	return map[string]preflightCase{
		"long run dir": {cfg: func(_ *testing.T, c *Config) { c.RunDir = "/run/" + strings.Repeat("knarr", 20) }, want: "choose one of at most 70"},
		"noexec": {files: map[string]string{"/proc/self/mountinfo": "22 1 8:1 / / rw,noexec - ext4 /dev/sda1 rw\n" +
			"25 24 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"}, want: "mounted noexec"},
		"file as data dir": {cfg: func(t *testing.T, c *Config) {
			put("file", 0o600)(t, c)
			c.DataDir = filepath.Join(c.DataDir, "file")
		}, want: "the data dir can't be written", several: true},
		"read-only root": {cfg: func(t *testing.T, c *Config) {
			put("file", 0o600)(t, c) // mounts are for tests/lifecycle
			c.Kubeconfig = filepath.Join(c.DataDir, "file", "kubeconfig.yaml")
			c.Outside = []string{c.Kubeconfig, filepath.Join(c.DataDir, "fine")}
		}, want: "or choose another --write-kubeconfig"},
		"no overlay": {kernel: fakeKernel{overlay: errBroken}, cfg: func(_ *testing.T, c *Config) { c.SnapshotterGiven = true },
			want: "or --snapshotter=native"},
		"nested overlay": {files: on("overlay"), kernel: fakeKernel{overlay: errBroken}, want: "the snapshotter native stands in", warn: true, several: true},
		"NFS":            {files: on("nfs4"), want: "the database lies on a network", warn: true},
		"sshfs":          {files: on("fuse.sshfs"), kernel: fakeKernel{database: errBroken}, want: "SQLite does not work in the data dir"},
		"tmpfs":          {files: on("tmpfs"), want: "the cluster is gone after a reboot", warn: true},
		"layer":          {files: on("overlay"), want: "docker run -v knarr:", warn: true},
		"full disk":      {kernel: fakeKernel{space: &Space{Size: 100 << 30, Free: 4 << 30}}, want: "only 4.0 GiB of 100 GiB are free", warn: true},
		"no inodes":      {kernel: fakeKernel{space: &Space{Size: 100 << 30, Free: 50 << 30, Inodes: 1000, FreeInodes: 3}}, want: "only 3 of 1000 inodes are free", warn: true},
		"clock reset":    {now: early, want: "certificates made now may have expired"},
		"clock reset, later": {now: early, cfg: put("server/tls/server-ca.key", 0o600),
			want: "certificates of before are not valid yet", warn: true},
		"open data dir": {cfg: func(t *testing.T, c *Config) {
			if err := os.Chmod(c.DataDir, 0o775); err != nil {
				t.Fatal(err)
			}
		}, want: "others may write to the data dir", warn: true},
		"open configuration": {cfg: put("config.yaml", 0o666), want: "others may write the configuration", warn: true},
		"open kubeconfig":    {cfg: put("kubeconfig.yaml", 0o644), want: "chmod 600 ", warn: true},
		"open key":           {cfg: put("server/tls/server-ca.key", 0o640), want: "others may read a key", warn: true},
		"open store":         {cfg: put("server/db/state.db", 0o644), want: "others may read the store", warn: true},
		"newer store": {cfg: func(t *testing.T, c *Config) {
			put("server/x", 0o600)(t, c)
			if err := RecordStoreVersion(c.ServerDir, "v1.99.0+knarr1"); err != nil {
				t.Fatal(err)
			}
		}, want: "install v1.99.0+knarr1 or newer"},
		"garbled version": {cfg: put("server/version", 0o600), want: "write there the version that last ran, such as v1.36.4+knarr1"},
	}
}

func networkCases() map[string]preflightCase {
	prefix := netip.MustParsePrefix
	vpn := &Network{
		Addrs: []Addr{{Prefix: prefix("192.0.2.7/24"), Link: "eth0", Global: true}},
		Routes: []Route{
			{Dst: prefix("0.0.0.0/0"), Link: "eth0"},
			{Dst: prefix("10.0.0.0/8"), Link: "tun0"},
		},
	}
	resolv := func(text string) map[string]string { return map[string]string{"/etc/resolv.conf": text} }
	return map[string]preflightCase{
		"overlapping plan":    {cfg: func(_ *testing.T, c *Config) { c.ServiceCIDR[0] = prefix("10.42.128.0/20") }, want: "10.42.128.0/20 overlaps 10.42.0.0/16"},
		"host bits":           {cfg: func(_ *testing.T, c *Config) { c.ClusterCIDR[0] = prefix("10.42.0.1/16") }, want: "write 10.42.0.0/16"},
		"tiny pod network":    {cfg: func(_ *testing.T, c *Config) { c.ClusterCIDR[0] = prefix("10.42.0.0/26") }, want: "give at least a /24"},
		"huge service net":    {cfg: func(_ *testing.T, c *Config) { c.ServiceCIDR[0] = prefix("11.0.0.0/8") }, want: "give a /12 to /28"},
		"node in pod network": {cfg: func(_ *testing.T, c *Config) { c.NodeIPs = []netip.Addr{netip.MustParseAddr("10.42.0.9")} }, want: "10.42.0.9 lies in 10.42.0.0/16", several: true},
		"foreign node ip":     {cfg: func(_ *testing.T, c *Config) { c.NodeIPs = []netip.Addr{netip.MustParseAddr("192.0.2.99")} }, want: "192.0.2.99 is no address of this machine"},
		"no default route":    {kernel: fakeKernel{network: &Network{}}, want: "name one with --node-ip"},
		"vpn":                 {kernel: fakeKernel{network: vpn}, want: "10.42.0.0/16 overlaps route 10.0.0.0/8 on tun0", warn: true, several: true},
		"damaged record": {cfg: func(t *testing.T, c *Config) {
			if err := os.WriteFile(filepath.Join(c.DataDir, "host-changes.json"), []byte("[{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, want: "move it away to go on"},
		"no resolv.conf": {cfg: func(_ *testing.T, c *Config) { c.ResolvConf = "" }, want: "there is no resolv.conf", warn: true},
		"only a stub":    {files: resolv("nameserver 127.0.0.53\n"), want: "resolv.conf names only loopback (127.0.0.53)", warn: true},
		"no server":      {files: resolv("search example.net\n"), want: "resolv.conf names no server", warn: true},
		"loop":           {files: resolv("nameserver 10.43.0.10\n"), want: "cluster DNS would ask itself", warn: true},
	}
}

// neighbourCases are about what else runs on the machine.
func neighbourCases() map[string]preflightCase {
	taken := func(ports ...string) fakeKernel {
		k := fakeKernel{taken: map[string]error{}}
		for _, p := range ports {
			k.taken[p] = unix.EADDRINUSE
		}
		return k
	}
	socket := func(file, address, state string) map[string]string {
		return map[string]string{"/proc/thread-self/net/" + file: "  sl  local_address rem_address   st\n" +
			fmt.Sprintf("   0: %s 00000000:0000 %s 00000000:00000000 00:00000000 00000000     0        0 4242 1 0\n", address, state)}
	}
	nginx := with(other(812, "nginx"), map[string]string{"/proc/812/fd/6": "-> socket:[4242]"})
	dnsmasq := with(other(99, "dnsmasq"), map[string]string{"/proc/99/fd/4": "-> socket:[4242]"})
	v6 := "00000000000000000000000000000000"
	ufw := map[string]string{"/etc/ufw/ufw.conf": "# on?\nENABLED=yes\n"}
	wants := "/etc/systemd/system/multi-user.target.wants/"
	return map[string]preflightCase{
		"API port taken": {files: with(nginx, socket("tcp6", v6+":192B", "0A")), kernel: taken("port 6443/tcp"),
			want: "port 6443/tcp is taken (by nginx, process 812): the API server tries again until it is free; stop that, or choose another --https-listen-port", warn: true},
		"API port taken elsewhere": {kernel: taken("port 6443/tcp"), want: "a process that can't be seen from here", warn: true},
		"kubelet's port taken":     {files: with(nginx, socket("tcp", "00000000:280A", "0A")), kernel: taken("port 10250/tcp"), want: "the kubelet can't do without it"},
		"another name server": {files: with(dnsmasq, socket("udp", "00000000:0035", "07")), kernel: taken("port 10.43.0.10:53/udp"),
			want: "port 10.43.0.10:53/udp is taken (by dnsmasq, process 99)"},
		"forbidden port": {kernel: fakeKernel{taken: map[string]error{"port 6443/tcp": unix.EACCES}}, want: "can't be listened on (permission denied)", warn: true},

		"second Knarr, same data": {locked: true, files: with(other(4242, "knarr", "server"), map[string]string{"/proc/4242/fd/6": "-> socket:[4242]"}, socket("tcp6", v6+":192B", "0A")),
			kernel: taken("port 6443/tcp"), want: "process 4242): two would spoil each other's state; stop it (systemctl stop knarr, or kill 4242)"},

		"kubelet":              {files: other(70, "kubelet"), want: "kubelet runs here (process 70)"},
		"k3s":                  {files: other(70, "k3s-server"), want: "k3s-killall.sh"},
		"microk8s":             {files: other(70, "kubelite"), want: "snap disable microk8s"},
		"second Knarr":         {files: other(70, "knarr", "server", "--data-dir=/elsewhere"), want: "another knarr server runs here", warn: true},
		"k3s at the next boot": {files: map[string]string{wants + "k3s.service": "-> /etc/systemd/system/k3s.service"}, want: "systemctl disable k3s", warn: true},
		"kubelet by OpenRC":    {files: map[string]string{"/etc/runlevels/default/kubelet": "-> /etc/init.d/kubelet"}, want: "kubelet starts at the next boot", warn: true},

		"firewalld": {files: other(70, "firewalld"), want: "--add-source=10.42.0.0/16 --add-source=10.43.0.0/16 && firewall-cmd --reload", warn: true},
		"ufw":       {files: ufw, want: "ufw route allow from 10.42.0.0/16", warn: true},
		"docker":    {kernel: fakeKernel{drops: []string{"ip filter FORWARD"}}, want: "nftables chain ip filter FORWARD", warn: true},
		"nm-cloud-setup": {files: map[string]string{"/etc/systemd/system/timers.target.wants/nm-cloud-setup.timer": "-> /usr/lib/systemd/system/nm-cloud-setup.timer"},
			want: "systemctl disable nm-cloud-setup.service", warn: true},
	}
}

// What looks like the cases above, and is fine.
func TestHarmlessNeighboursAreNotToldOf(t *testing.T) {
	kernelSocket := "   0: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 1 0\n"
	stored := "   0: 0A002B0A:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 1 0\n"
	inPod := other(70, "kubelet")
	inPod["/proc/70/cgroup"] = "0::/kubepods/besteffort/pod1/abc\n"
	inContainer := other(70, "k3s-server")
	inContainer["/proc/70/ns/net"] = "-> net:[2]"
	for name, c := range map[string]preflightCase{
		"kubelet in a pod":      {files: inPod},
		"k3s in a container":    {files: inContainer},
		"knarr's own tools":     {files: other(70, "knarr", "kubectl", "get", "pods")},
		"control plane only":    {files: other(70, "knarr", "server", "--disable-agent")},
		"firewalld that knows":  {files: with(other(70, "firewalld"), map[string]string{"/etc/firewalld/zones/trusted.xml": `<source address="10.42.0.0/16"/><source address="10.43.0.0/16"/>`})},
		"ufw that knows":        {files: map[string]string{"/etc/ufw/ufw.conf": "ENABLED=yes\n", "/etc/ufw/user.rules": "-A ufw-user-forward -s 10.42.0.0/16 -j ACCEPT\n"}},
		"ufw that is off":       {files: map[string]string{"/etc/ufw/ufw.conf": "ENABLED=no\n"}},
		"swap under v2":         {files: map[string]string{"/proc/swaps": "Filename\n/dev/zram0 partition 1000 0 100\n"}},
		"group without a pod":   {files: map[string]string{"/sys/fs/cgroup/kubepods/besteffort/cgroup.procs": " "}},
		"flannel's own vxlan":   {files: map[string]string{"/proc/thread-self/net/udp": kernelSocket}, kernel: fakeKernel{taken: map[string]error{"port 8472/udp": unix.EADDRINUSE}}},
		"DNS' sockets, stored":  {files: map[string]string{"/proc/thread-self/net/udp": stored, "/proc/1/fd/9": "-> socket:[4242]"}, kernel: fakeKernel{taken: map[string]error{"port 10.43.0.10:53/udp": unix.EADDRINUSE}}},
		"no list of chains":     {kernel: fakeKernel{dropsErr: errBroken}},
		"file system of btrfs'": {kernel: fakeKernel{space: &Space{Size: 100 << 30, Free: 50 << 30}}},
	} {
		if r := c.preflight(t); r.Level != OK {
			t.Errorf("%s: %v", name, wrong(r))
		}
	}
}
