package chaos

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/tests/harness"
)

const apiPort = "127.0.0.1:6443"

// Clients that do what none should, all at once, while others work: those must
// not notice.
func TestClientsThatAbuseTheAPIDisturbNobody(t *testing.T) {
	part := 5 // of the abuse is enough for CI
	if *all {
		part = 1
	}
	n := harness.Start(t, harness.Options{Args: []string{"--disable-agent", uncached}})
	loads := []*apiLoad{startLoad(t, n, strict, 1), startLoad(t, n, cached, 1)}
	loads[0].acknowledged(t, 20)
	before := resident(t, n)

	t.Run("500 connections that never speak", func(t *testing.T) { silent(t, n, 500) })
	t.Run("2000 watches of which none is read", func(t *testing.T) { unread(t, n, 2000/part) })
	t.Run("requests of a byte a second", func(t *testing.T) { trickle(t, n, 50) })
	t.Run("requests of three megabytes", func(t *testing.T) { huge(t, n) })
	t.Run("ten thousand events in a minute", func(t *testing.T) { events(t, n, 10_000/part) })
	for _, l := range loads {
		l.acknowledged(t, 50)
		l.finish(t)
	}
	t.Logf("resident memory: %d MiB before, %d MiB in the end", before>>20, resident(t, n)>>20)
	if n.Ended() {
		t.Error("the server has ended")
	}
}

// resident is the server's memory in bytes.
func resident(t *testing.T, n *harness.Node) int64 {
	t.Helper()
	var kib int64
	for line := range strings.Lines(n.Exec(t, "cat", fmt.Sprintf("/proc/%d/status", n.Status(t).PID))) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	t.Fatal("the kernel tells no memory")
	return 0
}

// dial connects to the API.
func dial(t *testing.T, n *harness.Node) net.Conn {
	t.Helper()
	conn, err := n.Host.DialContext(context.Background(), "tcp", apiPort)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// keeper closes connections when their abuse is over.
type keeper struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (k *keeper) close() {
	for _, c := range k.conns {
		c.Close()
	}
}

func silent(t *testing.T, n *harness.Node, count int) {
	var k keeper
	defer k.close()
	for range count {
		k.conns = append(k.conns, dial(t, n))
	}
	answers(t, n)
}

// answers asks as an ordinary client does, by a connection of its own.
func answers(t *testing.T, n *harness.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), answerTimeout)
	defer cancel()
	cfg := rest.CopyConfig(n.REST)
	transport, err := secured(cfg)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DialContext: n.Host.DialContext, TLSClientConfig: transport, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, cfg.Host+"/api/v1/namespaces/default", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("an ordinary client was answered %s", resp.Status)
	}
}

func secured(cfg *rest.Config) (*tls.Config, error) {
	c, err := rest.TLSConfigFor(cfg)
	if err == nil {
		c = c.Clone()
		c.NextProtos = []string{"http/1.1"}
	}
	return c, err
}

// unread opens watches of what is written all the time, and reads nothing.
func unread(t *testing.T, n *harness.Node, count int) {
	cfg, err := secured(n.REST)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ServerName = "127.0.0.1"
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	var k keeper
	defer k.close()
	var wg sync.WaitGroup
	for part := range 8 {
		wg.Go(func() {
			for i := part; i < count; i += 8 {
				raw, err := n.Host.DialContext(t.Context(), "tcp", apiPort)
				if err != nil {
					t.Error(err)
					return
				}
				conn := tls.Client(raw, cfg)
				k.mu.Lock()
				k.conns = append(k.conns, raw)
				k.mu.Unlock()
				resource := []string{strict, cached}[i%2]
				if _, err := fmt.Fprintf(conn, "GET /api/v1/%s?watch=true HTTP/1.1\r\nHost: %s\r\n\r\n", resource, apiPort); err != nil {
					t.Errorf("watch %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	// Enough to fill every buffer on the way.
	for i := range 60 {
		_, err := n.Client.CoreV1().ConfigMaps("kube-public").Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("wide-%d", i)}, Data: map[string]string{"x": strings.Repeat("x", 20<<10)},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	answers(t, n)
	t.Logf("resident memory: %d MiB", resident(t, n)>>20)
}

// trickle writes the bodies of requests one byte a second.
func trickle(t *testing.T, n *harness.Node, count int) {
	cfg, err := secured(n.REST)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ServerName = "127.0.0.1"
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range count {
		conn := tls.Client(dial(t, n), cfg)
		conns = append(conns, conn)
		if _, err := fmt.Fprintf(conn, "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n", apiPort); err != nil {
			t.Fatal(err)
		}
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range 3 {
		for _, c := range conns {
			if _, err := io.WriteString(c, "{"); err != nil {
				t.Fatalf("an honest, slow client was cut off: %v", err)
			}
		}
		answers(t, n)
		<-tick.C
	}
}

// huge sends what no object may be.
func huge(t *testing.T, n *harness.Node) {
	for size, want := range map[int]string{3<<20 - 4096: "Too long", 3<<20 + 4096: "Request entity too large"} {
		_, err := n.Client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "huge"}, Data: map[string]string{"x": strings.Repeat("x", size)},
		}, metav1.CreateOptions{})
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(want)) {
			t.Errorf("%d bytes were answered with %v, want %q", size, err, want)
		}
	}
	answers(t, n)
}

// events writes as many as fast as the server takes them.
func events(t *testing.T, n *harness.Node, count int) {
	const writers = 8
	var wg sync.WaitGroup
	began := time.Now()
	failures := make(chan error, writers)
	for w := range writers {
		wg.Go(func() {
			for i := w; i < count; i += writers {
				_, err := n.Client.CoreV1().Events("default").Create(t.Context(), &corev1.Event{
					ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("chaos.%d", i)},
					InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "chaos"},
					Reason:         "Chaos", Message: "told by the chaos suite", Type: corev1.EventTypeNormal,
				}, metav1.CreateOptions{})
				if err != nil {
					failures <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(failures)
	var errs []error
	for err := range failures {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d events were written in %s", count, time.Since(began).Round(100*time.Millisecond))
	list, err := n.Client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{FieldSelector: "reason=Chaos"})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != count {
		t.Errorf("%d events are there, %d were acknowledged", len(list.Items), count)
	}
	answers(t, n)
}
