package host

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func fitConfig(t testing.TB) Config {
	return Config{
		DataDir: t.TempDir(), RunDir: "/run/knarr",
		ClusterCIDR: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		ServiceCIDR: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
		Snapshotter: "overlayfs", FlannelBackend: "vxlan", KubeVersion: "v1.36.4+knarr1",
	}
}

func TestFitMachinesHaveNoProblems(t *testing.T) {
	for name, changes := range map[string]map[string]string{"v2": nil, "hybrid": hybrid("")} {
		if ps := fakeMachine(t, changes).Preflight(fitConfig(t)); len(ps) > 0 {
			t.Errorf("%s: %v", name, ps)
		}
	}
}

func TestThisMachineIsFit(t *testing.T) {
	needRoot(t)
	if err := Preflight(fitConfig(t)).Err(); err != nil {
		t.Fatal(err)
	}
}

// Every problem is told with what helps, in one line, and stops the start or not.
func TestPreflightTellsWhatToDo(t *testing.T) {
	pi := map[string]string{
		"/proc/device-tree/model":           "Raspberry Pi 5 Model B Rev 1.0\x00",
		"/boot/firmware/cmdline.txt":        "console=tty1\n",
		"/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n",
		"/proc/cgroups":                     "cpuset\t0\t1\t1\ncpu\t0\t1\t1\nmemory\t0\t1\t0\npids\t0\t1\t1\n",
	}
	broken := errors.New("operation not supported")
	vpn := &Network{
		Addrs: []Addr{{Prefix: netip.MustParsePrefix("192.0.2.7/24"), Link: "eth0", Global: true}},
		Routes: []Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Link: "eth0"},
			{Dst: netip.MustParsePrefix("10.0.0.0/8"), Link: "tun0"},
		},
	}
	for name, c := range map[string]struct {
		files  map[string]string
		kernel fakeKernel
		cfg    func(*Config)
		want   string // in the line
		warn   bool
	}{
		"not root":               {files: map[string]string{"/proc/self/status": "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0\n"}, want: "run it with sudo"},
		"plain container":        {files: map[string]string{"/proc/self/status": "Uid:\t0\t0\t0\t0\nCapEff:\t00000000a80425fb\n"}, want: "CAP_SYS_ADMIN is missing"},
		"raspberry pi":           {files: pi, want: `add "cgroup_memory=1 cgroup_enable=memory" to the one line in /boot/firmware/cmdline.txt and reboot`},
		"memory off, v1":         {files: hybrid("memory"), want: `add "cgroup_memory=1 cgroup_enable=memory"`},
		"pids off, v1":           {files: hybrid("pids"), want: "remove cgroup_disable=pids"},
		"no cgroups":             {files: map[string]string{"/proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"}, want: "rc-service cgroups start"},
		"old kernel":             {files: map[string]string{"/proc/sys/kernel/osrelease": "5.10.0-28-amd64\n"}, want: "kernel 5.10.0-28-amd64 is too old"},
		"no nftables":            {kernel: fakeKernel{nftErr: broken, moduleErr: broken}, want: "nftables does not work"},
		"no nftables, container": {files: map[string]string{"/.dockerenv": " "}, kernel: fakeKernel{nftErr: broken, moduleErr: broken}, want: "run modprobe nf_tables on the machine outside"},
		"half of nftables":       {kernel: fakeKernel{nft: []string{"fib"}}, want: "nftables lacks fib"},
		"no vxlan on ubuntu": {files: map[string]string{"/etc/os-release": "ID=ubuntu\n"}, kernel: fakeKernel{noLink: map[string]error{"vxlan": broken}},
			want: "apt install linux-modules-extra-6.1.0-13-amd64, or boot a kernel with module vxlan, or use --flannel-backend=host-gw"},
		"kernel updated, not rebooted": {files: map[string]string{"/lib/modules/6.9.0/modules.dep": "x"}, kernel: fakeKernel{noLink: map[string]error{"veth": broken}}, want: "reboot: the running kernel's modules were removed"},
		"no br_netfilter":              {files: map[string]string{"/proc/sys/net/bridge/bridge-nf-call-iptables": ""}, kernel: fakeKernel{moduleErr: broken}, want: "br_netfilter is missing"},
		"no overlay":                   {kernel: fakeKernel{overlay: broken}, want: "--snapshotter=native"},
		"noexec": {files: map[string]string{"/proc/self/mountinfo": "22 1 8:1 / / rw,noexec - ext4 /dev/sda1 rw\n" +
			"25 24 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"}, want: "mounted noexec"},
		"no kmsg":             {files: map[string]string{"/dev/kmsg": ""}, want: "--device=/dev/kmsg"},
		"long run dir":        {cfg: func(c *Config) { c.RunDir = "/run/" + strings.Repeat("knarr", 20) }, want: "choose one of at most 70"},
		"overlapping plan":    {cfg: func(c *Config) { c.ServiceCIDR[0] = netip.MustParsePrefix("10.42.128.0/20") }, want: "10.42.128.0/20 overlaps 10.42.0.0/16"},
		"host bits":           {cfg: func(c *Config) { c.ClusterCIDR[0] = netip.MustParsePrefix("10.42.0.1/16") }, want: "write 10.42.0.0/16"},
		"tiny pod network":    {cfg: func(c *Config) { c.ClusterCIDR[0] = netip.MustParsePrefix("10.42.0.0/26") }, want: "give at least a /24"},
		"huge service net":    {cfg: func(c *Config) { c.ServiceCIDR[0] = netip.MustParsePrefix("11.0.0.0/8") }, want: "give a /12 to /28"},
		"node in pod network": {cfg: func(c *Config) { c.NodeIPs = []netip.Addr{netip.MustParseAddr("10.42.0.9")} }, want: "10.42.0.9 lies in 10.42.0.0/16"},
		"foreign node ip":     {cfg: func(c *Config) { c.NodeIPs = []netip.Addr{netip.MustParseAddr("192.0.2.99")} }, want: "192.0.2.99 is no address of this machine"},
		"no default route":    {kernel: fakeKernel{network: &Network{}}, want: "name one with --node-ip"},
		"vpn":                 {kernel: fakeKernel{network: vpn}, want: "10.42.0.0/16 overlaps route 10.0.0.0/8 on tun0", warn: true},
	} {
		t.Run(name, func(t *testing.T) {
			m, cfg := fakeMachine(t, c.files), fitConfig(t)
			m.Kernel = c.kernel
			if c.cfg != nil {
				c.cfg(&cfg)
			}
			ps := m.Preflight(cfg)
			if (ps.Err() == nil) != c.warn {
				t.Errorf("stops the start with: %v", ps.Err())
			}
			for _, p := range ps {
				if line := p.Error(); strings.Contains(line, c.want) && !strings.Contains(line, "\n") {
					return
				}
			}
			t.Errorf("no line has %q in:\n%v", c.want, ps)
		})
	}
}

func TestControlPlaneAloneNeedsNoNode(t *testing.T) {
	m := fakeMachine(t, map[string]string{"/proc/self/status": "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0\n", "/sys/fs/cgroup/cgroup.controllers": ""})
	cfg := fitConfig(t)
	cfg.DisableAgent = true
	if ps := m.Preflight(cfg); len(ps) > 0 {
		t.Error(ps)
	}
}

func TestSecondStartDoesNotComplainOfItsOwnNetwork(t *testing.T) {
	m, cfg := fakeMachine(t), fitConfig(t)
	m.Kernel = fakeKernel{network: &Network{
		Addrs: []Addr{
			{Prefix: netip.MustParsePrefix("192.0.2.7/24"), Link: "eth0", Global: true},
			{Prefix: netip.MustParsePrefix("10.42.0.1/24"), Link: "cni0", Global: true},
			{Prefix: netip.MustParsePrefix("10.43.0.10/32"), Link: "lo", Global: true},
		},
		Routes: []Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Link: "eth0"},
			{Dst: netip.MustParsePrefix("10.42.0.0/24"), Link: "cni0"},
			{Dst: netip.MustParsePrefix("10.42.1.0/24"), Link: "flannel.1"},
		},
	}}
	ledger, err := m.OpenLedger(cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := ledger.Record(Change{Kind: KindAddress, Name: "10.43.0.10/32 lo"}); err != nil {
		t.Fatal(err)
	}
	if ps := m.Preflight(cfg); len(ps) > 0 {
		t.Error(ps)
	}
}

func TestOlderBinaryRefusesANewerStore(t *testing.T) {
	dir := t.TempDir()
	if err := CheckStoreVersion(dir, "v1.36.4+knarr1"); err != nil {
		t.Fatal("a new store was refused:", err)
	}
	if err := RecordStoreVersion(dir, "v1.37.0+knarr1"); err != nil {
		t.Fatal(err)
	}
	if err := CheckStoreVersion(dir, "v1.37.9+knarr1"); err != nil {
		t.Error("another patch of the same minor version was refused:", err)
	}
	if err := CheckStoreVersion(dir, "v1.38.0+knarr1"); err != nil {
		t.Error("an upgrade was refused:", err)
	}
	err := CheckStoreVersion(dir, "v1.36.4+knarr1")
	if err == nil || !strings.Contains(err.Error(), "install v1.37.0+knarr1 or newer") {
		t.Error("downgrade:", err)
	}
	cfg := fitConfig(t)
	cfg.ServerDir = dir
	if fakeMachine(t).Preflight(cfg).Err() == nil {
		t.Error("preflight lets the downgrade pass")
	}
	if err := os.WriteFile(filepath.Join(dir, "version"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if CheckStoreVersion(dir, "v1.36.4") == nil {
		t.Error("a damaged record was taken for a good one")
	}
}
