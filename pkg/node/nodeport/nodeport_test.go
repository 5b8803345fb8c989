package nodeport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

// node runs a forwarder over a fake API server.
type node struct {
	client *fake.Clientset
	log    *safeBuffer
	stop   func()
}

type safeBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

func startNode(t *testing.T, services ...*corev1.Service) *node {
	t.Helper()
	n := &node{client: fake.NewClientset(), log: &safeBuffer{}}
	for _, s := range services {
		n.create(t, s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	factory := informers.NewSharedInformerFactory(n.client, 0)
	f := New(factory.Core().V1().Services().Informer(), nil, slog.New(slog.NewTextHandler(n.log, nil)))
	factory.StartWithContext(ctx)
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- f.Run(ctx, ready) }()
	<-ready
	var once sync.Once
	n.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("ended with %v", err)
			}
			factory.Shutdown()
		})
	}
	t.Cleanup(n.stop)
	return n
}

func (n *node) create(t *testing.T, s *corev1.Service) {
	t.Helper()
	if _, err := n.client.CoreV1().Services(s.Namespace).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (n *node) update(t *testing.T, s *corev1.Service) {
	t.Helper()
	if _, err := n.client.CoreV1().Services(s.Namespace).Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (n *node) remove(t *testing.T, s *corev1.Service) {
	t.Helper()
	if err := n.client.CoreV1().Services(s.Namespace).Delete(t.Context(), s.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func service(name string, protocol corev1.Protocol, nodePort int, to netip.AddrPort) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Type:      corev1.ServiceTypeNodePort,
			ClusterIP: to.Addr().String(), ClusterIPs: []string{to.Addr().String()},
			Ports: []corev1.ServicePort{{Protocol: protocol, Port: int32(to.Port()), NodePort: int32(nodePort)}},
		},
	}
}

// freePort finds a port that is free on the loopback addresses.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func loopback(port int) string {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)).String()
}

// tcpTarget answers each connection, once its client has finished sending, with
// its name and what it got.
func tcpTarget(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				got, err := io.ReadAll(conn)
				if err == nil {
					io.WriteString(conn, name+":"+string(got))
				}
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// ask sends a question over TCP, finishes its direction and reads the answer.
func ask(address, question string) (string, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, question); err != nil {
		return "", err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

// until tries again until ok says yes; go test's own deadline ends it otherwise.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	for !ok() {
		if t.Context().Err() != nil {
			t.Fatal("never happened")
		}
	}
}

func TestNodePortAnswersOnLocalhostAndHalfClosePassesThrough(t *testing.T) {
	port := freePort(t)
	startNode(t, service("web", corev1.ProtocolTCP, port, tcpTarget(t, "web")))
	big := strings.Repeat("a megabyte of it ", 1<<16)
	if got, err := ask(loopback(port), big); err != nil || got != "web:"+big {
		t.Errorf("127.0.0.1: %d bytes, %v", len(got), err)
	}
	if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Log("no IPv6 on the loopback interface")
	} else {
		l.Close()
		if got, err := ask(net.JoinHostPort("::1", strconv.Itoa(port)), "six"); err != nil || got != "web:six" {
			t.Errorf("::1: %q, %v", got, err)
		}
	}
}

func TestListenersFollowServices(t *testing.T) {
	first, second := freePort(t), freePort(t)
	web, api := tcpTarget(t, "web"), tcpTarget(t, "api")
	n := startNode(t)
	n.create(t, service("web", corev1.ProtocolTCP, first, web))
	until(t, func() bool { got, _ := ask(loopback(first), "x"); return got == "web:x" })

	n.update(t, service("web", corev1.ProtocolTCP, first, api))
	until(t, func() bool { got, _ := ask(loopback(first), "x"); return got == "api:x" })

	n.update(t, service("web", corev1.ProtocolTCP, second, api))
	until(t, func() bool { got, _ := ask(loopback(second), "x"); return got == "api:x" })
	refused := func() bool { _, err := ask(loopback(first), "x"); return errors.Is(err, syscall.ECONNREFUSED) }
	until(t, refused)

	n.remove(t, service("web", corev1.ProtocolTCP, second, api))
	until(t, func() bool { _, err := ask(loopback(second), "x"); return errors.Is(err, syscall.ECONNREFUSED) })
}

func TestServiceWithoutEndpointResetsTheConnection(t *testing.T) {
	port := freePort(t)
	nobody := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), uint16(freePort(t)))
	startNode(t, service("web", corev1.ProtocolTCP, port, nobody))
	if got, err := ask(loopback(port), ""); err == nil {
		t.Errorf("got %q and no error", got)
	}
}

func TestTakenPortIsToldOnceAndServedWhenItIsFree(t *testing.T) {
	squatter, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer squatter.Close()
	port, other := squatter.Addr().(*net.TCPAddr).Port, freePort(t)
	target := tcpTarget(t, "web")
	n := startNode(t, service("web", corev1.ProtocolTCP, port, target))
	n.create(t, service("other", corev1.ProtocolTCP, other, target))
	until(t, func() bool { got, _ := ask(loopback(other), "x"); return got == "web:x" })
	if s := n.log.String(); strings.Count(s, "default/web") != 1 {
		t.Errorf("want one line about default/web:\n%s", s)
	}

	squatter.Close()
	n.remove(t, service("other", corev1.ProtocolTCP, other, target))
	until(t, func() bool { got, _ := ask(loopback(port), "x"); return got == "web:x" })
}

func TestServicesOfOtherProxiesAndClusterIPServicesAreLeftAlone(t *testing.T) {
	target := tcpTarget(t, "web")
	theirs, ours := freePort(t), freePort(t)
	other := service("other", corev1.ProtocolTCP, theirs, target)
	other.Labels = map[string]string{otherProxyLabel: "mesh"}
	startNode(t, other, service("plain", corev1.ProtocolTCP, 0, target), service("web", corev1.ProtocolTCP, ours, target))
	if got, err := ask(loopback(ours), "x"); got != "web:x" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := ask(loopback(theirs), "x"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want refused", err)
	}
}

func TestStopClosesConnections(t *testing.T) {
	port := freePort(t)
	n := startNode(t, service("web", corev1.ProtocolTCP, port, tcpTarget(t, "web")))
	conn, err := net.Dial("tcp", loopback(port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "x"); err != nil {
		t.Fatal(err)
	}
	n.stop()
	if _, err := io.ReadAll(conn); err == nil {
		t.Errorf("the connection ended as if the server had finished")
	}
}

func TestUDPClientsEachGetTheirOwnAnswers(t *testing.T) {
	target, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)})
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	go func() {
		buf := make([]byte, maxPacket)
		for {
			n, from, err := target.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			target.WriteToUDPAddrPort(bytes.ToUpper(buf[:n]), from)
		}
	}()
	port := freePort(t)
	n := startNode(t, service("dns", corev1.ProtocolUDP, port, target.LocalAddr().(*net.UDPAddr).AddrPort()))
	for _, word := range []string{"one", "two", strings.Repeat("large", 9000)} {
		conn, err := net.Dial("udp", loopback(port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for range 3 {
			if _, err := io.WriteString(conn, word); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, maxPacket)
			m, err := conn.Read(buf)
			if err != nil || string(buf[:m]) != strings.ToUpper(word) {
				t.Fatalf("asked %.10q, got %.10q (%d bytes), %v", word, buf[:m], m, err)
			}
		}
	}
	n.stop()
}

func TestIdleUDPSessionIsForgotten(t *testing.T) {
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	target, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)})
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	r := newRelay(front, target.LocalAddr().(*net.UDPAddr).AddrPort())
	r.idle = time.Millisecond
	var tasks sync.WaitGroup
	tasks.Go(func() { r.run(&tasks) })
	conn, err := net.Dial("udp", front.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "x"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := target.ReadFromUDP(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	until(t, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.sessions) == 0
	})
	r.close()
	tasks.Wait()
}
