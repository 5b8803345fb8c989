package dns

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var ownAddr = netip.MustParseAddr("10.43.0.10")

func writeServers(t *testing.T, path string, servers ...string) {
	t.Helper()
	text := "search example.test\n"
	for _, s := range servers {
		text += "nameserver " + s + "\n"
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func addresses(servers []netip.AddrPort) string {
	var out []string
	for _, s := range servers {
		out = append(out, s.Addr().String())
	}
	return strings.Join(out, " ")
}

func TestUpstreamsAvoidLoops(t *testing.T) {
	for _, c := range []struct {
		what          string
		host, systemd []string
		want          string
		file          int // for pods
	}{
		{"plain servers in their order", []string{"192.0.2.2", "192.0.2.1"}, []string{"192.0.2.9"}, "192.0.2.2 192.0.2.1", 0},
		{"systemd's stub is passed by", []string{"127.0.0.53"}, []string{"192.0.2.9"}, "192.0.2.9", 1},
		{"a stub beside a server", []string{"127.0.0.53", "::1", "192.0.2.2"}, nil, "192.0.2.2", 0},
		{"our own address", []string{"10.43.0.10", "192.0.2.2"}, nil, "192.0.2.2", 0},
		{"only our own address", []string{"10.43.0.10"}, []string{"10.43.0.10"}, "", 0},
		{"a local server and no other", []string{"127.0.0.1"}, nil, "127.0.0.1", 0},
		{"an address with a zone", []string{"fe80::1%eth0"}, nil, "fe80::1%eth0", 0},
		{"nothing", nil, nil, "", 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := t.TempDir()
			paths := []string{filepath.Join(dir, "host"), filepath.Join(dir, "systemd")}
			writeServers(t, paths[0], c.host...)
			if c.systemd != nil {
				writeServers(t, paths[1], c.systemd...)
			}
			rc := &resolvConf{own: ownAddr, paths: paths}
			if got := addresses(rc.servers()); got != c.want {
				t.Errorf("servers %q, want %q", got, c.want)
			}
			if got := slices.Index(paths, rc.reachable()); got != c.file {
				t.Errorf("file for pods %d, want %d", got, c.file)
			}
		})
	}
}

func TestFileGivenByTheUserIsTakenAsItIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	writeServers(t, path, "127.0.0.1", "10.43.0.10", "192.0.2.2")
	if got := addresses(newResolvConf(ownAddr, path).servers()); got != "127.0.0.1 192.0.2.2" {
		t.Errorf("servers %q", got)
	}
}

func TestChangesOfResolvConfAreFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	rc := newResolvConf(ownAddr, path)
	if got := addresses(rc.servers()); got != "" {
		t.Fatalf("servers %q of a missing file", got)
	}
	writeServers(t, path, "192.0.2.2")
	if got := addresses(rc.servers()); got != "192.0.2.2" {
		t.Errorf("servers %q after the file came", got)
	}
	writeServers(t, path, "192.0.2.2", "192.0.2.3")
	if got := addresses(rc.servers()); got != "192.0.2.2 192.0.2.3" {
		t.Errorf("servers %q after the file changed", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := addresses(rc.servers()); got != "" {
		t.Errorf("servers %q after the file went", got)
	}
}
