package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/knarr-dev/knarr/pkg/token"
)

// issuer signs certificates for tests.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	return issue(t, nil, &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
}

// issue makes a certificate; without an issuer, one that signs itself.
func issue(t *testing.T, by *issuer, c *x509.Certificate) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(1)
	if c.NotAfter.IsZero() {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := c, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{cert, key}
}

// apiServer is a certificate like an API server's.
func apiServer(t *testing.T, by *issuer, edit func(*x509.Certificate)) *issuer {
	t.Helper()
	c := &x509.Certificate{DNSNames: []string{apiServerName}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature}
	if edit != nil {
		edit(c)
	}
	return issue(t, by, c)
}

// greet has an agent greet a server that shows these certificates. It returns
// what the server was sent beyond the handshake.
func greet(t *testing.T, tok token.Token, shown ...*issuer) (sent string, err error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	here, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	there, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	chain := tls.Certificate{PrivateKey: shown[0].key}
	for _, s := range shown {
		chain.Certificate = append(chain.Certificate, s.cert.Raw)
	}
	got := make(chan string, 1)
	go func() {
		c := tls.Server(there, &tls.Config{Certificates: []tls.Certificate{chain}})
		text, _ := io.ReadAll(c)
		got <- string(text)
	}()
	_, err = authority(t.Context(), here, tok, time.Now())
	here.Close()
	return <-got, err
}

func TestAuthorityIsCheckedBeforeAnythingIsSent(t *testing.T) {
	ca, other := newIssuer(t), newIssuer(t)
	named := token.Token{CAHash: token.HashCA(ca.cert.Raw), ID: "abcdef", Secret: "0123456789abcdef"}
	short := token.Token{ID: "abcdef", Secret: "0123456789abcdef"}
	past := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	future := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
	}
	kubelet := func(c *x509.Certificate) { c.DNSNames = []string{"edge-1"} }
	client := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	for _, c := range []struct {
		name      string
		token     token.Token
		shown     []*issuer
		says      string // empty: it is trusted
		permanent bool
	}{
		{"the cluster's server", named, []*issuer{apiServer(t, ca, nil), ca}, "", false},
		{"whoever answers, by a short token", short, []*issuer{apiServer(t, other, nil), other}, "", false},
		{"a server of another cluster", named, []*issuer{apiServer(t, other, nil), other}, "not the one that the token names", true},
		{"a man in the middle who shows the right authority", named, []*issuer{apiServer(t, other, nil), ca}, "nothing was sent", true},
		{"one who shows no authority", named, []*issuer{apiServer(t, ca, nil)}, "not the one that the token names", true},
		{"a node of the cluster", named, []*issuer{apiServer(t, ca, kubelet), ca}, "nothing was sent", true},
		{"a client of the cluster", named, []*issuer{apiServer(t, ca, client), ca}, "nothing was sent", true},
		{"a certificate that has expired", named, []*issuer{apiServer(t, ca, past), ca}, "clock", false},
		{"a certificate that is not valid yet", named, []*issuer{apiServer(t, ca, future), ca}, "clock", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			sent, err := greet(t, c.token, c.shown...)
			if sent != "" {
				t.Errorf("it was sent %q", sent)
			}
			if c.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || IsPermanent(err) != c.permanent {
				t.Errorf("permanent %v: %v", IsPermanent(err), err)
			}
			if err != nil && strings.Contains(err.Error(), c.token.Secret) {
				t.Errorf("the error shows the secret: %v", err)
			}
		})
	}
}

func TestVersionsMayDifferAsKubernetesAllows(t *testing.T) {
	for _, c := range []struct{ agent, server, says string }{
		{"v1.36.4+knarr1", "v1.36.0+knarr1", ""},
		{"v1.36.4+knarr1", "v1.36.9", ""},
		{"v1.35.0", "v1.36.4", ""},
		{"v1.33.9", "v1.36.4", ""},
		{"v1.32.9", "v1.36.4", "3 minor versions older at most"},
		{"v1.37.0", "v1.36.4", "must not be newer"},
		{"v2.0.0", "v1.36.4", "must not be newer"},
		{"nonsense", "v1.36.4", "compare versions"},
	} {
		err := Skew(c.agent, c.server)
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("agent %s, server %s: %v", c.agent, c.server, err)
		}
	}
}

// joined makes an identity as Join leaves it.
func joined(t *testing.T, dir string, notAfter time.Time) *Identity {
	t.Helper()
	id, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	id.Node = "edge-1"
	id.Cluster = Cluster{Version: "v1.36.4", ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), ClusterDNS: netip.MustParseAddr("10.43.0.10"), ClientCA: "pem"}
	key, err := id.key()
	if err != nil {
		t.Fatal(err)
	}
	ca := newIssuer(t)
	c := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: subject("edge-1"), NotBefore: notAfter.Add(-time.Hour), NotAfter: notAfter}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if err := id.keep(ca.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key); err != nil {
		t.Fatal(err)
	}
	return id
}

func nobody(t *testing.T) Config {
	return Config{
		Node: "edge-1", Version: "v1.36.4", Log: slog.New(slog.DiscardHandler), Address: "192.0.2.1:6443",
		Dial:  func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("nobody is there") },
		Await: func(context.Context) error { t.Error("a server is waited for"); return errors.New("none") },
	}
}

func TestMachineThatHasJoinedAsksNobody(t *testing.T) {
	cfg := nobody(t)
	cfg.Dir = filepath.Join(t.TempDir(), "identity")
	if _, err := Load(cfg.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before it joined: %v", err)
	}
	joined(t, cfg.Dir, time.Now().Add(time.Hour))
	id, err := Join(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if id.Node != "edge-1" || id.Cluster.ClusterDNS.String() != "10.43.0.10" {
		t.Errorf("%+v", id)
	}
	cfg.Node = "edge-2"
	if _, err := Join(t.Context(), cfg); !IsPermanent(err) || !strings.Contains(err.Error(), "--node-name edge-1") {
		t.Errorf("by another name: %v", err)
	}
	info, err := os.Stat(id.store.CurrentPath())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key's file: %v %v", info.Mode(), err)
	}
	if err := Forget(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(cfg.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after it was forgotten: %v", err)
	}
}

func TestMachineNeedsATokenToJoinAndToComeBackLate(t *testing.T) {
	cfg := nobody(t)
	cfg.Dir = filepath.Join(t.TempDir(), "identity")
	if _, err := Join(t.Context(), cfg); !IsPermanent(err) || !strings.Contains(err.Error(), "no token is given") {
		t.Errorf("the first time: %v", err)
	}
	before := joined(t, cfg.Dir, time.Now().Add(-time.Minute))
	if _, err := Join(t.Context(), cfg); !IsPermanent(err) || !strings.Contains(err.Error(), "expired while it was off") {
		t.Errorf("with a certificate that has expired: %v", err)
	}
	// Its old key proves that the name is its own.
	old, err := before.store.Current()
	if err != nil {
		t.Fatal(err)
	}
	key, err := before.key()
	if err != nil || !key.Equal(old.PrivateKey) {
		t.Errorf("the next request is made with another key: %v", err)
	}
}

func TestKeyOfARequestOutlivesACrash(t *testing.T) {
	dir := t.TempDir()
	first, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	key, err := first.key()
	if err != nil {
		t.Fatal(err)
	}
	again, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := again.key(); err != nil || !second.Equal(key) {
		t.Errorf("the attempt after a crash has another key: %v", err)
	}
	if err := os.WriteFile(again.path(keyFile), []byte("-----BEGIN EC PRI"), 0o600); err != nil {
		t.Fatal(err)
	}
	if third, err := again.key(); err != nil || third.Equal(key) {
		t.Errorf("a torn key: %v", err)
	}
}

func TestRefusalsOfAServerThatStartsAreWaitedOut(t *testing.T) {
	now := time.Now()
	cfg := nobody(t)
	cfg.Await = func(context.Context) error { return nil }
	cfg.Now = func() time.Time { return now }
	unknown := apierrors.NewUnauthorized("Unauthorized")

	tries := 0
	err := cfg.until(t.Context(), func() error {
		if tries++; tries < 3 {
			return unknown
		}
		return nil
	})
	if err != nil || tries != 3 {
		t.Errorf("a server that learned its tokens late: %d tries, %v", tries, err)
	}
	err = cfg.until(t.Context(), func() error { now = now.Add(patience); return unknown })
	if !IsPermanent(err) || !strings.Contains(err.Error(), "does not know the token") {
		t.Errorf("a token that stays unknown: %v", err)
	}
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "configmaps"}, ClusterName, errors.New("no"))
	err = cfg.until(t.Context(), func() error { now = now.Add(patience); return forbidden })
	if !IsPermanent(err) || !strings.Contains(err.Error(), "may not join nodes") {
		t.Errorf("a token without a role: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	err = cfg.until(ctx, func() error { cancel(errors.New("told to end")); return errors.New("no route") })
	if err == nil || !strings.Contains(err.Error(), "told to end") {
		t.Errorf("when told to end: %v", err)
	}
}

func TestWhatNodesAreToldIsReadAsItWasWritten(t *testing.T) {
	id := joined(t, t.TempDir(), time.Now().Add(time.Hour))
	data, err := id.Cluster.Data()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseCluster(data)
	if err != nil || got.ClusterCIDR != id.Cluster.ClusterCIDR || got.ClientCA != "pem" {
		t.Errorf("%+v, %v", got, err)
	}
	for what, data := range map[string]map[string]string{
		"nothing": {}, "no JSON": {clusterKey: "{"}, "no ranges": {clusterKey: "{}"},
	} {
		if _, err := ParseCluster(data); err == nil || !strings.Contains(err.Error(), ClusterName) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
