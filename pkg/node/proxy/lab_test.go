package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

const inLab = "KNARR_TEST_IN_NETNS"

// The tests become a process in a network namespace of its own, which ends with
// it, so that the machine's rules stay as they are.
func TestMain(m *testing.M) {
	if os.Getenv(inLab) == "" && os.Getuid() == 0 {
		if unshare, err := exec.LookPath("unshare"); err == nil {
			args := append([]string{unshare, "--net", os.Args[0]}, os.Args[1:]...)
			err = syscall.Exec(unshare, args, append(os.Environ(), inLab+"=1"))
			fmt.Fprintln(os.Stderr, "unshare:", err)
		}
	}
	os.Exit(m.Run())
}

const (
	nodeIP    = "192.0.2.1"
	podIP     = "10.42.0.5"
	clusterIP = "10.43.0.10"
)

// lab gives the namespace addresses of a node and a pod, a default route, and no rules.
func lab(t *testing.T) {
	t.Helper()
	if os.Getenv(inLab) == "" {
		t.Skip("needs root and unshare")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft")
	}
	lo, err := netlink.LinkByName("lo")
	check(t, err)
	check(t, netlink.LinkSetUp(lo))
	for _, a := range []string{podIP + "/32", "fd42::5/128"} {
		addr, err := netlink.ParseAddr(a)
		check(t, err)
		check(t, netlink.AddrReplace(lo, addr))
	}
	// A rejection is told over a real link only; the other end answers nothing.
	if _, err := netlink.LinkByName("net0"); err != nil {
		check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "net0"}, PeerName: "net1"}))
	}
	for name, addrs := range map[string][]string{"net1": nil, "net0": {nodeIP + "/24", "2001:db8::1/64"}} {
		link, err := netlink.LinkByName(name)
		check(t, err)
		check(t, netlink.LinkSetUp(link))
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			check(t, err)
			addr.Flags = unix.IFA_F_NODAD
			check(t, netlink.AddrReplace(link, addr))
		}
		for _, gw := range []string{"192.0.2.254", "2001:db8::fe"} {
			if name == "net0" {
				check(t, netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gw)}))
			}
		}
	}
	nft(t, "flush", "ruleset")
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func nft(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("nft", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// cluster returns a client of a cluster with the node and what is given.
func cluster(objects ...runtime.Object) *fake.Clientset {
	node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	return fake.NewClientset(append(objects, node)...)
}

// watched returns a function that waits until a resource is being watched. What
// changes between an informer's list and its watch is lost on a fake cluster.
func watched(client *fake.Clientset) (wait func(resource string)) {
	var mu sync.Mutex
	begun := make(map[string]chan struct{})
	of := func(resource string) chan struct{} {
		mu.Lock()
		defer mu.Unlock()
		if begun[resource] == nil {
			begun[resource] = make(chan struct{})
		}
		return begun[resource]
	}
	client.PrependWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
		w, err := client.Tracker().Watch(a.GetResource(), a.GetNamespace())
		close(of(a.GetResource().Resource))
		return true, w, err
	})
	return func(resource string) { <-of(resource) }
}

func service(name, ip string, edit ...func(*v1.Service)) *v1.Service {
	s := &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: v1.ServiceSpec{
			Type: v1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip},
			IPFamilies: []v1.IPFamily{familyOf(netip.MustParseAddr(ip))},
			Ports:      []v1.ServicePort{{Name: "p", Protocol: v1.ProtocolTCP, Port: 80}},
		},
	}
	for _, e := range edit {
		e(s)
	}
	return s
}

// endpoint makes the Service lead to what listens at the address.
func endpoint(name string, at net.Addr) *discovery.EndpointSlice {
	a := netip.MustParseAddrPort(at.String())
	port, proto, pname := int32(a.Port()), v1.ProtocolTCP, "p"
	return &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name + "-1",
			Labels: map[string]string{discovery.LabelServiceName: name},
		},
		AddressType: discovery.AddressType(familyOf(a.Addr())),
		Ports:       []discovery.EndpointPort{{Name: &pname, Protocol: &proto, Port: &port}},
		Endpoints:   []discovery.Endpoint{{Addresses: []string{a.Addr().String()}, NodeName: new("n")}},
	}
}

// pod answers every connection with its name.
func pod(t *testing.T, ip, name string) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	check(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, name)
			c.Close()
		}
	}()
	return l.Addr()
}

func ask(addr string) (string, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	return string(b), err
}

func wantAnswer(t *testing.T, addr, want string) {
	t.Helper()
	if got, err := ask(addr); got != want {
		t.Fatalf("%s answers %q (%v), want %q", addr, got, err, want)
	}
}

// start runs a proxy until it is ready. Stop ends it and is called at the end of
// the test otherwise.
func start(t *testing.T, client kubernetes.Interface, edit ...func(*Config)) (p *Proxy, stop func()) {
	t.Helper()
	cfg := Config{
		NodeName:     "n",
		NodeIPs:      []netip.Addr{netip.MustParseAddr(nodeIP)},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		Client:       func() (kubernetes.Interface, error) { return client, nil },
		Log:          slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, e := range edit {
		e(&cfg)
	}
	p, err := New(cfg)
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- p.Run(ctx, ready) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	select {
	case <-ready:
	case err := <-done:
		stopped = true
		cancel()
		t.Fatalf("Run ended before it was ready: %v", err)
	}
	return p, stop
}

// monitor returns a function that waits until the kernel tells of a change that
// holds the text.
func monitor(t *testing.T) (wait func(text string)) {
	t.Helper()
	cmd := exec.Command("nft", "monitor")
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			select {
			case lines <- s.Text():
			case <-t.Context().Done():
				return
			}
		}
	}()
	// It listens once it tells of something.
	for listening := false; !listening; {
		nft(t, "add", "table", "ip", "marker")
		nft(t, "delete", "table", "ip", "marker")
		select {
		case <-lines:
			listening = true
		default:
		}
	}
	return func(text string) {
		t.Helper()
		for line := range lines {
			t.Log(line)
			if strings.Contains(line, text) {
				return
			}
		}
		t.Fatalf("nft monitor ended before %q", text)
	}
}
