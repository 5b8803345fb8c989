package host

import (
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func TestRunningKernelTellsLinkKindsApart(t *testing.T) {
	needRoot(t)
	for _, kind := range []string{"veth", "bridge", "vxlan"} {
		if err := (runningKernel{}).LinkKind(kind); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	if err := (runningKernel{}).LinkKind("knarrless"); err == nil {
		t.Error("a kind that no kernel has was accepted")
	}
}

func TestNFTablesProbeLeavesNothing(t *testing.T) {
	needRoot(t)
	missing, err := runningKernel{}.NFTables()
	if err != nil || len(missing) > 0 {
		t.Fatalf("missing = %v, err = %v", missing, err)
	}
	b := newNFTBatch()
	b.add(unix.NFT_MSG_DELTABLE, "table", attr(unix.NFTA_TABLE_NAME, "knarr-probe"))
	b.commit()
	answers, err := b.send()
	if err != nil || len(answers) != 1 || !errors.Is(answers[0].err, unix.ENOENT) {
		t.Fatalf("deleting the probe's table answers %v %v, want that there is none", answers, err)
	}
}

func TestNFTablesProbeNamesAMissingExpression(t *testing.T) {
	needRoot(t)
	missing, err := probeNFTables("ct", "knarrless", "masq")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(missing, []string{"knarrless"}) {
		t.Fatalf("missing = %v", missing)
	}
}

func TestOverlayProbeLeavesNothing(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := (runningKernel{}).Overlay(dir + "/not/yet/made"); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Fatalf("left behind: %v %v", left, err)
	}
	// An overlay can't have its upper folder on procfs.
	if err := (runningKernel{}).Overlay("/proc"); err == nil {
		t.Fatal("an overlay on /proc was thought possible")
	}
}

func TestRunningKernelKnowsItsNetwork(t *testing.T) {
	n, err := runningKernel{}.Network()
	if err != nil {
		t.Fatal(err)
	}
	if n.addrOn("lo", false).IsValid() {
		t.Error("127.0.0.1 is no address for others")
	}
	t.Logf("default routes: %+v %+v", n.DefaultRoute(false), n.DefaultRoute(true))
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

func TestDatabaseProbeLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := (runningKernel{}).Database(dir + "/not/yet/made"); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Fatalf("left behind: %v %v", left, err)
	}
	if err := (runningKernel{}).Database("/proc"); err == nil {
		t.Fatal("a database on /proc was thought possible")
	}
}

func TestSpaceIsThatOfTheFileSystem(t *testing.T) {
	s, err := runningKernel{}.Space(t.TempDir())
	if err != nil || s.Size == 0 || s.Free > s.Size || s.FreeInodes > s.Inodes {
		t.Fatalf("%+v, %v", s, err)
	}
}

func TestChainsThatDropForwardedPacketsAreFound(t *testing.T) {
	needRoot(t)
	// The thread ends with its namespace, since nobody unlocks it.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("no network namespace can be made: ", err)
	}
	if drops, err := (runningKernel{}).ForwardDrops(); err != nil || len(drops) > 0 {
		t.Fatalf("in an empty namespace: %v, %v", drops, err)
	}
	b := newNFTBatch()
	b.add(unix.NFT_MSG_NEWTABLE, "table", attr(unix.NFTA_TABLE_NAME, "strict"))
	for name, c := range map[string]struct{ hook, policy uint32 }{
		"FORWARD": {unix.NF_INET_FORWARD, 0}, "lenient": {unix.NF_INET_FORWARD, 1}, "INPUT": {unix.NF_INET_LOCAL_IN, 0},
	} {
		h := nl.NewRtAttr(unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED, nil)
		h.AddRtAttr(unix.NFTA_HOOK_HOOKNUM, binary.BigEndian.AppendUint32(nil, c.hook))
		h.AddRtAttr(unix.NFTA_HOOK_PRIORITY, binary.BigEndian.AppendUint32(nil, 0))
		b.add(unix.NFT_MSG_NEWCHAIN, name, attr(unix.NFTA_CHAIN_TABLE, "strict"), attr(unix.NFTA_CHAIN_NAME, name), h,
			attr(unix.NFTA_CHAIN_TYPE, "filter"), nl.NewRtAttr(unix.NFTA_CHAIN_POLICY, binary.BigEndian.AppendUint32(nil, c.policy)))
	}
	b.commit()
	answers, err := b.send()
	for _, a := range answers {
		err = errors.Join(err, a.err)
	}
	if err != nil {
		t.Fatal(err)
	}
	drops, err := runningKernel{}.ForwardDrops()
	if err != nil || !slices.Equal(drops, []string{"ip strict FORWARD"}) {
		t.Errorf("%v, %v", drops, err)
	}
}
