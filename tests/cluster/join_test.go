package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/pkg/ports"
	"github.com/knarr-dev/knarr/pkg/version"
	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestAgentsJoinAndLeave(t *testing.T) {
	server := harness.Start(t, harness.Options{Args: []string{"--backup-schedule=@daily"}})
	token := "KNARR_TOKEN=" + server.Token(t)
	agent := harness.Prepare(t, harness.Options{Join: server, Name: "edge-1", Env: []string{token}, Args: []string{"--node-label", "example.org/rack=7"}})
	ns := server.Namespace(t)
	t.Run("is asked for logs and the like the moment it is ready", func(t *testing.T) {
		ready := watchNodeReady(t, server, "edge-1")
		if err := agent.Launch(); err != nil {
			t.Fatal(err)
		}
		ready()
		began := time.Now()
		ask := func(ctx context.Context) error {
			return server.Client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/edge-1/proxy/healthz").Do(ctx).Error()
		}
		if first := ask(t.Context()); first != nil {
			server.WaitFor(t, "the kubelet's answer", func(ctx context.Context) (bool, error) { err := ask(ctx); return err == nil, err })
			t.Errorf("for %s after it was ready: %v", time.Since(began), first)
		}
	})
	agent.WaitReady(t)

	t.Run("listens where docs/ports.md says", func(t *testing.T) { agent.CheckPorts(t, ports.Agent) })
	t.Run("tells the metrics that contrib and docs speak of", func(t *testing.T) { knownMetrics(t, server, "edge-1") })
	t.Run("is a node with its labels", func(t *testing.T) {
		n, err := server.Client.CoreV1().Nodes().Get(t.Context(), "edge-1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if n.Labels["example.org/rack"] != "7" || n.Labels["node-role.kubernetes.io/control-plane"] != "" {
			t.Errorf("labels are %v", n.Labels)
		}
	})
	t.Run("runs pods that are looked into", func(t *testing.T) {
		server.Create(t, ns, kube.Pod("there", kube.On("edge-1"), kube.Serve("from the edge")))
		server.WaitPodRunning(t, ns, "there")
		if out := server.Kubectl(t, "exec", "-n", ns, "there", "--", "cat", "/etc/hostname"); strings.TrimSpace(out) != "there" {
			t.Errorf("exec: %q", out)
		}
		server.Kubectl(t, "logs", "-n", ns, "there")
	})
	t.Run("pods of both nodes reach each other by address, Service and name", func(t *testing.T) {
		server.Create(t, ns, kube.Service("there", kube.For("there"), kube.Port(80, 8080)),
			kube.Pod("here", kube.On("node"), kube.Serve("from the server")), kube.Service("here", kube.For("here"), kube.Port(80, 8080)))
		here := server.WaitPodRunning(t, ns, "here")
		there := server.WaitPodRunning(t, ns, "there")
		for _, c := range []struct{ from, url, want string }{
			{"here", "http://" + there.Status.PodIP + ":8080", "from the edge"},
			{"there", "http://" + here.Status.PodIP + ":8080", "from the server"},
			{"here", "http://there", "from the edge"},
			{"there", "http://here", "from the server"},
			{"there", "http://here." + ns + ".svc.cluster.local", "from the server"},
		} {
			out := server.Kubectl(t, "exec", "-n", ns, c.from, "--", "testbox", "get", "--retry", "30s", c.url)
			if !strings.Contains(out, c.want) {
				t.Errorf("%s asks %s: %q, not %q", c.from, c.url, out, c.want)
			}
		}
	})
	t.Run("packets of every kind and size arrive, with the address of their sender", func(t *testing.T) {
		server.Create(t, ns, kube.Pod("echo", kube.On("edge-1"), kube.Echo(9000)), kube.Service("echo", kube.For("echo"), kube.UDP(53, 9000)),
			kube.Pod("who", kube.On("edge-1"), kube.Serve("")))
		echo := server.WaitPodRunning(t, ns, "echo")
		who := server.WaitPodRunning(t, ns, "who")
		here := server.WaitPodRunning(t, ns, "here")
		for _, size := range []int{1, 1400, 1450, 1500, 9000} {
			text := strings.Repeat("x", size)
			for _, to := range []string{echo.Status.PodIP + ":9000", "echo:53"} {
				out := server.Kubectl(t, "exec", "-n", ns, "here", "--", "testbox", "send", "--retry", "20s", "udp", to, text)
				if strings.TrimSpace(out) != text {
					t.Errorf("%d bytes by UDP to %s: %d came back", size, to, len(out))
				}
			}
		}
		out := server.Kubectl(t, "exec", "-n", ns, "here", "--", "testbox", "get", "--retry", "20s", "http://"+who.Status.PodIP+":8080/remote")
		if !strings.Contains(out, here.Status.PodIP) {
			t.Errorf("%s is seen as %q", here.Status.PodIP, out)
		}
		harness.CopyFile(t, harness.Testbox(t), server.Host.Path("/root/testbox"), 0o755)
		if out := server.Exec(t, "/root/testbox", "get", "--retry", "20s", "http://"+who.Status.PodIP+":8080"); !strings.Contains(out, "who") {
			t.Errorf("the server's machine asks a pod of another node: %q", out)
		}
	})
	t.Run("of a version that does not fit is refused", func(t *testing.T) {
		stranger := harness.Prepare(t, harness.Options{Join: server, Name: "stranger", Images: []string{}, Env: []string{token}})
		say := func(version string) {
			was := server.Kubectl(t, "get", "configmap", "-n", "kube-system", "knarr-cluster", "-o", `jsonpath={.data.cluster\.json}`)
			now := regexp.MustCompile(`"version":"[^"]*"`).ReplaceAllString(was, `"version":"`+version+`"`)
			_, err := server.Client.CoreV1().ConfigMaps("kube-system").Patch(t.Context(), "knarr-cluster", types.MergePatchType,
				[]byte(`{"data":{"cluster.json":`+strconv.Quote(now)+`}}`), metav1.PatchOptions{})
			if err != nil {
				t.Fatal(err)
			}
		}
		defer say(version.Kubernetes)
		for says, server := range map[string]string{"must not be newer": "v1.35.9", "3 minor versions older at most": "v1.40.0"} {
			say(server)
			before := len(stranger.Log(t))
			if err := stranger.Launch(); err != nil {
				t.Fatal(err)
			}
			if err := stranger.Wait(t); err == nil || !strings.Contains(stranger.Log(t)[before:], says) {
				t.Errorf("servers of %s: %v\n%s", server, err, stranger.Log(t)[before:])
			}
		}
	})
	t.Run("restarts without a token, and its pods go on", func(t *testing.T) {
		before := server.WaitPodRunning(t, ns, "there").Status.ContainerStatuses[0].ContainerID
		agent.Env = nil
		agent.Restart(t)
		if after := server.WaitPodRunning(t, ns, "there").Status.ContainerStatuses[0].ContainerID; after != before {
			t.Errorf("the container was %s and is %s", before, after)
		}
	})
	t.Run("refuses another machine of its name", func(t *testing.T) {
		twin := harness.Prepare(t, harness.Options{Join: server, Name: "twin", Env: []string{token}, Args: []string{"--node-name", "edge-1"}})
		if err := twin.Launch(); err != nil {
			t.Fatal(err)
		}
		if err := twin.Wait(t); err == nil {
			t.Error("it ran")
		}
		if log := twin.Log(t); !strings.Contains(log, "kubectl delete node edge-1") {
			t.Errorf("it does not say how to free the name:\n%s", log)
		}
	})
	t.Run("may do what a node may, and no more", func(t *testing.T) { stolen(t, server, agent, ns) })
	t.Run("ends when its node is deleted, and joins anew with a token", func(t *testing.T) {
		saved := credential(t, server, agent)
		server.Kubectl(t, "delete", "node", "edge-1")
		err := agent.Wait(t)
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 3 {
			t.Errorf("it ended with %v, not exit code 3", err)
		}
		if log := agent.Log(t); !strings.Contains(log, "kubectl delete node") {
			t.Errorf("it does not say why it ended:\n%s", log)
		}
		// The agent hears of it a moment before the server has struck it off.
		server.WaitFor(t, "a saved credential of a deleted node to be refused", func(ctx context.Context) (bool, error) {
			_, err := saved.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
			if apierrors.IsForbidden(err) && strings.Contains(err.Error(), "join anew with a token") {
				return true, nil
			}
			return false, err
		})
		agent.Env = nil
		if err := agent.Launch(); err != nil {
			t.Fatal(err)
		}
		if err := agent.Wait(t); err == nil {
			t.Error("it joined again without a token")
		}
		agent.Env = []string{token}
		agent.Resume(t)
		if _, err := saved.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("a credential from before the deletion works again: %v", err)
		}
	})
}

// credential is a client that shows a copy of the node's certificate and key.
func credential(t *testing.T, server, agent *harness.Node) kubernetes.Interface {
	t.Helper()
	dir := "/var/lib/knarr/agent/identity/"
	pair := []byte(agent.Exec(t, "cat", dir+"node-client-current.pem"))
	if _, err := tls.X509KeyPair(pair, pair); err != nil {
		t.Fatal(err)
	}
	ca := []byte(agent.Exec(t, "cat", dir+"server-ca.crt"))
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: server.URL(), Dial: server.Host.DialContext,
		TLSClientConfig: rest.TLSClientConfig{CAData: ca, CertData: pair, KeyData: pair},
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// stolen tries what a thief of a node's credential would.
func stolen(t *testing.T, server, agent *harness.Node, ns string) {
	server.Create(t, ns, kube.Secret("elsewhere", "key", "value"),
		kube.Pod("holder", kube.On("node"), kube.Serve("x"), kube.Mount("secret", "/secret", kube.Secrets("elsewhere"))))
	server.WaitPodRunning(t, ns, "holder")
	thief := credential(t, server, agent)
	ctx := context.Background()
	patch := func(node, what string) error {
		_, err := thief.CoreV1().Nodes().Patch(ctx, node, "application/merge-patch+json", []byte(what), metav1.PatchOptions{})
		return err
	}
	_, secret := thief.CoreV1().Secrets(ns).Get(ctx, "elsewhere", metav1.GetOptions{})
	_, secrets := thief.CoreV1().Secrets(ns).List(ctx, metav1.ListOptions{})
	_, tokens := thief.CoreV1().Secrets("kube-system").List(ctx, metav1.ListOptions{})
	requests, err := thief.CertificatesV1().CertificateSigningRequests().List(ctx, metav1.ListOptions{})
	if err != nil || len(requests.Items) == 0 {
		t.Fatalf("no request for a certificate to be seen: %v", err)
	}
	request := requests.Items[0].DeepCopy()
	request.Status.Conditions = append(request.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Stolen", LastUpdateTime: metav1.Now(),
	})
	_, approval := thief.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, request.Name, request, metav1.UpdateOptions{})
	for what, err := range map[string]error{
		"read another node's Secret":  secret,
		"list Secrets":                secrets,
		"list tokens":                 tokens,
		"approve a certificate":       approval,
		"call itself a control plane": patch("edge-1", `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":"true"}}}`),
		"change another node":         patch("node", `{"metadata":{"labels":{"a":"b"}}}`),
		"delete another node":         thief.CoreV1().Nodes().Delete(ctx, "node", metav1.DeleteOptions{}),
		"delete another node's pod":   thief.CoreV1().Pods(ns).Delete(ctx, "holder", metav1.DeleteOptions{}),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("a node's credential: %s: %v", what, err)
		}
	}
	if err := patch("edge-1", `{"metadata":{"labels":{"example.org/own":"yes"}}}`); err != nil {
		t.Errorf("a node's credential: label its own node: %v", err)
	}
}

// watchNodeReady begins to watch, and returns what waits until the node is ready.
func watchNodeReady(t *testing.T, server *harness.Node, name string) (wait func()) {
	t.Helper()
	w, err := server.Client.CoreV1().Nodes().Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		defer w.Stop()
		late := time.After(2 * time.Minute)
		for {
			select {
			case e, open := <-w.ResultChan():
				if !open {
					t.Fatal("the watch of Nodes ended")
				}
				n, _ := e.Object.(*corev1.Node)
				if n != nil && slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
					return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
				}) {
					return
				}
			case <-late:
				t.Fatalf("node %s is not ready", name)
			}
		}
	}
}
