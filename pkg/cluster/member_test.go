package cluster

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/certificate/csr"
	"k8s.io/client-go/util/keyutil"

	"github.com/knarr-dev/knarr/pkg/join"
	"github.com/knarr-dev/knarr/pkg/token"
)

// controlPlane runs a control plane without a node, on loopback.
func controlPlane(t *testing.T) *Cluster {
	t.Helper()
	c, err := New(Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Ready():
	case err := <-c.Err():
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatalf("%+v", c.Group().Status())
	}
	return c
}

// machine is what joins: nothing but what is in a token.
type machine struct {
	*testing.T
	token token.Token
	rest  *rest.Config
}

// meets finds the authority in the handshake, and trusts it for its hash.
func meets(t *testing.T, address, tokenFile string) machine {
	t.Helper()
	text, err := os.ReadFile(tokenFile)
	if err != nil {
		t.Fatal(err)
	}
	m := machine{T: t}
	if m.token, err = token.Parse(string(text)); err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	chain := conn.ConnectionState().PeerCertificates
	i := slices.IndexFunc(chain, func(c *x509.Certificate) bool { return token.HashCA(c.Raw) == m.token.CAHash })
	if i < 0 {
		t.Fatalf("none of %d certificates is that of the token", len(chain))
	}
	m.rest = &rest.Config{Host: "https://" + address, QPS: -1, TLSClientConfig: rest.TLSClientConfig{
		CAData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[i].Raw}),
	}}
	return m
}

func (m machine) withToken() kubernetes.Interface {
	c := rest.CopyConfig(m.rest)
	c.BearerToken = m.token.Bootstrap()
	return m.client(c)
}

func (m machine) withKey(cert []byte, key *ecdsa.PrivateKey) kubernetes.Interface {
	m.Helper()
	c := rest.CopyConfig(m.rest)
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		m.Fatal(err)
	}
	c.CertData, c.KeyData = cert, keyPEM
	return m.client(c)
}

func (m machine) client(c *rest.Config) kubernetes.Interface {
	m.Helper()
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		m.Fatal(err)
	}
	return client
}

func (m machine) key() *ecdsa.PrivateKey {
	m.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.Fatal(err)
	}
	return key
}

// asks requests a certificate as client-go's manager does.
func (m machine) asks(client kubernetes.Interface, signer string, template *x509.CertificateRequest, key crypto.Signer) ([]byte, error) {
	m.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		m.Fatal(err)
	}
	usage := certificatesv1.UsageClientAuth
	if signer == certificatesv1.KubeletServingSignerName {
		usage = certificatesv1.UsageServerAuth
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	name, uid, err := csr.RequestCertificateWithContext(m.Context(), client, text, "", signer, nil, []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, usage}, key)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(m.Context(), 20*time.Second)
	defer cancel()
	return csr.WaitForCertificate(ctx, client, name, uid)
}

func subjectOf(node string) pkix.Name {
	return pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}
}

// TestAMachineJoinsAndLeavesOverTheRealAPI: by nothing but the file node-token,
// which an administrator carries over.
func TestAMachineJoinsAndLeavesOverTheRealAPI(t *testing.T) {
	c := controlPlane(t)
	admin, err := kubernetes.NewForConfig(c.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	m := meets(t, strings.TrimPrefix(c.Host(), "https://"), filepath.Join(c.cfg.Config.ServerDir(), "node-token"))
	ctx := t.Context()

	// What the token is good for, and what not.
	bearer := m.withToken()
	if got := readCluster(t, ctx, bearer); got.ClientCA != string(c.pki().ClientCA.CertPEM) {
		t.Errorf("it is told %+v", got)
	}
	if _, err := bearer.CoreV1().Secrets("kube-system").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a token lists Secrets: %v", err)
	}
	if _, err := bearer.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a token lists Nodes: %v", err)
	}
	if _, err := m.asks(bearer, certificatesv1.KubeAPIServerClientKubeletSignerName, &x509.CertificateRequest{Subject: subjectOf("control-plane")}, m.key()); err == nil {
		t.Error("it gets the name of the server")
	}

	// It becomes a node.
	began := time.Now()
	key := m.key()
	cert, err := m.asks(bearer, certificatesv1.KubeAPIServerClientKubeletSignerName, &x509.CertificateRequest{Subject: subjectOf("edge-1")}, key)
	if err != nil {
		t.Fatal(err)
	}
	node := m.withKey(cert, key)
	if got := readCluster(t, ctx, node); got.Version == "" {
		t.Errorf("a node is told %+v", got)
	}
	edge, err := node.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "edge-1"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// As a kubelet does: controllers write to the Node meanwhile.
	patch := `{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.7"},{"type":"Hostname","address":"edge-1"}]}}`
	if _, err := node.CoreV1().Nodes().Patch(ctx, "edge-1", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	servingKey := m.key()
	serving, err := m.asks(node, certificatesv1.KubeletServingSignerName, &x509.CertificateRequest{
		Subject: subjectOf("edge-1"), DNSNames: []string{"edge-1"}, IPAddresses: []net.IP{net.ParseIP("192.0.2.7")},
	}, servingKey)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("joined, registered and serving after %v", time.Since(began).Round(time.Millisecond))
	verifies(t, serving, c.pki().ServerCA.Cert, "192.0.2.7")
	if _, err := m.asks(node, certificatesv1.KubeletServingSignerName, &x509.CertificateRequest{
		Subject: subjectOf("edge-1"), DNSNames: []string{"kubernetes.default.svc"},
	}, servingKey); err == nil {
		t.Error("it may serve as the API server")
	}
	_, err = node.CoordinationV1().Leases("kube-node-lease").Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
		Name: "edge-1", OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "edge-1", UID: edge.UID}},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Error(err)
	}
	staysWithinItsOwn(t, admin, node)

	// It rotates.
	nextKey := m.key()
	next, err := m.asks(node, certificatesv1.KubeAPIServerClientKubeletSignerName, &x509.CertificateRequest{Subject: subjectOf("edge-1")}, nextKey)
	if err != nil {
		t.Fatal(err)
	}
	rotated := m.withKey(next, nextKey)
	if _, err := rotated.CoreV1().Nodes().Get(ctx, "edge-1", metav1.GetOptions{}); err != nil {
		t.Errorf("rotated: %v", err)
	}
	if _, err := m.asks(bearer, certificatesv1.KubeAPIServerClientKubeletSignerName, &x509.CertificateRequest{Subject: subjectOf("edge-1")}, m.key()); err == nil {
		t.Error("another machine gets its name")
	}

	// It is deleted.
	open, err := rotated.CoreV1().Services("").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := admin.CoreV1().Nodes().Delete(ctx, "edge-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	ends(t, open)
	for name, client := range map[string]kubernetes.Interface{"first": node, "second": rotated, "a copy": m.withKey(next, nextKey)} {
		if _, err := client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "edge-1"}}, metav1.CreateOptions{}); !join.IsRefused(err) {
			t.Errorf("deleted, with its %s certificate: %v", name, err)
		}
	}
	leavesNothing(t, admin)

	// And joins anew.
	anewKey := m.key()
	anew, err := m.asks(bearer, certificatesv1.KubeAPIServerClientKubeletSignerName, &x509.CertificateRequest{Subject: subjectOf("edge-1")}, anewKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.withKey(anew, anewKey).CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "edge-1"}}, metav1.CreateOptions{}); err != nil {
		t.Errorf("joined anew: %v", err)
	}
	if _, err := rotated.CoreV1().Nodes().Get(ctx, "edge-1", metav1.GetOptions{}); !join.IsRefused(err) {
		t.Errorf("joined anew, with an old certificate: %v", err)
	}
}

// staysWithinItsOwn: what its kubelet, kube-proxy, flannel and DNS need a node
// can do, and nothing of others.
func staysWithinItsOwn(t *testing.T, admin, node kubernetes.Interface) {
	t.Helper()
	ctx := t.Context()
	if _, err := admin.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "other"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	all := metav1.ListOptions{}
	core := node.CoreV1()
	_, services := core.Services("").List(ctx, all)
	_, nodes := core.Nodes().List(ctx, all)
	_, namespaces := core.Namespaces().List(ctx, all)
	_, slices := node.DiscoveryV1().EndpointSlices("").List(ctx, all)
	_, cidrs := node.NetworkingV1().ServiceCIDRs().List(ctx, all)
	_, annotates := core.Nodes().Patch(ctx, "edge-1", types.MergePatchType, []byte(`{"metadata":{"annotations":{"flannel.alpha.coreos.com/public-ip":"192.0.2.7"}}}`), metav1.PatchOptions{})
	for what, err := range map[string]error{"services": services, "nodes": nodes, "namespaces": namespaces, "endpointslices": slices, "servicecidrs": cidrs, "annotations": annotates} {
		if err != nil {
			t.Errorf("a node needs %s: %v", what, err)
		}
	}
	_, secrets := core.Secrets("").List(ctx, all)
	_, secret := core.Secrets("kube-system").Get(ctx, "bootstrap-token-abc123", metav1.GetOptions{})
	_, record := core.ConfigMaps("kube-system").Get(ctx, "knarr-node.edge-1", metav1.GetOptions{})
	_, label := core.Nodes().Patch(ctx, "edge-1", types.MergePatchType, []byte(`{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":"true"}}}`), metav1.PatchOptions{})
	_, other := core.Nodes().Patch(ctx, "other", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{})
	deleted := core.Nodes().Delete(ctx, "other", metav1.DeleteOptions{})
	_, made := core.Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "third"}}, metav1.CreateOptions{})
	request, err := node.CertificatesV1().CertificateSigningRequests().List(ctx, all)
	if err != nil || len(request.Items) == 0 {
		t.Fatalf("requests: %v", err)
	}
	_, approval := node.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, request.Items[0].Name, &request.Items[0], metav1.UpdateOptions{})
	for what, err := range map[string]error{
		"Secrets": secrets, "a token": secret, "its record": record, "the label of a control plane": label,
		"another Node": other, "the end of another Node": deleted, "a Node of another name": made, "an approval": approval,
	} {
		if !apierrors.IsForbidden(err) || join.IsRefused(err) {
			t.Errorf("a node gets %s: %v", what, err)
		}
	}
}

func verifies(t *testing.T, certPEM []byte, by *x509.Certificate, name string) {
	t.Helper()
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(by)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		t.Error(err)
	}
}

func ends(t *testing.T, w watch.Interface) {
	t.Helper()
	late := time.After(10 * time.Second)
	for {
		select {
		case _, open := <-w.ResultChan():
			if !open {
				return
			}
		case <-late:
			t.Fatal("the watch of a deleted node goes on")
		}
	}
}

// leavesNothing waits until all that a node had is gone.
func leavesNothing(t *testing.T, admin kubernetes.Interface) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	w, err := admin.CertificatesV1().CertificateSigningRequests().Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for {
		var left error
		requests, err := admin.CertificatesV1().CertificateSigningRequests().List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range requests.Items {
			approved := slices.ContainsFunc(r.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool {
				return c.Type == certificatesv1.CertificateApproved
			})
			if approved || strings.HasPrefix(r.Spec.Username, "system:node:") {
				left = errors.Join(left, errors.New("request "+r.Name+" of "+r.Spec.Username))
			}
		}
		if left == nil {
			break
		}
		select {
		case <-w.ResultChan():
		case <-ctx.Done():
			t.Fatalf("left behind: %v", left)
		}
	}
	if _, err := admin.CoordinationV1().Leases("kube-node-lease").Get(ctx, "edge-1", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("its lease: %v", err)
	}
	if _, err := admin.CoreV1().ConfigMaps("kube-system").Get(ctx, "knarr-node.edge-1", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("its record: %v", err)
	}
}
