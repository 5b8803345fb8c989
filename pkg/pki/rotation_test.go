package pki

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// reaches tells whether who trusts roots accepts what a server shows.
func reaches(t *testing.T, roots []byte, l *Leaf, now time.Time) error {
	t.Helper()
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		t.Fatal("no roots")
	}
	for _, der := range l.TLS.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(c)
	}
	_, err := l.TLS.Leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

func signedBy(l *Leaf, a *Authority) bool { return l.TLS.Leaf.CheckSignatureFrom(a.Cert) == nil }

func onlyCert(a *Authority) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: a.Cert.Raw})
}

func TestAuthoritiesAreReplacedWithAnOverlap(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	cfg := testConfig(t)
	cfg.Now = func() time.Time { return now }
	before := ensure(t, cfg)
	if err := FinishRotation(cfg.Dir); !errors.Is(err, ErrNoRotation) {
		t.Errorf("nothing to finish: %v", err)
	}
	if err := BeginRotation(cfg.Dir, "", now, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := BeginRotation(cfg.Dir, "", now, time.Time{}); err == nil || !strings.Contains(err.Error(), "has begun at 2026-11-28T12:00:00Z") {
		t.Errorf("a second one: %v", err)
	}
	during := ensure(t, cfg)
	for what, l := range map[string]*Leaf{"admin": during.Admin, "kubelet": during.Kubelet, "dns": during.DNS} {
		if !signedBy(l, during.ClientCA) || signedBy(l, before.ClientCA) {
			t.Errorf("%s is not of the new authority", what)
		}
	}
	if !signedBy(during.KubeletServing, during.ServerCA) {
		t.Error("the kubelet does not serve by the new authority")
	}
	for what, l := range map[string]*Leaf{"kubelets": during.APIServerToKubelet, "front proxy": during.FrontProxy} {
		if signedBy(l, during.ClientCA) || signedBy(l, during.RequestHeaderCA) {
			t.Errorf("%s could not know the authority yet", what)
		}
	}
	if !during.APIServer.TLS.Leaf.Equal(before.APIServer.TLS.Leaf) {
		t.Error("the API server's certificate was made anew without need")
	}
	for who, roots := range map[string][]byte{"the old authority": onlyCert(before.ServerCA), "the new one": onlyCert(during.ServerCA), "both": during.ServerCA.TrustPEM} {
		if err := reaches(t, roots, during.APIServer, now); err != nil {
			t.Errorf("who trusts %s does not reach the API server: %v", who, err)
		}
	}
	if again := ensure(t, cfg); len(again.Changes) > 0 {
		t.Errorf("a further start changed %q", again.Changes)
	}
	if !slices.EqualFunc(during.ClientCA.Trusted, []*x509.Certificate{during.ClientCA.Cert, before.ClientCA.Cert}, (*x509.Certificate).Equal) {
		t.Error("clients are trusted of other authorities than old and new")
	}

	if err := FinishRotation(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	after := ensure(t, cfg)
	if !after.ServerCA.Cert.Equal(during.ServerCA.Cert) || after.Leaving != nil {
		t.Error("the new authorities did not come into the place of the old")
	}
	if err := reaches(t, onlyCert(before.ServerCA), after.APIServer, now); err == nil {
		t.Error("who trusts the old authority still reaches the API server")
	}
	if err := reaches(t, after.ServerCA.TrustPEM, after.APIServer, now); err != nil || len(after.ServerCA.Trusted) != 1 {
		t.Errorf("%d authorities: %v", len(after.ServerCA.Trusted), err)
	}
	for what, l := range map[string]*Leaf{"admin": after.Admin, "kubelets": after.APIServerToKubelet} {
		if !signedBy(l, after.ClientCA) {
			t.Errorf("%s is not of the new authority", what)
		}
	}
	if !signedBy(after.FrontProxy, after.RequestHeaderCA) {
		t.Error("the front proxy is not of the new authority")
	}
	if hash := hashOf(before.ServerCA.CertPEM); len(after.Retired) != 3 || !slices.Contains(after.Retired, hash) {
		t.Errorf("retired are %q", after.Retired)
	}
	if first := FirstAuthority(cfg.Dir); first != hashOf(before.ServerCA.CertPEM) {
		t.Errorf("the first authority was %s", first)
	}
	if files, _ := os.ReadDir(filepath.Join(cfg.Dir, NextDir)); len(files) > 0 {
		t.Errorf("left: %v", files)
	}
	now = now.Add(time.Hour)
	if err := BeginRotation(cfg.Dir, "", now, time.Time{}); err != nil {
		t.Errorf("another rotation: %v", err)
	}
	ensure(t, cfg)
}

// A crash may come between any two writes; each state on disk that it can leave is
// found back from.
func TestARotationThatACrashCutOff(t *testing.T) {
	now := time.Now()
	t.Run("before it had begun", func(t *testing.T) {
		cfg := testConfig(t)
		before := ensure(t, cfg)
		if err := BeginRotation(cfg.Dir, "", now, time.Time{}); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(cfg.Dir, rotationFile)); err != nil {
			t.Fatal(err)
		}
		if after := ensure(t, cfg); !after.ServerCA.Cert.Equal(before.ServerCA.Cert) || after.Leaving != nil || exists(filepath.Join(cfg.Dir, NextDir)) {
			t.Error("it goes on")
		}
	})
	// The files that are in place when it comes, of those that are moved.
	for placed := range 7 {
		t.Run("after "+string(rune('0'+placed))+" of six files", func(t *testing.T) {
			cfg := testConfig(t)
			before := ensure(t, cfg)
			if err := BeginRotation(cfg.Dir, "", now, time.Time{}); err != nil {
				t.Fatal(err)
			}
			during := ensure(t, cfg)
			if err := FinishRotation(cfg.Dir); err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, name := range authorityNames {
				for _, file := range []string{name + ".key", name + ".crt"} {
					if n++; n > placed {
						continue
					}
					text, err := os.ReadFile(filepath.Join(cfg.Dir, NextDir, file))
					if err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(filepath.Join(cfg.Dir, file), text, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			// The hashes were written before.
			if placed > 0 {
				if err := os.WriteFile(filepath.Join(cfg.Dir, retiredFile), []byte(hashOf(before.ServerCA.CertPEM)+"\n"+hashOf(before.ClientCA.CertPEM)+"\n"+hashOf(before.RequestHeaderCA.CertPEM)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			after := ensure(t, cfg)
			if !after.ServerCA.Cert.Equal(during.ServerCA.Cert) || !after.RequestHeaderCA.Cert.Equal(during.RequestHeaderCA.Cert) || len(after.Retired) != 3 {
				t.Errorf("not all are new; retired are %q", after.Retired)
			}
			if err := reaches(t, after.ServerCA.TrustPEM, after.APIServer, now); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("a new authority is lost", func(t *testing.T) {
		cfg := testConfig(t)
		ensure(t, cfg)
		if err := BeginRotation(cfg.Dir, "", now, time.Time{}); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(cfg.Dir, NextDir, "client-ca.key")); err != nil {
			t.Fatal(err)
		}
		if _, err := Ensure(cfg); err == nil || !strings.Contains(err.Error(), "client-ca.key is missing, though a rotation has begun") {
			t.Errorf("%v", err)
		}
	})
}

func TestNewAuthoritiesMayBeTheUsersOwn(t *testing.T) {
	now := time.Now()
	cfg := testConfig(t)
	before := ensure(t, cfg)
	other := testConfig(t)
	theirs := ensure(t, other)
	if err := BeginRotation(cfg.Dir, cfg.Dir, now, time.Time{}); err == nil || !strings.Contains(err.Error(), "is the present authority") {
		t.Errorf("the present one: %v", err)
	}
	// One of a first start may sign leaves alone.
	if err := BeginRotation(cfg.Dir, other.Dir, now, time.Time{}); err == nil || !strings.Contains(err.Error(), "path length") {
		t.Errorf("one that may not vouch for the old one: %v", err)
	}
	if again := ensure(t, cfg); again.Leaving != nil || !again.ServerCA.Cert.Equal(before.ServerCA.Cert) {
		t.Error("a rotation that was refused has begun")
	}
	if err := os.Remove(filepath.Join(other.Dir, "server-ca.crt")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(other.Dir, "server-ca.key")); err != nil {
		t.Fatal(err)
	}
	if err := BeginRotation(cfg.Dir, other.Dir, now, time.Time{}); err != nil {
		t.Fatal(err)
	}
	p := ensure(t, cfg)
	if !p.ClientCA.Cert.Equal(theirs.ClientCA.Cert) || p.ServerCA.Cert.Equal(before.ServerCA.Cert) {
		t.Error("not the user's clients' authority, with one of ours beside it")
	}
}
