package peers

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// authority vouches for nodes.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clients"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, file: filepath.Join(t.TempDir(), "ca.pem")}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) issue(t *testing.T, name string, groups ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name, Organization: groups},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) node(t *testing.T, name string) tls.Certificate {
	t.Helper()
	return a.issue(t, "system:node:"+name, "system:nodes")
}

// shelf is a store: blobs by the names of images, and of repositories with a digest.
type shelf map[string][]byte

func (s shelf) get(name string) (ocispec.Descriptor, error) {
	b, ok := s[name]
	if !ok {
		return ocispec.Descriptor{}, errdefs.ErrNotFound
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(b), Size: int64(len(b))}, nil
}

func (s shelf) Tag(_ context.Context, name string) (ocispec.Descriptor, error) { return s.get(name) }

func (s shelf) Part(_ context.Context, repository string, d digest.Digest) (ocispec.Descriptor, error) {
	return s.get(repository + "@" + d.String())
}

func (s shelf) Open(_ context.Context, d ocispec.Descriptor) (io.ReadSeekCloser, error) {
	for _, b := range s {
		if digest.FromBytes(b) == d.Digest {
			return struct {
				io.ReadSeeker
				io.Closer
			}{bytes.NewReader(b), io.NopCloser(nil)}, nil
		}
	}
	return nil, errdefs.ErrNotFound
}

// town is a cluster.
type town struct {
	t  *testing.T
	ca *authority

	mu    sync.Mutex
	nodes []Node
}

func (c *town) list(context.Context) ([]Node, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.nodes), nil
}

// add has a node serve what it has, and makes it a member.
func (c *town) add(name string, cert tls.Certificate, has shelf) *Peers {
	c.t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	p := New(Config{
		Name: name, Listen: addr, Nodes: c.list, Store: has,
		Certificate: func() (*tls.Certificate, error) { return &cert, nil },
		ClientCA:    func() string { return c.ca.file },
		Shared:      func(registry string) bool { return registry == "docker.io" },
	})
	ctx, stop := context.WithCancel(c.t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- p.Run(ctx, ready) }()
	c.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			c.t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		c.t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes = append(c.nodes, Node{Name: name, Addr: netip.MustParseAddrPort(addr)})
	return p
}

// get returns what an answer has, or its status.
func get(t *testing.T, by http.RoundTripper, method, path string) (string, *http.Response) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+Host+path+"?ns=spoofed.example.org", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer for-the-registry")
	resp, err := by.RoundTrip(req)
	if err != nil {
		return err.Error(), nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		return resp.Status, resp
	}
	return string(body), resp
}

func TestImagesAreHadFromTheNodeThatHasThem(t *testing.T) {
	c := &town{t: t, ca: newAuthority(t)}
	manifest, layer, private := []byte("manifest"), []byte("layer"), []byte("private")
	d := func(b []byte) string { return digest.FromBytes(b).String() }
	me := c.add("me", c.ca.node(t, "me"), shelf{})
	c.add("empty", c.ca.node(t, "empty"), shelf{})
	c.add("full", c.ca.node(t, "full"), shelf{
		"docker.io/library/app:1":                 manifest,
		"docker.io/library/app@" + d(manifest):    manifest,
		"docker.io/library/app@" + d(layer):       layer,
		"elsewhere.example.org/app:1":             private,
		"elsewhere.example.org/app@" + d(private): private,
	})
	c.nodes = append(c.nodes, Node{Name: "asleep"})

	pull := me.Pull("docker.io")
	_, head := get(t, pull, http.MethodHead, "/v2/library/app/manifests/1")
	if head.StatusCode != http.StatusOK || head.Header.Get("Docker-Content-Digest") != d(manifest) ||
		head.Header.Get("Content-Type") != ocispec.MediaTypeImageManifest || head.ContentLength != int64(len(manifest)) {
		t.Errorf("HEAD by tag: %v", head)
	}
	for _, want := range []struct{ path, body string }{
		{"/v2/library/app/manifests/" + d(manifest), "manifest"},
		{"/v2/library/app/blobs/" + d(layer), "layer"},
	} {
		if got, _ := get(t, pull, http.MethodGet, want.path); got != want.body {
			t.Errorf("%s: %s", want.path, got)
		}
	}
	// What nobody has ends the search for the rest.
	for range 2 {
		if got, _ := get(t, pull, http.MethodGet, "/v2/library/app/blobs/"+d(private)); got != "404 Not Found" {
			t.Errorf("a blob of another image: %s", got)
		}
	}
	if got, _ := get(t, me.Pull("elsewhere.example.org"), http.MethodGet, "/v2/app/manifests/1"); got != "404 Not Found" {
		t.Errorf("an image of a registry that is not shared: %s", got)
	}
	if got, _ := get(t, me.Pull("docker.io"), http.MethodDelete, "/v2/library/app/manifests/1"); got != "404 Not Found" {
		t.Errorf("DELETE: %s", got)
	}
}

func TestOnlyNodesOfTheClusterAreAnsweredAndBelieved(t *testing.T) {
	manifest := shelf{"docker.io/app:1": []byte("manifest")}
	for name, certs := range map[string]func(ca *authority) (asks, has tls.Certificate){
		"an administrator asks": func(ca *authority) (_, _ tls.Certificate) {
			return ca.issue(t, "admin", "system:masters"), ca.node(t, "full")
		},
		"another cluster's node asks": func(ca *authority) (_, _ tls.Certificate) { return newAuthority(t).node(t, "me"), ca.node(t, "full") },
		"a deleted node asks":         func(ca *authority) (_, _ tls.Certificate) { return ca.node(t, "gone"), ca.node(t, "full") },
		"a user calls itself so": func(ca *authority) (_, _ tls.Certificate) {
			return ca.issue(t, "system:node:me", "devs"), ca.node(t, "full")
		},
		"another node answers": func(ca *authority) (_, _ tls.Certificate) { return ca.node(t, "me"), ca.node(t, "other") },
		"a stranger answers":   func(ca *authority) (_, _ tls.Certificate) { return ca.node(t, "me"), newAuthority(t).node(t, "full") },
	} {
		t.Run(name, func(t *testing.T) {
			c := &town{t: t, ca: newAuthority(t)}
			asks, has := certs(c.ca)
			me := c.add("me", asks, shelf{})
			c.add("full", has, manifest)
			if got, _ := get(t, me.Pull("docker.io"), http.MethodGet, "/v2/app/manifests/1"); got != "404 Not Found" {
				t.Errorf("answered with %s", got)
			}
		})
	}
}

func TestPathsOfTheProtocolAreRead(t *testing.T) {
	for path, want := range map[string]request{
		"/v2/library/app/manifests/1": {"docker.io", "library/app", "1", false},
		"/v2/app/blobs/sha256:aa":     {"docker.io", "app", "sha256:aa", true},
		"/v2/":                        {},
		"/v2/manifests/1":             {},
		"/v2/app/manifests/":          {},
		"/v2/app/manifests/a/b":       {},
		"/v2/app/tags/list":           {},
		"/metrics":                    {},
	} {
		got, ok := parse(path, "docker.io")
		if ok != (want != request{}) || ok && got != want {
			t.Errorf("%s: %+v, %v", path, got, ok)
		}
	}
	for _, registry := range []string{"", "docker.io/library"} {
		if _, ok := parse("/v2/app/manifests/1", registry); ok {
			t.Errorf("registry %q is taken", registry)
		}
	}
}
