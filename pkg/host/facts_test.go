package host

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestServiceOfSystemdUsesSystemdsCgroupDriver(t *testing.T) {
	for name, c := range map[string]struct {
		changes      map[string]string
		unit, driver string
	}{
		"service":             {nil, "knarr.service", DriverSystemd},
		"leaf of a service":   {map[string]string{"/proc/self/cgroup": "0::/system.slice/knarr.service/init\n"}, "knarr.service", DriverSystemd},
		"hybrid service":      {hybrid(""), "knarr.service", DriverSystemd},
		"login session":       {map[string]string{"/proc/self/cgroup": "0::/user.slice/user-0.slice/session-3.scope\n"}, "", DriverCgroupfs},
		"user's own systemd":  {map[string]string{"/proc/self/cgroup": "0::/user.slice/user-1000.slice/user@1000.service/app.slice\n"}, "", DriverCgroupfs},
		"openrc":              {map[string]string{"/proc/1/comm": "init\n", "/proc/self/cgroup": "0::/openrc/knarr.service\n"}, "", DriverCgroupfs},
		"container as root /": {map[string]string{"/proc/self/cgroup": "0::/\n"}, "", DriverCgroupfs},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := fakeMachine(t, c.changes).Detect()
			if err != nil {
				t.Fatal(err)
			}
			if f.Unit != c.unit || f.CgroupDriver != c.driver {
				t.Errorf("unit %q, driver %q", f.Unit, f.CgroupDriver)
			}
		})
	}
}

func TestCgroupModesAreToldApart(t *testing.T) {
	v1 := hybrid("")
	v1["/proc/self/mountinfo"], _, _ = strings.Cut(v1["/proc/self/mountinfo"], "41 25")
	// A lab host mounts its own tree over the machine's.
	over := hybrid("")
	over["/proc/self/mountinfo"] += "50 25 0:50 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	over["/sys/fs/cgroup/cgroup.controllers"] = "cpu memory\n"
	for name, c := range map[string]struct {
		changes     map[string]string
		mode        CgroupMode
		controllers string
	}{
		"v2":            {nil, CgroupV2, "cpu cpuset hugetlb io memory misc pids rdma"},
		"v1":            {v1, CgroupV1, "cpu cpuacct cpuset memory pids"},
		"hybrid":        {hybrid(""), CgroupHybrid, "cpu cpuacct cpuset memory pids"},
		"v2 over v1":    {over, CgroupV2, "cpu memory"},
		"disabled":      {hybrid("memory"), CgroupHybrid, "cpu cpuacct cpuset pids"},
		"nothing there": {map[string]string{"/proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"}, CgroupNone, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := fakeMachine(t, c.changes).cgroups()
			if got.Mode != c.mode || strings.Join(got.Controllers, " ") != c.controllers {
				t.Errorf("mode %s, controllers %v", got.Mode, got.Controllers)
			}
		})
	}
}

func TestOOMScoreIsRestrictedWithoutTheRightToLowerIt(t *testing.T) {
	for name, c := range map[string]struct {
		changes    map[string]string
		restricted bool
	}{
		"root of the machine": {nil, false},
		"no capability":       {map[string]string{"/proc/self/status": "Uid:\t0\t0\t0\t0\nCapEff:\t000001fffeffffff\n"}, true},
		"user namespace":      {map[string]string{"/proc/self/uid_map": "0 100000 65536\n"}, true},
	} {
		f, err := fakeMachine(t, c.changes).Detect()
		if err != nil || f.RestrictOOMScoreAdj != c.restricted || f.OOMScoreAdj != -100 {
			t.Errorf("%s: restricted %v, own %d, err %v", name, f.RestrictOOMScoreAdj, f.OOMScoreAdj, err)
		}
	}
}

func TestResolvConfAvoidsTheLocalStub(t *testing.T) {
	stub := map[string]string{
		"/etc/resolv.conf":                 "nameserver 127.0.0.53\noptions edns0\n",
		"/run/systemd/resolve/resolv.conf": "nameserver 192.0.2.1\nnameserver 2001:db8::1\n",
	}
	for name, c := range map[string]struct {
		changes map[string]string
		path    string
		servers int
	}{
		"plain":              {nil, "/etc/resolv.conf", 1},
		"systemd-resolved":   {stub, "/run/systemd/resolve/resolv.conf", 2},
		"dnsmasq by nothing": {map[string]string{"/etc/resolv.conf": "nameserver ::1\n"}, "", 0},
	} {
		got := fakeMachine(t, c.changes).resolvConf()
		if got.Path != c.path || len(got.Servers) != c.servers {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestDefaultRouteOfLowestMetricGivesTheAddress(t *testing.T) {
	n := Network{
		Addrs: []Addr{
			{Prefix: netip.MustParsePrefix("198.51.100.3/24"), Link: "wlan0", Global: true},
			{Prefix: netip.MustParsePrefix("192.0.2.7/24"), Link: "eth0", Global: true},
			{Prefix: netip.MustParsePrefix("192.0.2.8/24"), Link: "eth0", Global: true},
			{Prefix: netip.MustParsePrefix("fe80::1/64"), Link: "eth0"},
			{Prefix: netip.MustParsePrefix("2001:db8::7/64"), Link: "eth0", Global: true},
		},
		Routes: []Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Link: "wlan0", Metric: 600},
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Link: "eth0", Metric: 100},
			{Dst: netip.MustParsePrefix("::/0"), Link: "eth0", Metric: 1024},
		},
	}
	if got := n.DefaultRoute(false); got.Link != "eth0" || got.Addr != netip.MustParseAddr("192.0.2.7") {
		t.Errorf("IPv4: %+v", got)
	}
	if got := n.DefaultRoute(true); got.Addr != netip.MustParseAddr("2001:db8::7") {
		t.Errorf("IPv6: %+v", got)
	}
	n.Routes[1].Source = netip.MustParseAddr("192.0.2.8")
	if got := n.DefaultRoute(false); got.Addr != netip.MustParseAddr("192.0.2.8") {
		t.Errorf("the route's own source address is not heeded: %+v", got)
	}
}

func TestDetectKnowsThisMachine(t *testing.T) {
	f, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	name, _ := os.Hostname()
	if f.Hostname != name || f.KernelRelease == "" {
		t.Errorf("%+v", f)
	}
	if f.Cgroups.Mode != CgroupNone && !slices.Contains(f.Cgroups.Controllers, "memory") {
		t.Errorf("no memory controller: %+v", f.Cgroups)
	}
	t.Logf("%+v", f)
}
