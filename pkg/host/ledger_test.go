package host

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func openLedger(t *testing.T, m *Machine, dir string) *Ledger {
	t.Helper()
	l, err := m.OpenLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSysctlsReturnToTheirOldValues(t *testing.T) {
	m := fakeMachine(t, map[string]string{
		"/proc/sys/net/ipv4/ip_forward":           "0\n",
		"/proc/sys/fs/inotify/max_user_instances": "128\n",
		"/proc/sys/fs/inotify/max_user_watches":   "1000000\n",
		"/proc/sys/vm/overcommit_memory":          "0\n",
		"/proc/sys/vm/panic_on_oom":               "0\n",
		"/proc/sys/kernel/panic":                  "0\n",
		"/proc/sys/kernel/panic_on_oops":          "0\n",
		"/proc/sys/kernel/keys/root_maxkeys":      "1000000\n",
		"/proc/sys/kernel/keys/root_maxbytes":     "25000000\n",
	})
	dir := t.TempDir()
	facts, err := m.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if err := openLedger(t, m, dir).SetSysctls(Sysctls(facts, false)); err != nil {
		t.Fatal(err)
	}
	expect := func(name, want string) {
		t.Helper()
		if got := m.read(sysctlPath(name)); got != want {
			t.Errorf("%s = %s, want %s", name, got, want)
		}
	}
	expect("net.ipv4.ip_forward", "1")
	expect("fs.inotify.max_user_instances", "1024")
	expect("fs.inotify.max_user_watches", "1000000")
	expect("kernel.panic", "10")

	// A second start finds all in order and must keep the first old values.
	before, _ := os.Stat(filepath.Join(dir, "host-changes.json"))
	again := openLedger(t, m, dir)
	if err := again.SetSysctls(Sysctls(facts, false)); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(filepath.Join(dir, "host-changes.json")); !os.SameFile(before, after) {
		t.Error("the record was written although nothing changed")
	}

	// The administrator's later change is not ours to undo.
	if err := setKernelValue(m.path("/proc/sys/kernel/panic"), "30"); err != nil {
		t.Fatal(err)
	}
	if err := again.Undo(KindSysctl); err != nil {
		t.Fatal(err)
	}
	expect("net.ipv4.ip_forward", "0")
	expect("fs.inotify.max_user_instances", "128")
	expect("vm.overcommit_memory", "0")
	expect("kernel.panic", "30")
	if left := openLedger(t, m, dir).Changes(); len(left) != 0 {
		t.Errorf("still recorded: %v", left)
	}
}

func TestRouterAnnouncementsStayHeededWhereTheyWere(t *testing.T) {
	for was, want := range map[string]string{"1": "2", "0": "0", "2": "2"} {
		m := fakeMachine(t, map[string]string{"/proc/sys/net/ipv6/conf/eth0.5/accept_ra": was})
		f := Facts{IPv6: DefaultRoute{Link: "eth0.5"}}
		var list []Sysctl
		for _, s := range Sysctls(f, true) {
			if strings.HasSuffix(s.Name, "accept_ra") {
				list = append(list, s)
			}
		}
		if err := openLedger(t, m, t.TempDir()).SetSysctls(list); err != nil {
			t.Fatal(err)
		}
		if got := m.read("/proc/sys/net/ipv6/conf/eth0.5/accept_ra"); got != want {
			t.Errorf("from %s to %s, want %s", was, got, want)
		}
	}
}

func TestMissingSysctlIsNamed(t *testing.T) {
	err := openLedger(t, fakeMachine(t), t.TempDir()).SetSysctls([]Sysctl{{Name: "net.ipv4.ip_forward", Value: "1"}})
	if err == nil || !strings.Contains(err.Error(), "net.ipv4.ip_forward") {
		t.Error(err)
	}
}

func TestFoldersGoOnlyIfOthersPutNothingInThem(t *testing.T) {
	outside := t.TempDir()
	l := openLedger(t, new(Machine), t.TempDir())
	if err := l.MakeDir(outside+"/etc/knarr/config.yaml.d", 0o755); err != nil {
		t.Fatal(err)
	}
	file := outside + "/etc/knarr/kubeconfig.yaml"
	if err := l.Record(Change{Kind: KindFile, Name: file}); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{file, outside + "/etc/hosts"} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Undo(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(outside + "/etc/knarr"); err == nil {
		t.Error("a folder of ours is still there")
	}
	if _, err := os.Stat(outside + "/etc/hosts"); err != nil {
		t.Error("another's file is gone")
	}
}

func TestWhatCannotBeUndoneStaysRecorded(t *testing.T) {
	l := openLedger(t, new(Machine), t.TempDir())
	file := Change{Kind: KindFile, Name: filepath.Join(t.TempDir(), "never-made")}
	if err := l.Record(Change{Kind: "magic", Name: "x"}, file); err != nil {
		t.Fatal(err)
	}
	if err := l.Undo(); err == nil {
		t.Error("an unknown kind was undone")
	}
	if left := l.Changes(); len(left) != 1 || left[0].Kind != "magic" {
		t.Error(left)
	}
}

func TestDamagedRecordIsNotOverwritten(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/host-changes.json", []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLedger(dir); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Error(err)
	}
}

// The links, addresses, tables and mounts are made in namespaces that end with
// this test's thread.
func TestUndoRemovesLinksAddressesTablesAndMounts(t *testing.T) {
	needRoot(t)
	failed := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, its namespaces with it.
		runtime.LockOSThread()
		failed <- undoInNamespaces(t.TempDir())
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}

func undoInNamespaces(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	l, err := OpenLedger(dir)
	if err != nil {
		return err
	}
	// The mounts of this thread's namespace, not of the process'.
	l.machine = &Machine{Root: dir + "/root"}
	if err := os.MkdirAll(dir+"/root/proc", 0o755); err != nil {
		return err
	}
	if err := os.Symlink("/proc/thread-self", dir+"/root/proc/self"); err != nil {
		return err
	}
	point, services := filepath.Join(dir, "mount"), netip.MustParsePrefix("10.43.0.0/16")
	err = l.Record(
		Change{Kind: KindLink, Name: "knarr0", New: "bridge"},
		Change{Kind: KindLink, Name: "other0", New: "vxlan"},
		Change{Kind: KindLink, Name: "gone0"},
		Change{Kind: KindAddress, Name: "10.43.0.10/32 lo"},
		Change{Kind: KindAddress, Name: "10.43.0.11/32 lo"},
		LoopbackRouteChange(services), LoopbackRouteChange(netip.MustParsePrefix("10.44.0.0/16")),
		Change{Kind: KindTable, Name: "inet knarr"},
		Change{Kind: KindTable, Name: "ip never-made"},
		Change{Kind: KindDir, Name: point},
		Change{Kind: KindMount, Name: point},
	)
	if err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	addr, _ := netlink.ParseAddr("10.43.0.10/32")
	table := newNFTBatch()
	table.addFamily(unix.NFT_MSG_NEWTABLE, unix.NFPROTO_INET, "", attr(unix.NFTA_TABLE_NAME, "knarr"))
	table.commit()
	for _, make := range []func() error{
		func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "knarr0"}}) },
		func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "other0"}}) },
		func() error { return netlink.LinkSetUp(lo) },
		func() error { return netlink.AddrAdd(lo, addr) },
		func() error { return EnsureLoopbackRoute(services, netip.MustParseAddr("10.43.0.10")) },
		func() error { _, err := table.send(); return err },
		func() error { return os.Mkdir(point, 0o755) },
		func() error { return unix.Mount("tmpfs", point, "tmpfs", 0, "size=4k") },
	} {
		if err := make(); err != nil {
			return err
		}
	}
	if err := l.Undo(); err != nil {
		return err
	}
	if _, err := netlink.LinkByName("knarr0"); err == nil {
		return fmt.Errorf("the bridge is still there")
	}
	if _, err := netlink.LinkByName("other0"); err != nil {
		return fmt.Errorf("a link of another kind under a name of ours is gone: %w", err)
	}
	if addrs, _ := netlink.AddrList(lo, netlink.FAMILY_V4); len(addrs) != 1 || !addrs[0].IP.IsLoopback() {
		return fmt.Errorf("addresses left: %v", addrs)
	}
	if routes, err := netlink.RouteList(nil, netlink.FAMILY_V4); err != nil || len(routes) != 0 {
		return fmt.Errorf("routes left: %v, %w", routes, err)
	}
	if _, err := os.Stat(point); err == nil {
		return fmt.Errorf("the mount or its folder is still there")
	}
	again := newNFTBatch()
	again.addFamily(unix.NFT_MSG_DELTABLE, unix.NFPROTO_INET, "", attr(unix.NFTA_TABLE_NAME, "knarr"))
	again.commit()
	if answers, err := again.send(); err != nil || len(answers) != 1 || answers[0].err == nil {
		return fmt.Errorf("the table was still there: %v %w", answers, err)
	}
	return nil
}
