package ports

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write docs/ports.md")

func TestPortsInDocsAreCurrent(t *testing.T) {
	const path = "../../docs/ports.md"
	if *update {
		if err := os.WriteFile(path, []byte(Markdown()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	written, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(written) != Markdown() {
		t.Errorf("%s is stale; run: go test ./pkg/ports -update", path)
	}
}

// The kernel's text is of a little-endian machine, as all that Knarr runs on are.
const procTCP = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:192C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0A002B0A:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 0100007F:A0F0 0100007F:192C 01 00000000:00000000 00:00000000 00000000     0        0 3 1
`

const procTCP6 = `  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:192B 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000
`

func TestSocketsOfTheKernelsListsAreFoundInTheTable(t *testing.T) {
	tcp, err := ParseProc("tcp", procTCP)
	if err != nil {
		t.Fatal(err)
	}
	tcp6, err := ParseProc("tcp6", procTCP6)
	if err != nil {
		t.Fatal(err)
	}
	all := append(tcp, tcp6...)
	if got := fmt.Sprint(all); got != "[tcp 127.0.0.1:6444 tcp 10.43.0.10:53 tcp [::]:6443 tcp [::1]:80]" {
		t.Fatalf("sockets: %s", got)
	}
	dns := netip.MustParseAddr("10.43.0.10")
	for i, want := range []map[Role]string{
		{Server: "containerd's streams of exec, attach and port-forward, for the kubelet", Agent: "an agent's way to the API servers"},
		{Server: "cluster DNS", Agent: "cluster DNS"},
		{Server: "Kubernetes API, joining, tunnels of nodes", Agent: ""},
	} {
		for role, use := range want {
			if p, _ := Listed(all[i], role, dns); p.Use != use {
				t.Errorf("%s for role %d: %q", all[i], role, p.Use)
			}
		}
	}
	if _, ok := Listed(Socket{"udp", netip.MustParseAddrPort("0.0.0.0:68")}, Server, dns); ok {
		t.Error("a stranger's socket is listed")
	}
}

func FuzzParseProc(f *testing.F) {
	f.Add("tcp", procTCP)
	f.Add("udp6", procTCP6)
	f.Add("tcp", "")
	f.Fuzz(func(_ *testing.T, file, text string) { _, _ = ParseProc(file, text) })
}
