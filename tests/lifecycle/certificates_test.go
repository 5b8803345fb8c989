package lifecycle

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

var (
	leafLife = flag.Duration("life", 20*time.Second, "how long the server's certificates last in the test of their renewal")
	lives    = flag.Int("lives", 3, "how many of their lives that test lasts")
)

// TestCertificatesRenewThemselvesUnderLoad: several lives of every certificate
// that a server makes for itself, with requests, a watch, a pod and controllers
// at work all the time. Nothing restarts, and the client's one connection stays.
func TestCertificatesRenewThemselvesUnderLoad(t *testing.T) {
	n := harness.Start(t, harness.Options{Args: []string{"--leaf-lifetime=" + leafLife.String()}})
	dials := tokenClient(t, n)
	n.Create(t, "default", kube.Pod("web", kube.Serve("hello")))
	n.WaitPodRunning(t, "default", "web")
	before := n.Status(t)
	dialled := dials.Load()

	seen := map[string]bool{serial(t, n, "apiserver.pem"): true}
	w, err := n.Client.CoreV1().ConfigMaps("default").Watch(t.Context(), metav1.ListOptions{LabelSelector: "load=yes"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	wrote := 0
	// The pace of the load; each write is answered before the next, and has to be
	// seen by the watch.
	for pace := time.NewTicker(50 * time.Millisecond); len(seen) <= *lives; <-pace.C {
		c := kube.ConfigMap(fmt.Sprintf("load-%d", wrote), "k", "v")
		c.Labels = map[string]string{"load": "yes"}
		if _, err := n.Client.CoreV1().ConfigMaps("default").Create(t.Context(), c, metav1.CreateOptions{}); err != nil {
			t.Fatalf("write %d, after %d renewals: %v", wrote, len(seen)-1, err)
		}
		if e := <-w.ResultChan(); e.Type != watch.Added || e.Object.(metav1.Object).GetName() != c.Name {
			t.Fatalf("the watch ended or missed write %d, after %d renewals: %s", wrote, len(seen)-1, e.Type)
		}
		wrote++
		seen[serial(t, n, "apiserver.pem")] = true
	}
	if again := dials.Load() - dialled; again != 0 {
		t.Errorf("the client had to connect %d times more", again)
	}

	// Scheduler, controllers, kubelet and the API server's client of it.
	n.Create(t, "default", kube.Deployment("late", 1, kube.Serve("late")))
	n.WaitPods(t, "default", "app=late", 1)
	if out := n.Kubectl(t, "exec", "web", "--", "cat", "/etc/hostname"); strings.TrimSpace(out) != "web" {
		t.Errorf("exec: %q", out)
	}
	for port, file := range map[string]string{"6443": "apiserver.pem", "10250": "kubelet-serving.pem"} {
		n.WaitFor(t, "port "+port+" to show the certificate in "+file, func(ctx context.Context) (bool, error) {
			shown, err := shownSerial(ctx, n, port)
			return err == nil && shown == serial(t, n, file), err
		})
	}
	after := n.Status(t)
	if after.PID != before.PID {
		t.Error("the server was restarted")
	}
	for i, c := range after.Components {
		if !c.Since.Equal(before.Components[i].Since) || c.LastError != "" {
			t.Errorf("%s has been %s since %s: %s", c.Name, c.State, c.Since, c.LastError)
		}
	}
	if log := n.Log(t); strings.Contains(log, "could not be renewed") {
		t.Error("the log tells of failures")
	}
	t.Run("check", func(t *testing.T) { checkedCertificates(t, n) })
	t.Run("rotate", func(t *testing.T) { rotatedCertificates(t, n) })
	t.Run("rotate-service-account-key", func(t *testing.T) { rotatedTokenKey(t, n) })
}

// tokenClient gives the node a client whose credential does not end with a
// certificate, and counts its connections.
func tokenClient(t *testing.T, n *harness.Node) *atomic.Int64 {
	t.Helper()
	n.Kubectl(t, "create", "serviceaccount", "load")
	n.Kubectl(t, "create", "clusterrolebinding", "load", "--clusterrole=cluster-admin", "--serviceaccount=default:load")
	token := n.Kubectl(t, "create", "token", "load", "--duration=2h")
	cfg, err := clientcmd.BuildConfigFromFlags("", n.Host.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	dials := new(atomic.Int64)
	cfg = rest.AnonymousClientConfig(cfg)
	cfg.BearerToken, cfg.QPS = strings.TrimSpace(token), -1
	cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dials.Add(1)
		return n.Host.DialContext(ctx, network, address)
	}
	if n.Client, err = kubernetes.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	n.REST = cfg
	return dials
}

// serial is that of a certificate in the server's folder.
func serial(t *testing.T, n *harness.Node, file string) string {
	t.Helper()
	path := n.Host.Path(filepath.Join("/var/lib/knarr/server/tls", file))
	pair, err := tls.LoadX509KeyPair(path, path)
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf.SerialNumber.String()
}

func shownSerial(ctx context.Context, n *harness.Node, port string) (string, error) {
	c, err := n.Host.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return "", err
	}
	defer c.Close()
	s := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	if err := s.HandshakeContext(ctx); err != nil {
		return "", err
	}
	return s.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}

func checkedCertificates(t *testing.T, n *harness.Node) {
	var all []pki.Entry
	if err := json.Unmarshal([]byte(n.Exec(t, n.Exe, "certificate", "check", "-o", "json")), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 15 {
		t.Errorf("%d certificates", len(all))
	}
	for _, e := range all {
		if e.State != pki.StateValid && e.State != pki.StateDue {
			t.Errorf("%s is %s", e.File, e.State)
		}
		if life := e.NotAfter.Sub(e.NotBefore); e.Use != "authority" && life > 2*(*leafLife) {
			t.Errorf("%s lasts %s", e.File, life)
		}
	}
}

func rotatedCertificates(t *testing.T, n *harness.Node) {
	old, kubeconfig := serial(t, n, "admin.pem"), n.Host.Kubeconfig()
	n.Exec(t, n.Exe, "certificate", "rotate")
	if serial(t, n, "admin.pem") == old {
		t.Error("the certificate is the old one")
	}
	n.WaitFor(t, "the new certificate in the kubeconfig", func(context.Context) (bool, error) {
		text, err := os.ReadFile(kubeconfig)
		if err != nil {
			return false, err
		}
		cfg, err := clientcmd.RESTConfigFromKubeConfig(text)
		if err != nil {
			return false, err
		}
		pair, err := tls.X509KeyPair(cfg.CertData, cfg.KeyData)
		if err != nil {
			return false, err
		}
		return pair.Leaf.SerialNumber.String() != old, nil
	})
	n.Kubectl(t, "get", "nodes")
}

// rotatedTokenKey: a new key signs, tokens of the old one are good until it is
// dropped, and nothing is restarted for it.
func rotatedTokenKey(t *testing.T, n *harness.Node) {
	pid := n.Status(t).PID
	inPod := strings.TrimSpace(n.Kubectl(t, "exec", "web", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"))
	n.Apply(t, "default", tokenSecret("old"))
	inSecret := secretToken(t, n, "old")
	n.Exec(t, n.Exe, "certificate", "rotate-service-account-key")
	fresh := strings.TrimSpace(n.Kubectl(t, "create", "token", "default"))
	n.Apply(t, "default", tokenSecret("new"))
	for what, pair := range map[string][2]string{"asked for": {inPod, fresh}, "in a Secret": {inSecret, secretToken(t, n, "new")}} {
		if old, now := keyID(t, pair[0]), keyID(t, pair[1]); old == now {
			t.Errorf("a new token %s is of the old key %s", what, old)
		}
	}
	var published struct {
		Keys []struct{ Kid string } `json:"keys"`
	}
	jwks := func() []string {
		if err := json.Unmarshal([]byte(n.Kubectl(t, "get", "--raw", "/openid/v1/jwks")), &published); err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, k := range published.Keys {
			ids = append(ids, k.Kid)
		}
		return ids
	}
	n.WaitFor(t, "both keys to be published", func(context.Context) (bool, error) {
		ids := jwks()
		return len(ids) == 2 && slices.Contains(ids, keyID(t, inPod)) && slices.Contains(ids, keyID(t, fresh)), nil
	})
	accepted := func(token string) bool {
		r, err := n.Client.AuthenticationV1().TokenReviews().Create(t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status.Authenticated
	}
	for what, token := range map[string]string{"a pod's old": inPod, "a Secret's old": inSecret, "a new": fresh} {
		if !accepted(token) {
			t.Errorf("%s token is refused", what)
		}
	}

	// The client of this test is one of a token, too.
	n.Client = nil
	n.Connect(t)
	n.Exec(t, n.Exe, "certificate", "rotate-service-account-key", "--drop")
	n.WaitFor(t, "tokens of the old key to be refused", func(context.Context) (bool, error) {
		return !accepted(inPod) && !accepted(inSecret), nil
	})
	if !accepted(fresh) {
		t.Error("a token of the present key is refused")
	}
	n.WaitFor(t, "the old key to be published no more", func(context.Context) (bool, error) { return len(jwks()) == 1, nil })
	if n.Status(t).PID != pid {
		t.Error("the server was restarted")
	}
}

func tokenSecret(name string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Secret
type: kubernetes.io/service-account-token
metadata:
  name: %s
  annotations: {kubernetes.io/service-account.name: default}
`, name)
}

// secretToken waits for the token in a Secret.
func secretToken(t *testing.T, n *harness.Node, name string) string {
	t.Helper()
	var token string
	n.WaitFor(t, "the token in Secret "+name, func(ctx context.Context) (bool, error) {
		s, err := n.Client.CoreV1().Secrets("default").Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		token = string(s.Data["token"])
		return token != "", nil
	})
	return token
}

// keyID is the kid in a token's header.
func keyID(t *testing.T, token string) string {
	t.Helper()
	text, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[0])
	if err != nil {
		t.Fatal(err)
	}
	var header struct{ Kid string }
	if err := json.Unmarshal(text, &header); err != nil || header.Kid == "" {
		t.Fatalf("%s: %v", text, err)
	}
	return header.Kid
}
