package membership

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/pkg/join"
)

// serve has Handler stand before something that authenticates as the API server
// does, and answers every request, a watch without end.
func (w *world) serve() *httptest.Server {
	w.Helper()
	behind := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) > 0 {
			if err := verify(r.TLS.PeerCertificates[0], w.ca.cert); err != nil {
				http.Error(rw, "Unauthorized", http.StatusUnauthorized)
				return
			}
		}
		rw.Header().Set("Content-Type", "application/json")
		if isLong(r) {
			_ = http.NewResponseController(rw).Flush()
			<-r.Context().Done()
			return
		}
		_ = json.NewEncoder(rw).Encode(&corev1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "answer"}})
	})
	s := httptest.NewUnstartedServer(w.m.Handler(behind))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.EnableHTTP2 = true
	s.StartTLS()
	w.Cleanup(s.Close)
	return s
}

// client is client-go with a certificate.
func client(t *testing.T, s *httptest.Server, cert *x509.Certificate, key *ecdsa.PrivateKey, contentType string) kubernetes.Interface {
	t.Helper()
	cfg := &rest.Config{Host: s.URL, Timeout: 10 * time.Second, TLSClientConfig: rest.TLSClientConfig{
		CAData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}),
	}}
	if cert != nil {
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		cfg.CertData = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
		cfg.KeyData = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	}
	cfg.ContentType = contentType
	cfg.AcceptContentTypes = contentType + ",application/json"
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClientGoShowsWhyANodeIsRefused(t *testing.T) {
	w := newWorld(t)
	w.member("edge-2")
	w.start()
	s := w.serve()
	for node, want := range map[string]string{
		"edge-1": "node edge-1 is not a member of this cluster by this certificate: it was deleted, or has never joined; join anew with a token",
		"edge-2": "node edge-2 is not a member of this cluster by this certificate: another machine has its name",
	} {
		for _, contentType := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
			key := newKey(t)
			c := client(t, s, w.ca.node(t, node, key), key, contentType)
			_, get := c.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
			_, list := c.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
			_, watched := c.CoreV1().Pods("").Watch(t.Context(), metav1.ListOptions{})
			_, create := c.CoreV1().Nodes().Create(t.Context(), nodeAt(node), metav1.CreateOptions{})
			for what, err := range map[string]error{"get": get, "list": list, "watch": watched, "create": create} {
				if err == nil || !strings.Contains(err.Error(), want) || !join.IsRefused(err) || !apierrors.IsForbidden(err) {
					t.Errorf("%s of %s in %s: %v", what, node, contentType, err)
				}
			}
		}
	}
	if join.IsRefused(apierrors.NewForbidden(corev1.Resource("nodes"), "x", nil)) || join.IsRefused(errors.New("x")) || join.IsRefused(nil) {
		t.Error("other errors are taken for it")
	}
}

func TestACopyOfADeletedNodesKeyIsRefusedAtOnceAndItsWatchesEnd(t *testing.T) {
	w := newWorld(t).start()
	s := w.serve()
	key := newKey(t)
	decided := func(e watch.Event) bool {
		csr, ok := e.Object.(*certificatesv1.CertificateSigningRequest)
		// One that was approved before is deleted with its node.
		return ok && e.Type == watch.Modified && answerOf(csr) == approved
	}
	followed := w.follow(requests, "", decided)
	w.asks(byToken("edge-1", key))
	followed()
	cert := w.ca.node(t, "edge-1", key)
	c := client(t, s, cert, key, "application/json")
	registered := w.follow(configMaps, namespace, func(e watch.Event) bool {
		rec := w.record("edge-1")
		return rec.UID != "" && rec.hasID(idOf(cert))
	})
	if n, err := c.CoreV1().Nodes().Get(t.Context(), "edge-1", metav1.GetOptions{}); err != nil || n.Name != "answer" {
		t.Fatalf("a member: %v", err)
	}
	w.sees(nodeAt("edge-1"))
	registered()
	pods, err := c.CoreV1().Pods("").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer pods.Stop()

	w.deleteNode("edge-1")
	select {
	case e, open := <-pods.ResultChan():
		if open && e.Type != watch.Error {
			t.Errorf("%+v", e)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("its watch goes on")
	}
	// By now the connection it has open is of no use either.
	if _, err := c.CoreV1().Nodes().Get(t.Context(), "edge-1", metav1.GetOptions{}); !join.IsRefused(err) {
		t.Errorf("after it was deleted: %v", err)
	}
	if _, err := client(t, s, cert, key, "application/json").CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); !join.IsRefused(err) {
		t.Errorf("after it was deleted, with a copy: %v", err)
	}
	key2 := newKey(t)
	followed = w.follow(requests, "", decided)
	w.asks(byToken("edge-1", key2))
	followed()
	if _, err := client(t, s, w.ca.node(t, "edge-1", key2), key2, "application/json").CoreV1().Nodes().Get(t.Context(), "edge-1", metav1.GetOptions{}); err != nil {
		t.Errorf("joined anew: %v", err)
	}
	if _, err := c.CoreV1().Nodes().Get(t.Context(), "edge-1", metav1.GetOptions{}); !join.IsRefused(err) {
		t.Errorf("joined anew, with the old key: %v", err)
	}
}

func TestThoseWhoAreNoNodesAreNotAskedForARecord(t *testing.T) {
	w := newWorld(t) // not started: nothing is known
	s := w.serve()
	ownKey, key := newKey(t), newKey(t)
	w.certs.Own = []*x509.Certificate{w.ca.node(t, "server", ownKey)}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for name, c := range map[string]kubernetes.Interface{
		"nobody":                       client(t, s, nil, nil, "application/json"),
		"an administrator":             client(t, s, w.ca.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "system:admin", Organization: []string{"system:masters"}}, ExtKeyUsage: usage}, key), key, "application/json"),
		"the server's own node":        client(t, s, w.certs.Own[0], ownKey, "application/json"),
		"a node's name, another group": client(t, s, w.ca.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "system:node:edge-1", Organization: []string{"x"}}, ExtKeyUsage: usage}, key), key, "application/json"),
	} {
		if _, err := c.CoreV1().Nodes().Get(t.Context(), "x", metav1.GetOptions{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.start()
	// Another certificate for the name of the server's own node is not its.
	if _, err := client(t, s, w.ca.node(t, "server", key), key, "application/json").CoreV1().Nodes().Get(t.Context(), "x", metav1.GetOptions{}); !join.IsRefused(err) {
		t.Errorf("a second node of the server's name: %v", err)
	}
}

// Nobody learns from a certificate of his own making who is in the cluster.
func TestACertificateThatIsNotValidIsLeftToAuthentication(t *testing.T) {
	w := newWorld(t)
	cert := w.member("edge-1")
	w.start()
	s := w.serve()
	key := newKey(t)
	stranger := newAuthority(t, "client-ca")
	past := &x509.Certificate{Subject: subjectOf("edge-1"), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}
	server := &x509.Certificate{Subject: subjectOf("edge-1"), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for name, c := range map[string]*x509.Certificate{
		"of another authority, a member": stranger.node(t, "edge-1", key),
		"of another authority, nobody":   stranger.node(t, "edge-9", key),
		"expired":                        w.ca.sign(t, past, key),
		"to serve with":                  w.ca.sign(t, server, key),
	} {
		_, err := client(t, s, c, key, "application/json").CoreV1().Nodes().Get(t.Context(), "x", metav1.GetOptions{})
		if !apierrors.IsUnauthorized(err) || join.IsRefused(err) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := w.m.Admit(t.Context(), c); !errors.Is(err, errUnverified) {
			t.Errorf("%s, asked directly: %v", name, err)
		}
	}
	if _, err := w.m.Admit(t.Context(), w.ca.cert); err == nil {
		t.Error("a certificate of no node is admitted")
	}
	if _, err := w.m.Admit(t.Context(), cert); err != nil {
		t.Error(err)
	}
}

// One that the record knows is not a reason to let it in once it has expired.
func TestAKnownCertificateThatHasExpiredIsNotAdmitted(t *testing.T) {
	w := newWorld(t)
	key := newKey(t)
	past := w.ca.sign(t, &x509.Certificate{Subject: subjectOf("edge-1"), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}, key)
	for _, o := range []*corev1.ConfigMap{recordOf(t, "edge-1", "node-edge-1", past)} {
		if err := w.Tracker().Add(o); err != nil {
			t.Fatal(err)
		}
	}
	w.sees(nodeAt("edge-1"))
	w.start()
	if _, err := w.m.Admit(t.Context(), past); !errors.Is(err, errUnverified) {
		t.Errorf("%v", err)
	}
}

func TestRequestsOfNodesWaitForTheRecordsAtAStart(t *testing.T) {
	w := newWorld(t)
	cert := w.member("edge-1")
	reached := make(chan struct{}, 1)
	h := w.m.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached <- struct{}{} }))
	ask := func(ctx context.Context) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/api/v1/pods", nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		return rec
	}
	// One gives up first.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if rec := ask(ctx); rec.Code != http.StatusServiceUnavailable || rec.Header().Get("Retry-After") != "1" {
		t.Errorf("%d", rec.Code)
	}
	done := make(chan *httptest.ResponseRecorder)
	go func() { done <- ask(t.Context()) }()
	w.start()
	if rec := <-done; rec.Code != http.StatusOK || len(reached) != 1 {
		text, _ := io.ReadAll(rec.Body)
		t.Errorf("%d %s", rec.Code, text)
	}
}

func BenchmarkAdmit(b *testing.B) {
	roll, ca := newRoll(), newAuthority(b, "ca")
	var certs []*x509.Certificate
	for i := range 1000 {
		name := fmt.Sprintf("node-%d", i)
		c := ca.node(b, name, newKey(b))
		certs = append(certs, c)
		roll.set("uid", record{Node: name, Credentials: []credential{{Key: keyOf(c), ID: idOf(c)}}})
	}
	m := New(Config{Certificates: func() Certificates {
		return Certificates{ClientCAs: []*x509.Certificate{ca.cert}, Serving: ca.cert, Own: []*x509.Certificate{ca.cert}}
	}})
	m.roll.Store(roll)
	close(m.synced)
	h := m.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	r := httptest.NewRequest(http.MethodGet, "/api/v1/pods", nil)
	r.TLS = &tls.ConnectionState{PeerCertificates: make([]*x509.Certificate, 1)}
	w := httptest.NewRecorder()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		r.TLS.PeerCertificates[0] = certs[i%len(certs)]
		h.ServeHTTP(w, r)
	}
	if w.Code != http.StatusOK {
		b.Fatal(w.Code)
	}
}
