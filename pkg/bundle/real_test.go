//go:build bundle

package bundle_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/knarr-dev/knarr/pkg/bundle"
)

func TestBundledProgramsRun(t *testing.T) {
	a, err := bundle.Embedded()
	if err != nil {
		t.Fatal(err)
	}
	u, err := a.Unpack(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Settle(); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Path("doc/LICENSES"); err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct{ file, args, env, says string }{
		{file: "bin/runc", args: "features", says: "SCMP_ACT_ERRNO"},
		{file: "bin/containerd-shim-runc-v2", args: "-v", says: a.Index().Versions["github.com/containerd/containerd/v2"]},
		{file: "bin/nft", args: "--version", says: "nftables v"},
		{file: "cni/bridge", env: "CNI_COMMAND=VERSION", says: "supportedVersions"},
		{file: "cni/host-local", env: "CNI_COMMAND=VERSION", says: "supportedVersions"},
		{file: "cni/loopback", env: "CNI_COMMAND=VERSION", says: "supportedVersions"},
		{file: "cni/portmap", env: "CNI_COMMAND=VERSION", says: "supportedVersions"},
	} {
		t.Run(p.file, func(t *testing.T) {
			c := exec.Command(filepath.Join(filepath.Dir(u.BinDir), p.file), strings.Fields(p.args)...)
			c.Env = append([]string{}, p.env)
			c.Stdin = strings.NewReader(`{"cniVersion":"1.0.0"}`)
			out, err := c.CombinedOutput()
			if err != nil || !strings.Contains(string(out), p.says) {
				t.Errorf("%s %s: %v; want %q in what it says:\n%s", p.file, p.args, err, p.says, out)
			}
		})
	}
}

func TestBundledNFTLoadsRulesInANetworkOfItsOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	a, err := bundle.Embedded()
	if err != nil {
		t.Fatal(err)
	}
	u, err := a.Unpack(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	// A shell holds the network namespace for two runs: what a file adds and
	// lists at once is listed from before.
	nft := filepath.Join(u.BinDir, "nft")
	c := exec.Command("sh", "-ec", `"$0" -f - && "$0" list ruleset`, nft)
	c.Stdin = strings.NewReader("add table ip knarr\nadd chain ip knarr c { type nat hook postrouting priority 100; }\n" +
		"add rule ip knarr c ip saddr 10.42.0.0/16 masquerade\n")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "masquerade") {
		t.Fatalf("%v\n%s", err, out)
	}
}

// kube-proxy compares what nft lists with what it has written, by names.
func TestBundledNFTKnowsProtocolsOnAMachineWithoutAListOfThem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	a, err := bundle.Embedded()
	if err != nil {
		t.Fatal(err)
	}
	u, err := a.Unpack(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("unshare", "--mount", "--net", "sh", "-ec", `
		test ! -e /etc/protocols || mount --bind /dev/null /etc/protocols
		"$0" -f -
		"$0" list ruleset`, filepath.Join(u.BinDir, "nft"))
	c.Stdin = strings.NewReader("table ip knarr {\n\tset s {\n\t\ttype ipv4_addr . inet_proto\n\t\telements = { 10.0.0.1 . tcp, 10.0.0.2 . ipv6-icmp }\n\t}\n}\n")
	out, err := c.CombinedOutput()
	for _, want := range []string{"10.0.0.1 . tcp", "10.0.0.2 . ipv6-icmp"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("want %q in the rules: %v\n%s", want, err, out)
		}
	}
}
