package membership

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// world is an API server that keeps objects, with Membership at work on it.
type world struct {
	*testing.T
	*fake.Clientset
	m     *Membership
	ca    *authority
	certs Certificates
	// ready is closed when the present Run is.
	ready <-chan struct{}
	stop  func()

	watches chan struct{}
	serial  atomic.Int64
}

// newWorld has the objects from before the start; start it.
func newWorld(t *testing.T, objects ...runtime.Object) *world {
	w := &world{T: t, Clientset: fake.NewClientset(objects...), ca: newAuthority(t, "client-ca"), watches: make(chan struct{}, 100)}
	// What an API server does and the fake one does not.
	w.PrependReactor("create", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if create, ok := a.(clienttesting.CreateAction); ok {
			if o, err := meta.Accessor(create.GetObject()); err == nil && o.GetUID() == "" {
				o.SetUID(types.UID(fmt.Sprintf("uid-%d", w.serial.Add(1))))
				o.SetCreationTimestamp(metav1.Now())
			}
		}
		return false, nil, nil
	})
	w.PrependWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
		i, err := w.Tracker().Watch(a.GetResource(), a.GetNamespace())
		w.watches <- struct{}{}
		return true, i, err
	})
	serving := newAuthority(t, "server-ca")
	w.certs = Certificates{
		ClientCAs: []*x509.Certificate{w.ca.cert},
		Serving: serving.sign(t, &x509.Certificate{
			Subject:  pkix.Name{CommonName: "kube-apiserver"},
			DNSNames: []string{"kubernetes.default.svc", "localhost", "server", "*.api.example.org"}, IPAddresses: []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP("192.0.2.1")},
		}, newKey(t)),
		Own: []*x509.Certificate{w.ca.node(t, "server", newKey(t))},
	}
	w.m = New(Config{
		Client:       func() (kubernetes.Interface, error) { return w.Clientset, nil },
		Certificates: func() Certificates { return w.certs },
		Log:          slog.New(slog.DiscardHandler),
	})
	return w
}

// start runs Membership until stop, or the end of the test.
func (w *world) start() *world {
	ctx, cancel := context.WithCancel(w.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- w.m.Run(ctx, ready) }()
	w.ready = ready
	stopped := false
	w.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			w.Errorf("run: %v", err)
		}
	}
	w.Cleanup(w.stop)
	<-ready
	// The fake one forgets what happens between a list and its watch.
	for range 3 {
		<-w.watches
	}
	return w
}

var (
	configMaps = corev1.SchemeGroupVersion.WithResource("configmaps")
	requests   = certificatesv1.SchemeGroupVersion.WithResource("certificatesigningrequests")
)

// follow begins to watch, and returns what waits until it has seen enough.
func (w *world) follow(what schema.GroupVersionResource, ns string, enough func(watch.Event) bool) (wait func()) {
	w.Helper()
	i, err := w.Tracker().Watch(what, ns)
	if err != nil {
		w.Fatal(err)
	}
	return func() {
		defer i.Stop()
		late := time.After(10 * time.Second)
		for {
			select {
			case e := <-i.ResultChan():
				if enough(e) {
					return
				}
			case <-late:
				w.Fatalf("%s: what is waited for did not happen", what.Resource)
			}
		}
	}
}

func (w *world) record(node string) *record {
	w.Helper()
	cm, err := w.CoreV1().ConfigMaps(namespace).Get(w.Context(), recordName(node), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		w.Fatal(err)
	}
	rec, err := readRecord(cm)
	if err != nil {
		w.Fatal(err)
	}
	return &rec
}

// sees has a node register, or change its addresses.
func (w *world) sees(n *corev1.Node) *corev1.Node {
	w.Helper()
	made, err := w.CoreV1().Nodes().Create(w.Context(), n, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		made, err = w.CoreV1().Nodes().Update(w.Context(), n, metav1.UpdateOptions{})
	}
	if err != nil {
		w.Fatal(err)
	}
	return made
}

func (w *world) deleteNode(name string) {
	w.Helper()
	if err := w.CoreV1().Nodes().Delete(w.Context(), name, metav1.DeleteOptions{}); err != nil {
		w.Fatal(err)
	}
}

// writes are the changing requests so far.
func (w *world) writes() (all []string) {
	for _, a := range w.Actions() {
		if v := a.GetVerb(); v != "get" && v != "list" && v != "watch" {
			all = append(all, v+" "+a.GetResource().Resource)
		}
	}
	return all
}

// ask is what a machine asks with.
type ask struct {
	object  string // the request's name; default: made of the rest
	subject pkix.Name
	key     *ecdsa.PrivateKey
	dns     []string
	ips     []string
	emails  []string
	uris    []*url.URL

	signer     string
	usages     []certificatesv1.KeyUsage
	user       string
	groups     []string
	credential string
	// text stands in for the PEM.
	text []byte
}

func subjectOf(node string) pkix.Name {
	return pkix.Name{CommonName: nodePrefix + node, Organization: []string{nodesGroup}}
}

// byToken is what a machine that joins asks for.
func byToken(node string, key *ecdsa.PrivateKey) ask {
	return ask{
		subject: subjectOf(node), key: key, signer: clientSigner,
		usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
		user:   "system:bootstrap:abc123", groups: []string{"system:bootstrappers", "system:authenticated"},
	}
}

// byItself is the same of a node that has the certificate.
func byItself(node string, key *ecdsa.PrivateKey, cert *x509.Certificate) ask {
	a := byToken(node, key)
	a.user, a.groups, a.credential = nodePrefix+node, []string{nodesGroup, "system:authenticated"}, idOf(cert)
	return a
}

// toServe is what a node asks for that serves under names and addresses.
func toServe(node string, key *ecdsa.PrivateKey, cert *x509.Certificate, dns, ips []string) ask {
	a := byItself(node, key, cert)
	a.signer, a.usages[1], a.dns, a.ips = servingSigner, certificatesv1.UsageServerAuth, dns, ips
	return a
}

var asked atomic.Int64

func (a ask) request(t *testing.T) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	template := &x509.CertificateRequest{Subject: a.subject, DNSNames: a.dns, EmailAddresses: a.emails, URIs: a.uris}
	for _, ip := range a.ips {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(ip))
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, a.key)
	if err != nil {
		t.Fatal(err)
	}
	csr := &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: a.object},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), SignerName: a.signer, Usages: a.usages,
			Username: a.user, Groups: a.groups, Extra: map[string]certificatesv1.ExtraValue{"authentication.kubernetes.io/credential-id": {a.credential}},
		},
	}
	if a.text != nil {
		csr.Spec.Request = a.text
	}
	if csr.Name == "" {
		csr.Name = fmt.Sprintf("csr-%d", asked.Add(1))
	}
	return csr
}

// asks posts the request and returns its name.
func (w *world) asks(a ask) string {
	w.Helper()
	csr, err := w.CertificatesV1().CertificateSigningRequests().Create(w.Context(), a.request(w.T), metav1.CreateOptions{})
	if err != nil {
		w.Fatal(err)
	}
	return csr.Name
}

const (
	approved = "approved"
	pending  = "pending"
	gone     = "gone"
)

// answer is approved, pending, gone, or why the request was denied.
func (w *world) answer(csr string) string {
	w.Helper()
	now, err := w.CertificatesV1().CertificateSigningRequests().Get(w.Context(), csr, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return gone
	}
	if err != nil {
		w.Fatal(err)
	}
	return answerOf(now)
}

func answerOf(csr *certificatesv1.CertificateSigningRequest) string {
	all := csr.Status.Conditions
	switch {
	case len(all) == 0:
		return pending
	case all[0].Type == certificatesv1.CertificateApproved:
		return approved
	}
	return all[0].Message
}

func nodeAt(name string, addresses ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("node-" + name)}}
	for _, a := range addresses {
		kind := corev1.NodeInternalIP
		if net.ParseIP(a) == nil {
			kind = corev1.NodeHostName
		}
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: kind, Address: a})
	}
	return n
}

// recordOf is the record of a node that has joined and registered.
func recordOf(t *testing.T, node string, uid types.UID, certs ...*x509.Certificate) *corev1.ConfigMap {
	t.Helper()
	rec := record{Node: node, UID: uid, Since: time.Now().UTC().Truncate(time.Second)}
	for _, c := range certs {
		rec.Credentials = append(rec.Credentials, credential{Key: keyOf(c), ID: idOf(c), NotAfter: c.NotAfter})
	}
	cm, err := rec.configMap()
	if err != nil {
		t.Fatal(err)
	}
	cm.UID = types.UID("record-" + node)
	return cm
}

func idOf(c *x509.Certificate) string { return fmt.Sprintf("X509SHA256=%x", sha256.Sum256(c.Raw)) }

func keyOf(c *x509.Certificate) string {
	return fmt.Sprintf("%x", sha256.Sum256(c.RawSubjectPublicKeyInfo))
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	a.cert = &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.cert = a.sign(t, a.cert, a.key)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) sign(t testing.TB, template *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = serial
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(24*time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// node signs what a node shows to the API server.
func (a *authority) node(t testing.TB, name string, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	return a.sign(t, &x509.Certificate{Subject: subjectOf(name), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, key)
}
