package cluster

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// A machine whose clock is wrong, or whose certificate has run out, and that
// reaches its server by a proxy alone.
func joinsLate(t *testing.T, server *harness.Node) {
	far := harness.Prepare(t, harness.Options{Join: server, Name: "far"})
	token := "KNARR_TOKEN=" + server.Token(t)
	far.Env = []string{token}
	// It has no programs of its own yet.
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", server.Host.Path("/var/lib/knarr/bundle"), far.Host.Path("/var/lib/knarr")).CombinedOutput(); err != nil {
		t.Fatalf("copy the bundle: %v: %s", err, out)
	}
	dir := filepath.Join(server.Host.Path("/var/lib/knarr"), "server", "tls")

	t.Run("believes no certificate before or after its time", func(t *testing.T) {
		fake := &impostor{}
		ca, key := readPair(t, filepath.Join(dir, "server-ca.crt"), filepath.Join(dir, "server-ca.key"))
		fake.show(t, ca, key, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour))
		fake.inPlaceOf(t, server, far)
		if err := far.Launch(); err != nil {
			t.Fatal(err)
		}
		says := func(times int) {
			far.WaitFor(t, "the agent to name the clock", func(context.Context) (bool, error) {
				return strings.Count(far.Log(t), "set the clock that is wrong") >= times, nil
			})
		}
		says(1)
		fake.show(t, ca, key, time.Now().Add(time.Hour), time.Now().Add(2*time.Hour))
		says(2)
		if asked := fake.asked.Load(); asked != 0 {
			t.Errorf("it sent %d bytes to a server that it does not believe", asked)
		}
		// The clock is right now: the server's own certificate holds.
		far.Exec(t, nft, "delete table ip fake")
		far.WaitReady(t)
		far.Stop(t)
	})

	ns := server.Namespace(t)
	server.Create(t, ns, kube.Pod("there", kube.On("far"), kube.Serve("x")))
	var container string

	t.Run("reaches its server by a proxy alone", func(t *testing.T) {
		passed := proxyBetween(t, server, far)
		far.Resume(t)
		container = server.WaitPodRunning(t, ns, "there").Status.ContainerStatuses[0].ContainerID
		server.WaitFor(t, "its log, by the tunnel in the proxy", func(context.Context) (bool, error) {
			_, err := server.KubectlErr("logs", "-n", ns, "there")
			return err == nil, err
		})
		if passed.Load() == 0 {
			t.Error("nothing went through the proxy")
		}
		far.Stop(t)
		far.Exec(t, nft, "delete table inet walled")
		far.Env = []string{token}
	})

	t.Run("renews a certificate that ran out while it was off", func(t *testing.T) {
		ca, key := readPair(t, filepath.Join(dir, "client-ca.crt"), filepath.Join(dir, "client-ca.key"))
		ranOut(t, far, ca, key)
		far.Env = nil
		if err := far.Launch(); err != nil {
			t.Fatal(err)
		}
		if err := far.Wait(t); err == nil || !strings.Contains(far.Log(t), "has expired while it was off: give a token") {
			t.Errorf("an agent whose certificate has run out says: %v", err)
		}
		far.Env = []string{token}
		far.Resume(t)
		after := server.WaitPodRunning(t, ns, "there").Status.ContainerStatuses[0]
		if after.ContainerID != container {
			t.Error("its pod was restarted")
		}
	})
	far.Stop(t)
	server.Kubectl(t, "delete", "node", "far")
}

// impostor greets as an API server, by certificates that are shown to it, and
// reads what it is sent.
type impostor struct {
	pair  atomic.Pointer[tls.Certificate]
	asked atomic.Int64
}

// show makes a serving certificate for a time.
func (f *impostor) show(t *testing.T, ca *x509.Certificate, by crypto.Signer, from, to time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(from.Unix()), DNSNames: []string{"kubernetes", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"},
		NotBefore: from, NotAfter: to, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, key.Public(), by)
	f.pair.Store(&tls.Certificate{Certificate: [][]byte{der, ca.Raw}, PrivateKey: key})
}

// inPlaceOf leads what the agent says to its server to this one.
func (f *impostor) inPlaceOf(t *testing.T, server, agent *harness.Node) {
	t.Helper()
	between := server.Neighbour(t)
	l, err := between.Listen(t.Context(), "tcp", net.JoinHostPort(between.Addr().String(), "6443"))
	if err != nil {
		t.Fatal(err)
	}
	l = tls.NewListener(l, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.pair.Load(), nil }})
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				n, _ := io.Copy(io.Discard, c)
				f.asked.Add(n)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		conns.Wait()
	})
	agent.Exec(t, nft, fmt.Sprintf(`add table ip fake; add chain ip fake out { type nat hook output priority -100; }; `+
		`add rule ip fake out ip daddr %s tcp dport 6443 dnat to %s:6443`, server.Host.Addr(), between.Addr()))
}

// proxyBetween puts a wall between server and agent, and an HTTP proxy beside it
// (RFC 9110, 9.3.6: CONNECT). It counts the connections that it has made.
func proxyBetween(t *testing.T, server, agent *harness.Node) *atomic.Int64 {
	t.Helper()
	between := server.Neighbour(t)
	l, err := between.Listen(t.Context(), "tcp", net.JoinHostPort(between.Addr().String(), "3128"))
	if err != nil {
		t.Fatal(err)
	}
	passed := new(atomic.Int64)
	ctx, stop := context.WithCancel(context.Background())
	var conns sync.WaitGroup
	proxy := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "CONNECT alone", http.StatusMethodNotAllowed)
			return
		}
		there, err := between.DialContext(ctx, "tcp", r.Host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer there.Close()
		here, rest, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer here.Close()
		passed.Add(1)
		defer context.AfterFunc(ctx, func() { here.Close(); there.Close() })()
		if _, err := io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
			return
		}
		conns.Go(func() {
			_, _ = io.Copy(there, rest)
			there.Close()
		})
		_, _ = io.Copy(here, there)
	})}
	conns.Go(func() { _ = proxy.Serve(l) })
	t.Cleanup(func() {
		stop()
		_ = proxy.Close()
		conns.Wait()
	})
	agent.Env = append(agent.Env, "HTTPS_PROXY=http://"+l.Addr().String())
	agent.Exec(t, nft, fmt.Sprintf(`add table inet walled; add chain inet walled out { type filter hook output priority -400; policy accept; }; `+
		`add chain inet walled in { type filter hook input priority -400; policy accept; }; `+
		`add rule inet walled out ip daddr %[1]s drop; add rule inet walled in ip saddr %[1]s drop`, server.Host.Addr()))
	return passed
}

// ranOut puts in the place of a node's certificate one that was good until an
// hour ago.
func ranOut(t *testing.T, node *harness.Node, ca *x509.Certificate, by crypto.Signer) {
	t.Helper()
	// A link by its whole path, which is another one seen from here.
	current := strings.TrimSpace(node.Exec(t, "readlink", "-f", "/var/lib/knarr/agent/identity/node-client-current.pem"))
	text, err := os.ReadFile(node.Host.Path(current))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
			block.Bytes = sign(t, c, ca, c.PublicKey, by)
		}
		if err := pem.Encode(&out, block); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(node.Host.Path(current), out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func sign(t *testing.T, c, ca *x509.Certificate, public crypto.PublicKey, by crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, ca, public, by)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func readPair(t *testing.T, certFile, keyFile string) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		t.Fatalf("%s is no key to sign with", keyFile)
	}
	return pair.Leaf, key
}
