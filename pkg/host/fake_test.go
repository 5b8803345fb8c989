package host

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeMachine is a folder that looks like the system's folders of a healthy
// Debian machine with systemd and cgroup v2, on which Knarr runs as a service.
// Changes replace files; an empty text removes one, and an arrow makes a link.
func fakeMachine(t *testing.T, changes ...map[string]string) *Machine {
	t.Helper()
	files := map[string]string{
		"/proc/sys/kernel/hostname":                    "node-a\n",
		"/proc/sys/kernel/osrelease":                   "6.1.0-13-amd64\n",
		"/proc/sys/net/bridge/bridge-nf-call-iptables": "1\n",
		"/proc/filesystems":                            "nodev\tsysfs\nnodev\toverlay\n\text4\n",
		"/proc/self/status":                            status("0", "000001ffffffffff"),
		"/proc/self/uid_map":                           "         0          0 4294967295\n",
		"/proc/self/oom_score_adj":                     "-100\n",
		"/proc/self/cgroup":                            "0::/system.slice/knarr.service\n",
		"/proc/1/comm":                                 "systemd\n",
		"/proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\n" +
			"cpuset\t0\t1\t1\ncpu\t0\t1\t1\ncpuacct\t0\t1\t1\nmemory\t0\t1\t1\npids\t0\t1\t1\n",
		"/proc/self/mountinfo": "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n" +
			"23 22 0:21 / /proc rw,nosuid shared:2 - proc proc rw\n" +
			"24 22 0:22 / /sys rw shared:3 - sysfs sysfs rw\n" +
			"25 24 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
		"/sys/fs/cgroup/cgroup.controllers":     "cpuset cpu io memory hugetlb pids rdma misc\n",
		"/sys/fs/cgroup/cgroup.subtree_control": "memory pids\n",
		"/etc/resolv.conf":                      "nameserver 192.0.2.53\nsearch example.net\n",
		"/dev/kmsg":                             " ",
		"/proc/meminfo":                         "MemTotal:        2000000 kB\nMemAvailable:    1500000 kB\n",
		"/proc/thread-self/ns/net":              "-> net:[1]",
		"/proc/self/ns/net":                     "-> net:[1]",
	}
	for _, kind := range []string{"cgroup", "ipc", "mnt", "pid", "uts"} {
		files["/proc/self/ns/"+kind] = " "
	}
	for _, c := range changes {
		maps.Copy(files, c)
	}
	m := &Machine{Root: t.TempDir(), Kernel: fakeKernel{}}
	for path, text := range files {
		if text == "" {
			continue
		}
		path = filepath.Join(m.Root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// status is /proc/self/status of a user with capabilities.
func status(uid, capabilities string) string {
	return fmt.Sprintf("Name:\tknarr\nUid:\t%[1]s\t%[1]s\t%[1]s\t%[1]s\nCapEff:\t%[2]s\nSeccomp:\t0\n", uid, capabilities)
}

// other is a process beside Knarr, in its network namespace.
func other(pid int, name string, arguments ...string) map[string]string {
	dir := fmt.Sprintf("/proc/%d/", pid)
	return map[string]string{
		dir + "comm": name + "\n", dir + "ns/net": "-> net:[1]", dir + "cgroup": "0::/system.slice/" + name + ".service\n",
		dir + "cmdline": strings.Join(append([]string{name}, arguments...), "\x00") + "\x00",
	}
}

// with joins changes.
func with(changes ...map[string]string) map[string]string {
	all := map[string]string{}
	for _, c := range changes {
		maps.Copy(all, c)
	}
	return all
}

// fakeKernel can do everything, apart from what its fields say.
type fakeKernel struct {
	noLink    map[string]error
	nft       []string
	nftErr    error
	moduleErr error
	overlay   error
	network   *Network
	database  error
	space     *Space
	taken     map[string]error // by what a Listener says of itself
	drops     []string
	dropsErr  error
}

var _ Kernel = fakeKernel{}

func (k fakeKernel) LinkKind(kind string) error   { return k.noLink[kind] }
func (k fakeKernel) NFTables() ([]string, error)  { return k.nft, k.nftErr }
func (k fakeKernel) LoadModule(name string) error { return k.moduleErr }
func (k fakeKernel) Overlay(string) error         { return k.overlay }
func (k fakeKernel) Database(string) error        { return k.database }

func (k fakeKernel) ForwardDrops() ([]string, error) { return k.drops, k.dropsErr }

func (k fakeKernel) Bind(network string, addr netip.AddrPort) error {
	return k.taken[Listener{Network: network, Addr: addr}.String()]
}

func (k fakeKernel) Space(string) (Space, error) {
	if k.space != nil {
		return *k.space, nil
	}
	return Space{Size: 100 << 30, Free: 50 << 30, Inodes: 1000, FreeInodes: 900}, nil
}

func (k fakeKernel) Network() (Network, error) {
	if k.network != nil {
		return *k.network, nil
	}
	return Network{
		Addrs: []Addr{
			{Prefix: netip.MustParsePrefix("127.0.0.1/8"), Link: "lo"},
			{Prefix: netip.MustParsePrefix("192.0.2.7/24"), Link: "eth0", Global: true},
		},
		Routes: []Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Link: "eth0", Gateway: netip.MustParseAddr("192.0.2.1"), MTU: 1500, Metric: 100},
			{Dst: netip.MustParsePrefix("192.0.2.0/24"), Link: "eth0", MTU: 1500},
		},
	}, nil
}

// hybrid is this project's own kind of test machine; without is a controller
// that its command line disabled.
func hybrid(without string) map[string]string {
	mounts := "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n24 22 0:22 / /sys rw - sysfs sysfs rw\n" +
		"25 24 0:23 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
	kernel := "#subsys_name\thierarchy\tnum_cgroups\tenabled\n"
	for _, c := range []string{"cpu", "cpuacct", "cpuset", "memory", "pids"} {
		if c == without {
			kernel += c + "\t0\t1\t0\n"
			continue
		}
		kernel += c + "\t3\t1\t1\n"
		mounts += "30 25 0:30 / /sys/fs/cgroup/" + c + " rw - cgroup cgroup rw," + c + "\n"
	}
	mounts += "40 25 0:40 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n" +
		"41 25 0:41 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	return map[string]string{
		"/proc/self/mountinfo":                mounts,
		"/proc/cgroups":                       kernel,
		"/proc/self/cgroup":                   "5:name=systemd:/system.slice/knarr.service\n4:memory:/elsewhere\n0::/\n",
		"/sys/fs/cgroup/cgroup.controllers":   "",
		"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
	}
}
