package tunnel

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/knarr-dev/knarr/pkg/dial"
)

var discard = slog.New(slog.DiscardHandler)

func debugLog(to io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(to, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// quick is a keep-alive for tests that wait for it.
const quick = 250 * time.Millisecond

// apiServer serves tunnels as an API server does: HTTP/1.1 and HTTP/2 over TLS,
// users by client certificate.
type apiServer struct {
	*Server
	http  *httptest.Server
	asked atomic.Int32
	deny  atomic.Int32 // a status that all are answered with
	log   *logs
}

func newAPIServer(t *testing.T, keepAlive time.Duration) *apiServer {
	t.Helper()
	a := &apiServer{log: &logs{}}
	a.Server = NewServer(ServerConfig{
		KeepAlive: keepAlive,
		Log:       slog.New(slog.NewTextHandler(a.log, nil)),
		NodeName: func(r *http.Request) (string, error) {
			name, ok := strings.CutPrefix(r.TLS.PeerCertificates[0].Subject.CommonName, "system:node:")
			if !ok {
				return "", errors.New("not a node's kubelet")
			}
			return name, nil
		},
	})
	mux := http.NewServeMux()
	mux.HandleFunc(Path, func(w http.ResponseWriter, r *http.Request) {
		a.asked.Add(1)
		switch status := int(a.deny.Load()); {
		case status != 0:
			http.Error(w, "denied for\na test", status)
		case len(r.TLS.PeerCertificates) == 0:
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
		default:
			a.ServeHTTP(w, r)
		}
	})
	a.http = httptest.NewUnstartedServer(mux)
	a.http.EnableHTTP2 = true
	a.http.Config.ErrorLog = log.New(io.Discard, "", 0)
	a.http.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	a.http.StartTLS()
	t.Cleanup(func() {
		a.Close()
		a.http.Close()
	})
	return a
}

func (a *apiServer) addr() string { return a.http.Listener.Addr().String() }

// tls is the configuration of a client with the name.
func (a *apiServer) tls(t *testing.T, name string) *tls.Config {
	t.Helper()
	c := &tls.Config{RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{certificate(t, name)}}
	c.RootCAs.AddCert(a.http.Certificate())
	return c
}

func certificate(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *apiServer) config(t *testing.T, node string) ClientConfig {
	config := a.tls(t, "system:node:"+node)
	config.NextProtos = []string{"h2"} // as what serves other connections, too, may have it
	return ClientConfig{
		Servers:   []string{a.addr()},
		TLS:       config,
		Allow:     func(netip.AddrPort) bool { return true },
		KeepAlive: a.cfg.KeepAlive,
		Log:       discard,
	}
}

// run has a Client work.
func run(t *testing.T, cfg ClientConfig) (c *Client, stop func()) {
	t.Helper()
	c = NewClient(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	ready, result := make(chan struct{}), make(chan error, 1)
	go func() { result <- c.Run(ctx, ready) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-result; err != nil {
			t.Errorf("Run: %v", err)
		}
		for _, s := range c.Status() {
			if s.Connected {
				t.Errorf("connected after its end: %+v", s)
			}
		}
	})
	t.Cleanup(stop)
	<-ready
	return c, stop
}

// join runs a Client and waits for its tunnel.
func join(t *testing.T, a *apiServer, cfg ClientConfig) (c *Client, stop func()) {
	t.Helper()
	c, stop = run(t, cfg)
	cert, err := x509.ParseCertificate(cfg.TLS.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the tunnel stands", func() bool {
		return connected(c) == len(cfg.Servers) && a.Connected(strings.TrimPrefix(cert.Subject.CommonName, "system:node:"))
	})
	return c, stop
}

func connected(c *Client) (n int) {
	for _, s := range c.Status() {
		if s.Connected {
			n++
		}
	}
	return n
}

// remade waits for a node to have another tunnel than before.
func remade(t *testing.T, a *apiServer, node string, before *tunnel) {
	t.Helper()
	eventually(t, "the tunnel is back", func() bool {
		now := a.tunnel(node)
		return now != nil && now != before
	})
}

// eventually waits for what nothing tells of.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not happen that %s", what)
		}
	}
}

// target is a TCP server behind a node.
func target(t *testing.T, serve func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			}()
		}
	}()
	return lis.Addr().(*net.TCPAddr).AddrPort()
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

// through dials a target by the tunnel of a node, for up to 15 seconds of use.
func through(t *testing.T, a *apiServer, node string, addr netip.AddrPort) *conn {
	t.Helper()
	c, err := a.Dial(t.Context(), node, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(15 * time.Second))
	return c.(*conn)
}

func wantEcho(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("read %q, %v, want %q", got, err, text)
	}
}

// relay is a network between agents and a server.
type relay struct {
	lis    net.Listener
	frozen atomic.Bool
	thaw   chan struct{}
	bytes  atomic.Int64 // both ways
	pieces atomic.Int64 // about as many as packets

	mu    sync.Mutex
	conns []net.Conn
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{lis: lis, thaw: make(chan struct{})}
	t.Cleanup(func() {
		lis.Close()
		close(r.thaw)
		r.cut()
	})
	go func() {
		for {
			down, err := lis.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				down.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, up, down)
			r.mu.Unlock()
			go r.carry(up, down)
			go r.carry(down, up)
		}
	}()
	return r
}

func (r *relay) addr() string { return r.lis.Addr().String() }

func (r *relay) carry(dst, src net.Conn) {
	defer dst.Close()
	defer src.Close()
	for buf := make([]byte, 64<<10); ; {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		if r.frozen.Load() {
			<-r.thaw // nothing passes any more, and nobody is told
			return
		}
		r.bytes.Add(int64(n))
		r.pieces.Add(1)
		if _, err := dst.Write(buf[:n]); err != nil {
			return
		}
	}
}

// cut ends all connections.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
	r.conns = nil
}

// dial sends a client of addr through the relay.
func (r *relay) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return dial.Dialer().DialContext(ctx, network, r.addr())
}

// logs is a log that may be read while it is written.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// wantNoGoroutines waits for those of this package and of yamux to end.
func wantNoGoroutines(t *testing.T) {
	t.Helper()
	var left []string
	for range 1000 {
		left = nil
		for stack := range strings.SplitSeq(goroutines(), "\n\n") {
			for _, sign := range []string{"hashicorp/yamux", "tunnel.(*Client)", "tunnel.(*Server)", "tunnel.(*link)", "tunnel.(*conn)", "tunnel.toTarget", "tunnel.fromTarget"} {
				if strings.Contains(stack, sign) {
					left = append(left, stack)
					break
				}
			}
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
}

// goroutines are the stacks of all.
func goroutines() string {
	all := make([]byte, 4<<20)
	return string(all[:runtime.Stack(all, true)])
}
