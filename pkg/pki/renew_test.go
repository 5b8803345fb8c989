package pki

import (
	"bufio"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestAServerThatWasOffForYearsHealsAtItsStart(t *testing.T) {
	cfg := testConfig(t)
	before := ensure(t, cfg)
	cfg.Now = func() time.Time { return time.Now().AddDate(3, 0, 0) }
	p := ensure(t, cfg)
	if len(p.Changes) != 11 {
		t.Errorf("changes: %q", p.Changes)
	}
	for client, leaf := range p.Clients() {
		if !leaf.TLS.Leaf.NotAfter.After(cfg.Now()) {
			t.Errorf("client %d ends at %v", client, leaf.TLS.Leaf.NotAfter)
		}
	}
	if !p.ServerCA.Cert.Equal(before.ServerCA.Cert) || !p.ServiceAccount.Equal(before.ServiceAccount.PrivateKey) {
		t.Error("an authority or the key of tokens has changed")
	}
}

func TestLivesOfLeavesAreAsAskedFor(t *testing.T) {
	cfg := testConfig(t)
	ensure(t, cfg)
	cfg.LeafLifetime = time.Hour
	p := ensure(t, cfg)
	if len(p.Changes) != 11 || !strings.Contains(p.Changes[0], "it would last until") {
		t.Errorf("a shorter life: %q", p.Changes)
	}
	c := p.Admin.TLS.Leaf
	if left := time.Until(c.NotAfter); left > time.Hour || left < 59*time.Minute {
		t.Errorf("it has %s left", left)
	}
	if due := time.Until(p.RenewAt); due < 30*time.Minute || due > 45*time.Minute {
		t.Errorf("it is renewed in %s", due)
	}
	cfg.LeafLifetime = 0
	if p := ensure(t, cfg); len(p.Changes) != 0 {
		t.Errorf("a longer life is for the next renewal: %q", p.Changes)
	}
	cfg.RenewAll = true
	if p := ensure(t, cfg); len(p.Changes) != 11 || p.Admin.TLS.Leaf.Equal(c) {
		t.Errorf("all are renewed: %q", p.Changes)
	}
}

// made is an authority of a user's own.
type made struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func (m made) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: m.cert.Raw})
}

func (m made) keyPEM(t *testing.T) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(m.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// newAuthority makes one with an RSA or EC key, signed by itself or by another.
func newAuthority(t *testing.T, name string, by *made, useRSA bool) made {
	t.Helper()
	var key crypto.Signer
	var err error
	if useRSA {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: subject(name, ""),
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(5, 0, 0),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	parent, parentKey := template, key
	if by != nil {
		parent, parentKey = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return made{cert, key}
}

func TestAuthoritiesOfAUsersOwnAreUsed(t *testing.T) {
	for _, useRSA := range []bool{false, true} {
		t.Run(fmt.Sprintf("RSA %v", useRSA), func(t *testing.T) {
			cfg := testConfig(t)
			root := newAuthority(t, "root", nil, useRSA)
			middle := newAuthority(t, "intermediate", &root, useRSA)
			if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"server-ca", "client-ca"} {
				err := errors.Join(
					os.WriteFile(filepath.Join(cfg.Dir, name+".crt"), append(middle.pem(), root.pem()...), 0o600),
					os.WriteFile(filepath.Join(cfg.Dir, name+".key"), middle.keyPEM(t), 0o600))
				if err != nil {
					t.Fatal(err)
				}
			}
			p := ensure(t, cfg)
			if !p.ServerCA.Cert.Equal(middle.cert) {
				t.Errorf("the authority is %s", p.ServerCA.Cert.Subject)
			}
			// Whoever trusts no more than the root is shown the way to it.
			shown := handshake(t, p.APIServer)
			onlyRoot, between := x509.NewCertPool(), x509.NewCertPool()
			onlyRoot.AddCert(root.cert)
			for _, c := range shown[1:] {
				between.AddCert(c)
			}
			if _, err := shown[0].Verify(x509.VerifyOptions{DNSName: "edge-1", Roots: onlyRoot, Intermediates: between}); err != nil {
				t.Error(err)
			}
			if signing, err := os.ReadFile(p.ServerCA.SigningPath); err != nil || string(signing) != string(middle.pem()) {
				t.Errorf("the signer's file holds %q, %v", signing, err)
			}
			if p.RequestHeaderCA.SigningPath != p.RequestHeaderCA.CertPath {
				t.Error("an authority with none above it has a second file")
			}
			if p := ensure(t, cfg); len(p.Changes) != 0 {
				t.Errorf("at the second start: %q", p.Changes)
			}
		})
	}
}

func TestChainInTheWrongOrderIsTold(t *testing.T) {
	cfg := testConfig(t)
	root := newAuthority(t, "root", nil, false)
	stranger := newAuthority(t, "stranger", nil, false)
	middle := newAuthority(t, "intermediate", &root, false)
	err := errors.Join(os.MkdirAll(cfg.Dir, 0o700),
		os.WriteFile(filepath.Join(cfg.Dir, "server-ca.crt"), append(middle.pem(), stranger.pem()...), 0o600),
		os.WriteFile(filepath.Join(cfg.Dir, "server-ca.key"), middle.keyPEM(t), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(cfg); err == nil || !strings.Contains(err.Error(), "CN=intermediate was not signed by CN=stranger") {
		t.Errorf("Ensure: %v", err)
	}
}

// TestRequestsOutliveTheirCertificate: one that has begun goes on over its old
// connection, and one that begins later shows the new certificate.
func TestRequestsOutliveTheirCertificate(t *testing.T) {
	cfg := testConfig(t)
	p := ensure(t, cfg)
	next := make(chan string)
	var mu sync.Mutex
	closed := map[net.Conn]bool{}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, r.TLS.PeerCertificates[0].SerialNumber)
		if r.URL.Path != "/watch" {
			return
		}
		for text := range next {
			_ = http.NewResponseController(w).Flush()
			fmt.Fprintln(w, text)
		}
	}))
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{Certificates: []tls.Certificate{p.APIServer.TLS}, ClientCAs: pool(p.ClientCA), ClientAuth: tls.RequireAndVerifyClientCert}
	s.Config.ConnState = func(c net.Conn, state http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		closed[c] = state == http.StateClosed
	}
	s.StartTLS()
	defer s.Close()

	transport, err := NewTransport(p.ServerCA, p.Knarr)
	if err != nil {
		t.Fatal(err)
	}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport}
	get := func(path string) *bufio.Reader {
		resp, err := client.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return bufio.NewReader(resp.Body)
	}
	line := func(r *bufio.Reader) string {
		text, err := r.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		return strings.TrimSpace(text)
	}
	go func() { next <- "before" }()
	watch := get("/watch")
	if got := line(watch); got != p.Knarr.TLS.Leaf.SerialNumber.String() {
		t.Errorf("the first request was sent with %s", got)
	}
	cfg.RenewAll = true
	renewed := ensure(t, cfg)
	if err := transport.Use(renewed.ServerCA, renewed.Knarr); err != nil {
		t.Fatal(err)
	}
	if got := line(get("/")); got != renewed.Knarr.TLS.Leaf.SerialNumber.String() {
		t.Errorf("a request after the renewal was sent with %s", got)
	}
	next <- "after"
	close(next)
	if got := []string{line(watch), line(watch), line(watch)}; !slices.Equal(got, []string{"before", "after", ""}) {
		t.Errorf("the watch brought %q", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(closed) != 2 {
		t.Errorf("%d connections", len(closed))
	}
}

func TestInventoryTellsWhatEndsWhen(t *testing.T) {
	cfg := testConfig(t)
	ensure(t, cfg)
	states := func(now time.Time) map[string]string {
		all, err := Inventory(now, cfg.Dir, filepath.Join(cfg.Dir, "none"))
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]string{}
		for _, e := range all {
			found[filepath.Base(e.File)] = fmt.Sprintf("%s %s %d", e.Use, e.State, e.DaysLeft)
		}
		return found
	}
	day := 24 * time.Hour
	now := time.Now()
	if all := states(now); len(all) != 14 || all["server-ca.crt"] != "authority valid 3649" || all["apiserver.pem"] != "server valid 364" || all["admin.pem"] != "client valid 364" {
		t.Errorf("now: %v", all)
	}
	if all := states(now.Add(300 * day)); all["server-ca.crt"] != "authority valid 3349" || all["admin.pem"] != "client due 64" {
		t.Errorf("in 300 days: %v", all)
	}
	if all := states(now.Add(366 * day)); all["apiserver.pem"] != "server expired -2" && all["apiserver.pem"] != "server expired -1" {
		t.Errorf("in 366 days: %v", all)
	}
	if all := states(now.Add(-day)); all["kubelet.pem"] != "client not yet valid 365" {
		t.Errorf("yesterday: %v", all)
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, "admin.pem"), []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := Inventory(now, cfg.Dir); err == nil || !strings.Contains(err.Error(), "admin.pem is damaged") || len(all) != 13 {
		t.Errorf("damaged: %d entries, %v", len(all), err)
	}
}

func TestLeavesThatWereRemovedAreMadeAnew(t *testing.T) {
	cfg := testConfig(t)
	ensure(t, cfg)
	if n, err := RemoveLeaves(cfg.Dir); n != 11 || err != nil {
		t.Errorf("removed %d, %v", n, err)
	}
	if p := ensure(t, cfg); len(p.Changes) != 11 {
		t.Errorf("changes: %q", p.Changes)
	}
}
