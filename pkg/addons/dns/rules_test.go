package dns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/host"
)

// dialer gives up where a packet filter swallows what it sends.
var dialer = net.Dialer{Timeout: 20 * time.Second}

// inNewNetwork runs f in a network of its own, with the loopback link up. The
// thread is given up afterwards: its network goes with it.
func inNewNetwork(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network of its own")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("make a network: %v", err)
			return
		}
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Errorf("loopback link up: %v", err)
			return
		}
		f()
	}()
	<-done
}

func nft(t *testing.T, script string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("nft: %v: %s", err, out)
	}
}

// A minimal Debian has no /etc/protocols, without which nft knows fewer names.
func TestRulesNeedNoListOfProtocols(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to hide a file")
	}
	for _, addr := range []string{"10.43.0.10", "fd43::a"} {
		cmd := exec.Command("unshare", "--mount", "--net", "sh", "-ec", `
			test ! -e /etc/protocols || mount --bind /dev/null /etc/protocols
			exec nft -f -`)
		cmd.Stdin = strings.NewReader(Rules(netip.MustParseAddr(addr)))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("rules of %s: %v: %s", addr, err, out)
		}
	}
}

func TestAddressComesAndGoes(t *testing.T) {
	inNewNetwork(t, func() {
		for _, s := range []string{"10.43.0.10", "fd00:43::a"} {
			addr := netip.MustParseAddr(s)
			for range 2 {
				if err := host.EnsureLoopback(addr); err != nil {
					t.Error(err)
				}
			}
			for range 2 {
				if err := host.RemoveLoopback(addr); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

func TestSocketsCanBeMadeBeforeTheAddress(t *testing.T) {
	inNewNetwork(t, func() {
		s, err := Listen(t.Context(), netip.MustParseAddrPort("10.43.0.10:53"))
		if err != nil {
			t.Error(err)
			return
		}
		s.Close()
	})
}

// kube-proxy's nftables mode drops the host's new connections to addresses of
// the Service network that it does not serve.
func TestHostIsAnsweredBesideKubeProxy(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft")
	}
	api := newAPIServer(t, workload()...)
	inNewNetwork(t, func() {
		nft(t, `table ip kube-proxy {
			chain filter-output {
				type filter hook output priority 0; policy accept;
				ct state new ip daddr 10.43.0.0/16 drop
			}
		}`)
		for range 2 {
			nft(t, Rules(ownAddr))
		}
		if err := host.EnsureLoopback(ownAddr); err != nil {
			t.Error(err)
			return
		}
		sockets, err := Listen(t.Context(), netip.AddrPortFrom(ownAddr, dnsPort))
		if err != nil {
			t.Error(err)
			return
		}
		defer sockets.Close()
		up := []netip.AddrPort{sockets.Addr()}
		udp, err := dialer.Dial("udp", sockets.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		defer udp.Close()
		tcp, err := dialer.Dial("tcp", sockets.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		defer tcp.Close()
		// The API server listens in the machine's own network, where the other
		// goroutines of the name server are; only the sockets are in this one.
		ready, stop := start(t, Config{REST: api.rest, Sockets: sockets, ClusterIP: ownAddr, Upstreams: up})
		defer stop()
		<-ready
		for _, c := range []*dns.Conn{{Conn: udp}, {Conn: tcp}} {
			c.SetDeadline(time.Now().Add(dialer.Timeout))
			if err := c.WriteMsg(question("web.default.svc.cluster.local.", dns.TypeA)); err != nil {
				t.Error(err)
				continue
			}
			m, err := c.ReadMsg()
			if err != nil || told(m.Answer) != "A 10.43.0.20" {
				t.Errorf("over %s: %v, %v", c.RemoteAddr().Network(), m, err)
			}
		}
	})
}

func TestOnlyDNSIsReachableAtTheAddress(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft")
	}
	inNewNetwork(t, func() {
		if err := host.EnsureLoopback(ownAddr); err != nil {
			t.Error(err)
			return
		}
		nft(t, Rules(ownAddr))
		shell, err := net.Listen("tcp", "0.0.0.0:22")
		if err != nil {
			t.Error(err)
			return
		}
		defer shell.Close()
		name, err := net.Listen("tcp", "10.43.0.10:53")
		if err != nil {
			t.Error(err)
			return
		}
		defer name.Close()

		if err := enterPod(); err != nil {
			t.Errorf("make a pod: %v", err)
			return
		}
		if c, err := dialer.Dial("tcp", "10.43.0.10:53"); err != nil {
			t.Errorf("DNS: %v", err)
		} else {
			c.Close()
		}
		if c, err := dialer.Dial("tcp", "10.43.0.10:22"); err == nil {
			c.Close()
			t.Error("the host's secure shell answers a pod at the DNS address")
		} else if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("refused in an unkind way: %v", err)
		}
	})
}

// enterPod makes a second network with a link to the thread's, and moves the
// thread there.
func enterPod() error {
	host, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(host)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "pod", PeerNamespace: netlink.NsFd(host)}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	pod, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pod)
	if err := unix.Setns(host, unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := configure("pod", "10.42.0.1/24"); err != nil {
		return err
	}
	if err := unix.Setns(pod, unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := configure("eth0", "10.42.0.2/24"); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(10, 42, 0, 1)})
}

func configure(link, addr string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(l, a), netlink.LinkSetUp(l))
}
