package host

import (
	"errors"
	"os"
	"slices"
	"testing"

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
	t.Logf("default routes: %+v %+v", n.defaultRoute(false), n.defaultRoute(true))
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}
