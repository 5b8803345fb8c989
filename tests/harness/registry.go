package harness

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	containerregistry "github.com/google/go-containerregistry/pkg/registry"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// trustedFile is where a node has the authority of registries that it trusts as
// those of the world.
const trustedFile = "/etc/ssl/certs/knarr-lab.pem"

// registryPort is the one of every registry, each on a machine of its own.
const registryPort = "5000"

// RegistryOptions say how a registry is reached.
type RegistryOptions struct {
	// SelfSigned has it show a certificate of an authority that no machine
	// trusts; see Registry.CA. Default: every node of the harness trusts it.
	SelfSigned bool
	// User and Password are what the registry wants to know before it gives
	// anything. Default: nothing.
	User, Password string
	// Tokens has it send clients for a token, as registries of the world do,
	// instead of asking for the password each time. A token is given only to
	// those who ask for the right repository and for nothing else.
	Tokens bool
	// Slow is how many bytes of blobs it sends in a second. Default: as many as go.
	Slow int
}

// A Registry serves images by HTTPS, from a machine beside the node.
type Registry struct {
	// Addr is what the names of its images begin with.
	Addr string
	// CA is the authority of its certificate, in PEM.
	CA string

	opts  RegistryOptions
	store http.Handler
	token string

	stop func()

	mu       sync.Mutex
	requests []string
}

// Stop has nobody listen there any more. It may be called twice.
func (r *Registry) Stop() { r.stop() }

// StartRegistry starts one that ends with the test.
func (n *Node) StartRegistry(t testing.TB, o RegistryOptions) *Registry {
	t.Helper()
	host, err := n.lab.AddHost(t.Context(), lab.HostConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	by := n.authority
	if o.SelfSigned {
		if by, err = newAuthority(); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := by.issue(net.IP(host.Addr().AsSlice()))
	if err != nil {
		t.Fatal(err)
	}
	r := &Registry{
		Addr: net.JoinHostPort(host.Addr().String(), registryPort), CA: string(by.pem), opts: o, token: rand.Text(),
		store: containerregistry.New(containerregistry.Logger(log.New(io.Discard, "", 0))),
	}
	l, err := host.Listen(t.Context(), "tcp", r.Addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{
		Handler: r, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
		ErrorLog: log.New(io.Discard, "", 0), // clients that don't trust it
	}
	ended := make(chan struct{})
	go func() {
		_ = srv.ServeTLS(l, "", "") // closed, as asked
		close(ended)
	}()
	r.stop = sync.OnceFunc(func() {
		srv.Close()
		<-ended
	})
	t.Cleanup(r.stop)
	return r
}

// StartLocalRegistry starts one on this machine's loopback, by HTTP, that ends with
// the test.
func StartLocalRegistry(t testing.TB) *Registry {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Registry{Addr: l.Addr().String(), store: containerregistry.New(containerregistry.Logger(log.New(io.Discard, "", 0)))}
	srv := &http.Server{Handler: r}
	ended := make(chan struct{})
	go func() {
		_ = srv.Serve(l) // closed, as asked
		close(ended)
	}()
	r.stop = sync.OnceFunc(func() {
		srv.Close()
		<-ended
	})
	t.Cleanup(r.stop)
	return r
}

// Image is an image's full name.
func (r *Registry) Image(name string) string { return r.Addr + "/" + name }

// Asked tells how often clients asked for a path with such a beginning, as in
// "HEAD team/app/manifests/1". Requests that lacked credentials don't count.
func (r *Registry) Asked(prefix string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	count := 0
	for _, q := range r.requests {
		if strings.HasPrefix(q, prefix) {
			count++
		}
	}
	return count
}

// put uploads a blob or manifest, without credentials.
func (r *Registry) put(t testing.TB, method, path, mediaType string, body []byte) {
	t.Helper()
	req := httptest.NewRequest(method, path, bytes.NewReader(body)).WithContext(context.Background())
	req.Header.Set("Content-Type", mediaType)
	answer := httptest.NewRecorder()
	r.store.ServeHTTP(answer, req)
	if answer.Code >= 300 {
		t.Fatalf("%s %s: %d %s", method, path, answer.Code, answer.Body)
	}
}

func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/token" {
		r.giveToken(w, req)
		return
	}
	if !r.mayAsk(req) {
		challenge := `Basic realm="lab"`
		if r.opts.Tokens {
			challenge = fmt.Sprintf(`Bearer realm="https://%s/token",service="lab",scope=%q`, r.Addr, r.scope(req))
		}
		w.Header().Set("WWW-Authenticate", challenge)
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
		return
	}
	r.mu.Lock()
	r.requests = append(r.requests, req.Method+" "+strings.TrimPrefix(req.URL.Path, "/v2/"))
	r.mu.Unlock()
	if r.opts.Slow > 0 && strings.Contains(req.URL.Path, "/blobs/") {
		w = &slowWriter{w, r.opts.Slow}
	}
	r.store.ServeHTTP(w, req)
}

// slowWriter sends some bytes a second.
type slowWriter struct {
	http.ResponseWriter
	rate int
}

func (s *slowWriter) Write(p []byte) (written int, err error) {
	const pause = 100 * time.Millisecond
	for part := range slices.Chunk(p, max(1, s.rate/int(time.Second/pause))) {
		n, err := s.ResponseWriter.Write(part)
		written += n
		if err != nil {
			return written, err
		}
		time.Sleep(pause)
	}
	return written, http.NewResponseController(s.ResponseWriter).Flush()
}

func (r *Registry) mayAsk(req *http.Request) bool {
	if r.opts.User == "" {
		return true
	}
	if r.opts.Tokens {
		return same(req.Header.Get("Authorization"), "Bearer "+r.token+r.scope(req))
	}
	user, password, _ := req.BasicAuth()
	return same(user, r.opts.User) && same(password, r.opts.Password)
}

// scope is what a request needs a token for.
func (r *Registry) scope(req *http.Request) string {
	name := strings.TrimPrefix(req.URL.Path, "/v2/")
	for _, what := range []string{"/manifests/", "/blobs/"} {
		name, _, _ = strings.Cut(name, what)
	}
	return "repository:" + name + ":pull"
}

// giveToken answers both ways of asking: by GET with Basic credentials, and by
// a form.
func (r *Registry) giveToken(w http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	if req.Method == http.MethodPost {
		user, password = req.FormValue("username"), req.FormValue("password")
	}
	scopes := strings.Fields(strings.Join(append(req.URL.Query()["scope"], req.PostFormValue("scope")), " "))
	slices.Sort(scopes)
	scopes = slices.Compact(scopes)
	if !same(user, r.opts.User) || !same(password, r.opts.Password) || len(scopes) != 1 {
		http.Error(w, `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`, http.StatusUnauthorized)
		return
	}
	fmt.Fprintf(w, `{"token": %[1]q, "access_token": %[1]q, "expires_in": 300}`, r.token+scopes[0])
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority() (*authority, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab authority " + rand.Text()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}
	cert, der, key, err := certify(template, template, nil)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key, pem: certPEM(der)}, nil
}

// issue makes a serving certificate for an address.
func (a *authority) issue(ip net.IP) (tls.Certificate, error) {
	_, der, key, err := certify(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: ip.String()}, IPAddresses: []net.IP{ip},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.cert, a.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
