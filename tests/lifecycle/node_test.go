package lifecycle

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/pkg/bundle/ocitar"
	"github.com/knarr-dev/knarr/pkg/cis"
	"github.com/knarr-dev/knarr/pkg/ports"
	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// idle is for how long a healthy server must be silent.
const idle = 10 * time.Second

func TestNode(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	t.Run("logs a few lines, and then none while it is idle", func(t *testing.T) { quiet(t, n) })

	t.Run("listens where docs/ports.md says", func(t *testing.T) { n.CheckPorts(t, ports.Server) })

	n.Create(t, "default", kube.Pod("web", kube.Serve("hello")), kube.Service("web", kube.NodePort, kube.Port(80, 8080), func(s *corev1.ServiceSpec) {
		s.Ports[0].NodePort = 30080
	}))
	n.WaitPodRunning(t, "default", "web")
	t.Run("is shown as users expect", func(t *testing.T) { shown(t, n) })
	t.Run("brings its tools", func(t *testing.T) { tools(t, n) })
	t.Run("has a kubelet that is closed to strangers", func(t *testing.T) { closedKubelet(t, n) })
	t.Run("fails nothing of the CIS benchmark", func(t *testing.T) {
		if count := benchmark(t, n); count[cis.Pass] < 60 {
			t.Errorf("results: %v", count)
		}
	})
	t.Run("answers at NodePorts of localhost", func(t *testing.T) { waitHello(t, n, "http://127.0.0.1:30080") })
	t.Run("brings flushed packet-filter rules back", func(t *testing.T) { flushedRules(t, n) })
	t.Run("imports an archive when it appears, and pins it", func(t *testing.T) { droppedArchive(t, n) })
	t.Run("lets a CSI driver register", func(t *testing.T) { csiDriverRegisters(t, n) })
	t.Run("refuses a second Knarr on its data", func(t *testing.T) { second(t, n) })
	t.Run("keeps what it acknowledged when it is killed", func(t *testing.T) { acknowledged(t, n) })
}

func quiet(t *testing.T, n *harness.Node) {
	time.Sleep(idle) // the idleness itself, not a wait for something
	log := n.Log(t)
	if lines := strings.Count(log, "\n"); lines >= 30 {
		t.Errorf("a fresh start logged %d lines", lines)
	}
	if _, later, _ := strings.Cut(log, "msg=ready"); strings.Count(later, "\n") > 1 {
		t.Errorf("after it was ready the server logged:%s", later)
	}
}

func shown(t *testing.T, n *harness.Node) {
	wide := n.Kubectl(t, "get", "nodes", "-o", "wide")
	for _, want := range []string{"Ready", "control-plane", "v1.36.4+knarr1", n.Host.Addr().String(), "containerd://2."} {
		if !strings.Contains(wide, want) {
			t.Errorf("no %q in\n%s", want, wide)
		}
	}
	node, err := n.Client.CoreV1().Nodes().Get(t.Context(), "node", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(node.Spec.Taints) > 0 {
		t.Errorf("a single server runs workloads, its taints are %v", node.Spec.Taints)
	}
	for label, want := range map[string]string{
		"node-role.kubernetes.io/control-plane": "true", "kubernetes.io/hostname": "node", "kubernetes.io/os": "linux",
		"kubernetes.io/arch": runtime.GOARCH, "node.kubernetes.io/instance-type": "knarr",
	} {
		if node.Labels[label] != want {
			t.Errorf("label %s is %q, want %q", label, node.Labels[label], want)
		}
	}
}

func tools(t *testing.T, n *harness.Node) {
	n.Exec(t, "ln", "-s", n.Exe, "/opt/kubectl")
	for _, c := range []struct {
		want    string
		command []string
	}{
		{"node/node", []string{"/opt/kubectl", "get", "nodes", "-o", "name"}},
		{"web", []string{n.Exe, "crictl", "ps"}},
		{"RUNNING", []string{n.Exe, "ctr", "tasks", "list"}},
		{"knarr.dev/pause:1", []string{n.Exe, "ctr", "images", "list"}},
		{"kubelet", []string{n.Exe, "status"}},
		{`"name": "kubelet"`, []string{n.Exe, "status", "-o", "json"}},
		{"name: kubelet", []string{n.Exe, "status", "-o", "yaml"}},
	} {
		if out := n.Exec(t, c.command...); !strings.Contains(out, c.want) {
			t.Errorf("no %q in the answer of %s:\n%s", c.want, strings.Join(c.command, " "), out)
		}
	}
}

func closedKubelet(t *testing.T, n *harness.Node) {
	client := http.Client{Transport: &http.Transport{
		DialContext: n.Host.DialContext, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // whoever it is, it shall not answer us
	}}
	for _, path := range []string{"/pods", "/metrics", "/run/default/web/web", "/logs/", "/configz"} {
		resp, err := client.Get("https://127.0.0.1:10250" + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("the kubelet answered a stranger who asked for %s: %s", path, resp.Status)
		}
	}
	if conn, err := n.Host.DialContext(t.Context(), "tcp", "127.0.0.1:10255"); err == nil {
		conn.Close()
		t.Error("the kubelet's read-only port is open")
	}
}

func waitHello(t *testing.T, n *harness.Node, url string) {
	t.Helper()
	n.WaitFor(t, "an answer of "+url, func(ctx context.Context) (bool, error) {
		said, err := get(ctx, n, url)
		return strings.TrimSpace(said) == "hello", err
	})
}

func flushedRules(t *testing.T, n *harness.Node) {
	service := n.Kubectl(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	waitHello(t, n, "http://"+service)
	const nft = "/var/lib/knarr/bundle/current/bin/nft"
	tables := n.Exec(t, nft, "list", "tables")
	start := time.Now()
	n.Exec(t, nft, "flush", "ruleset")
	n.WaitFor(t, "the same tables as before", func(ctx context.Context) (bool, error) {
		now, err := n.ExecErr(ctx, nft, "list", "tables")
		if err == nil && len(now) != len(tables) {
			err = fmt.Errorf("tables before:\n%sand now:\n%s", tables, now)
		}
		return err == nil, err
	})
	waitHello(t, n, "http://"+service)
	t.Log("rules were back and the Service answered", time.Since(start).Round(time.Millisecond), "after the flush")
	waitHello(t, n, "http://"+n.Host.Addr().String()+":30080")
	if said := n.Kubectl(t, "exec", "web", "--", "testbox", "get", "http://web.default.svc.cluster.local"); strings.TrimSpace(said) != "hello" {
		t.Errorf("a pod asked the Service by name and got %q", said)
	}
}

func droppedArchive(t *testing.T, n *harness.Node) {
	testbox, err := os.ReadFile(harness.Testbox(t))
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := ocitar.Write(&archive, ocitar.Image{
		Name: "example.org/dropped:1", Arch: runtime.GOARCH, Cmd: []string{"/testbox", "sleep"},
		Files: []ocitar.File{{Name: "testbox", Mode: 0o755, Data: testbox}},
	}); err != nil {
		t.Fatal(err)
	}
	n.Write(t, "/var/lib/knarr/agent/images/dropped.tar", archive.String())
	n.WaitFor(t, "the image to be there and pinned", func(ctx context.Context) (bool, error) {
		out, err := n.ExecErr(ctx, n.Exe, "crictl", "images", "-o", "json")
		if err != nil {
			return false, err
		}
		var list struct {
			Images []struct {
				RepoTags []string
				Pinned   bool
			}
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return false, err
		}
		for _, i := range list.Images {
			if len(i.RepoTags) > 0 && i.RepoTags[0] == "example.org/dropped:1" {
				return i.Pinned, nil
			}
		}
		return false, fmt.Errorf("images: %v", list.Images)
	})
	n.Create(t, "default", kube.Pod("dropped", kube.Box(func(c *corev1.Container) {
		c.Image, c.ImagePullPolicy = "example.org/dropped:1", corev1.PullNever
	})))
	n.WaitPodRunning(t, "default", "dropped")
}

func second(t *testing.T, n *harness.Node) {
	said := refused(t, n, 1, n.Exe, "server")
	pid := fmt.Sprint(n.Status(t).PID)
	if !strings.Contains(said, "/var/lib/knarr") || !strings.Contains(said, pid) {
		t.Errorf("no folder or no process %s in:\n%s", pid, said)
	}
	if _, err := n.Client.Discovery().ServerVersion(); err != nil {
		t.Errorf("the first one was disturbed: %v", err)
	}
}

// acknowledged kills the server in the middle of writes, three times.
func acknowledged(t *testing.T, n *harness.Node) {
	client := n.Client.CoreV1().ConfigMaps("default")
	var kept []string
	for round := range 3 {
		enough, written := make(chan struct{}), make(chan []string)
		go func() {
			var names []string
			for err := error(nil); err == nil; {
				name := fmt.Sprintf("kept-%d-%d", round, len(names))
				if _, err = client.Create(context.Background(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err == nil {
					names = append(names, name)
				}
				if len(names) == 50 && enough != nil {
					close(enough)
					enough = nil
				}
			}
			written <- names
		}()
		<-enough
		n.Kill(t)
		kept = append(kept, <-written...)
		n.Resume(t)
	}
	for _, name := range kept {
		if _, err := client.Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			t.Errorf("of %d acknowledged: %v", len(kept), err)
		}
	}
	t.Logf("%d writes were acknowledged and kept", len(kept))
}
