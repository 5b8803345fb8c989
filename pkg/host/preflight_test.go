package host

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func fitConfig(t testing.TB) Config {
	all := netip.IPv4Unspecified()
	dir := t.TempDir()
	return Config{
		DataDir: dir, RunDir: "/run/knarr", ServerDir: filepath.Join(dir, "server"),
		ClusterCIDR: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		ServiceCIDR: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
		ClusterDNS:  netip.MustParseAddr("10.43.0.10"),
		Snapshotter: "overlayfs", FlannelBackend: "vxlan", KubeVersion: "v1.36.4+knarr1",
		ResolvConf: "/etc/resolv.conf",
		BuildDate:  time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC),
		ConfigFile: filepath.Join(dir, "config.yaml"), Kubeconfig: filepath.Join(dir, "kubeconfig.yaml"), KubeconfigMode: 0o600,
		Listeners: []Listener{
			{Use: "the API server", Network: "tcp", Addr: netip.AddrPortFrom(all, 6443), Do: "choose another --https-listen-port"},
			{Use: "the kubelet", Network: "tcp", Addr: netip.AddrPortFrom(all, 10250), Needed: true, Do: "give --kubelet-arg=port=…"},
			{Use: "flannel", Network: "udp", Addr: netip.AddrPortFrom(all, 8472), Do: "use --flannel-backend=host-gw"},
			{Use: "cluster DNS", Network: "udp", Addr: netip.MustParseAddrPort("10.43.0.10:53"), Needed: true, Do: "give --disable=dns"},
		},
	}
}

// wrong are the results that are not ok.
func wrong(r Report) []Result { return append(r.Of(Error), r.Of(Warning)...) }

func TestFitMachinesHaveNoProblems(t *testing.T) {
	for name, changes := range map[string]map[string]string{"v2": nil, "hybrid": hybrid("")} {
		r := fakeMachine(t, changes).Preflight(fitConfig(t))
		if r.Level != OK || len(wrong(r)) > 0 {
			t.Errorf("%s: %v", name, wrong(r))
		}
		var told []string
		for _, one := range r.Results {
			told = append(told, one.Check)
		}
		if !slices.Equal(told, Checks()) {
			t.Errorf("%s: told %v, want each of %v once", name, told, Checks())
		}
	}
}

func TestThisMachineIsFit(t *testing.T) {
	needRoot(t)
	cfg := fitConfig(t)
	cfg.BuildDate = time.Time{}
	// Whoever uses this machine's ports, and what else runs on it, is its own business.
	cfg.Listeners = nil
	for _, r := range Preflight(cfg).Of(Error) {
		if r.Check != "other-kubernetes" {
			t.Error(r)
		}
	}
}

// Every case is told with what helps, in one line, with the right level.
func TestPreflightTellsWhatToDo(t *testing.T) {
	for name, c := range preflightCases() {
		t.Run(name, func(t *testing.T) {
			r := c.preflight(t)
			for _, one := range wrong(r) {
				if line := one.String(); strings.Contains(line, "\n") || one.What == "" || one.Where == "" || one.Why == "" || one.Do == "" {
					t.Errorf("%s is not told in one line with what, where, why and what to do: %q", one.Check, line)
				}
			}
			want := Error
			if c.warn {
				want = Warning
			}
			if r.Level != want || (r.Err() == nil) != c.warn {
				t.Errorf("level %s, want %s; stops the start with: %v", r.Level, want, r.Err())
			}
			if !slices.ContainsFunc(r.Of(want), func(one Result) bool { return strings.Contains(one.String(), c.want) }) {
				t.Errorf("no %s has %q in:\n%v", want, c.want, wrong(r))
			}
			if len(wrong(r)) > 1 && !c.several {
				t.Errorf("one thing is wrong, told is:\n%v", wrong(r))
			}
		})
	}
}

// docs/check.md has a row for each check, in their order, which says how bad it
// can be, as the cases above show it.
func TestDocsTellOfEveryCheck(t *testing.T) {
	seen := map[string][]Level{}
	for _, c := range preflightCases() {
		for _, one := range wrong(c.preflight(t)) {
			seen[one.Check] = append(seen[one.Check], one.Level)
		}
	}
	text, err := os.ReadFile("../../docs/check.md")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		name, quoted := strings.CutPrefix(strings.TrimSpace(cells[0]), "`")
		name = strings.TrimSuffix(name, "`")
		// The configuration is told by the command line.
		if !quoted || len(cells) != 4 || name == "configuration" {
			continue
		}
		names = append(names, name)
		for _, l := range []Level{Warning, Error} {
			if says, shown := strings.Contains(cells[2], l.String()), slices.Contains(seen[name], l); says != shown {
				t.Errorf("docs/check.md tells of %s at level %s: %v; a case shows one: %v", name, l, says, shown)
			}
		}
	}
	if !slices.Equal(names, Checks()) {
		t.Errorf("docs/check.md lists\n%v, want\n%v", names, Checks())
	}
}

func TestControlPlaneAloneNeedsNoNode(t *testing.T) {
	m := fakeMachine(t, map[string]string{"/proc/self/status": status("1000", "0"), "/sys/fs/cgroup/cgroup.controllers": ""})
	cfg := fitConfig(t)
	cfg.DisableAgent = true
	if r := m.Preflight(cfg); r.Level != OK {
		t.Error(wrong(r))
	}
}

func TestWithoutRightsOnlyThatIsTold(t *testing.T) {
	m := fakeMachine(t, map[string]string{"/proc/self/status": status("1000", "0"), "/dev/kmsg": ""})
	m.Kernel = fakeKernel{overlay: errors.New("operation not permitted"), nftErr: errors.New("operation not permitted")}
	r := m.Preflight(fitConfig(t))
	if got := wrong(r); len(got) != 1 || got[0].Check != "root" {
		t.Error(got)
	}
}

func TestSnapshotterStandsInOnlyWhereNobodyChose(t *testing.T) {
	m, cfg := fakeMachine(t), fitConfig(t)
	if r := m.Preflight(cfg); r.Snapshotter != "overlayfs" {
		t.Errorf("overlays work, but %q is used", r.Snapshotter)
	}
	m.Kernel = fakeKernel{overlay: errors.New("invalid argument")}
	if r := m.Preflight(cfg); r.Snapshotter != "native" || r.Level != Warning {
		t.Errorf("%q stands in for overlayfs, at level %s", r.Snapshotter, r.Level)
	}
	cfg.SnapshotterGiven = true
	if r := m.Preflight(cfg); r.Snapshotter != "overlayfs" || r.Level != Error {
		t.Errorf("the user's choice became %q, at level %s", r.Snapshotter, r.Level)
	}
	cfg.Snapshotter = ""
	if r := m.Preflight(cfg); r.Level != OK {
		t.Errorf("another runtime's snapshotter is none of our business: %v", wrong(r))
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
			{Dst: netip.MustParsePrefix("10.43.0.0/16"), Link: "lo"},
		},
	}}
	ledger, err := m.OpenLedger(cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := ledger.Record(LoopbackChange(netip.MustParseAddr("10.43.0.10")), LoopbackRouteChange(netip.MustParsePrefix("10.43.0.0/16"))); err != nil {
		t.Fatal(err)
	}
	if r := m.Preflight(cfg); r.Level != OK {
		t.Error(wrong(r))
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

func TestReportIsReadBackFromJSON(t *testing.T) {
	r := fakeMachine(t, map[string]string{"/dev/kmsg": ""}).Preflight(fitConfig(t))
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if back.Level != Error || !slices.Equal(back.Results, r.Results) {
		t.Errorf("%s became %+v", text, back)
	}
	if err := json.Unmarshal([]byte(`{"level":"fine"}`), &back); err == nil {
		t.Error("a level that does not exist was read")
	}
}
