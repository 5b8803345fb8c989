package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestAgentsStoreVolumesAndAnnounceAddresses(t *testing.T) {
	const address = "10.99.0.200"
	server := harness.Start(t, harness.Options{Args: []string{"--servicelb-pool=" + address + "-10.99.0.201"}})
	agent := harness.Start(t, harness.Options{Join: server, Name: "edge-1", Env: []string{"KNARR_TOKEN=" + server.Token(t)}})
	ns := server.Namespace(t)
	get := func(what, path string) string {
		t.Helper()
		return server.Kubectl(t, "get", "-n", ns, what, "-o", "jsonpath={"+path+"}")
	}

	t.Run("a claim gets a folder of the agent's machine", func(t *testing.T) {
		server.Create(t, ns, kube.PersistentVolumeClaim("data", "local-path", "1Mi"),
			kube.Pod("user", kube.Grace(0), kube.Node(corev1.LabelHostname, "edge-1"), kube.Mount("data", "/data", kube.Claim("data")),
				kube.Shell("echo here > /data/note; testbox sleep")))
		server.WaitPodRunning(t, ns, "user")
		volume := get("pvc/data", ".spec.volumeName")
		path := get("pv/"+volume, ".spec.local.path")
		if said := agent.Exec(t, "cat", path+"/note"); said != "here\n" {
			t.Errorf("the agent's machine has %q at %s", said, path)
		}
		if _, err := os.Stat(server.Host.Path(path)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the server's machine has it too: %v", err)
		}
		server.Kubectl(t, "delete", "-n", ns, "pod/user", "pvc/data")
		server.Kubectl(t, "wait", "pv/"+volume, "--for=delete", "--timeout=60s")
		if _, err := os.Stat(agent.Host.Path(path)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the folder after the claim: %v", err)
		}
		if left := server.Kubectl(t, "get", "configmap", "-n", "kube-system", "knarr-local-storage", "-o", "jsonpath={.data}"); strings.Contains(left, volume) {
			t.Errorf("left of what the agent was asked: %s", left)
		}
		if left := get("node/edge-1", ".metadata.annotations"); strings.Contains(left, volume) {
			t.Errorf("left of what it answered: %s", left)
		}
	})

	t.Run("an agent tells which ports are taken", func(t *testing.T) {
		server.Create(t, ns, kube.Service("taken", kube.LoadBalancer, kube.Port(10250, 8080)))
		server.WaitFor(t, "the agent to tell that port 10250 is taken", func(ctx context.Context) (bool, error) {
			n, err := server.Client.CoreV1().Nodes().Get(ctx, "edge-1", metav1.GetOptions{})
			return err == nil && n.Annotations["svccontroller.knarr.dev/taken-ports"] == "10250/TCP", err
		})
		server.Kubectl(t, "delete", "service", "-n", ns, "taken")
	})

	t.Run("one node answers for an address, and another when it may not", func(t *testing.T) {
		server.Create(t, ns, kube.Pod("web", kube.On("edge-1"), kube.Serve("hello")),
			kube.Service("web", kube.For("web"), kube.LoadBalancer, kube.Port(80, 8080)))
		server.WaitPodRunning(t, ns, "web")
		server.Kubectl(t, "wait", "-n", ns, "service/web", "--for=jsonpath={.status.loadBalancer.ingress[*].ip}="+address, "--timeout=60s")
		neighbour := server.Neighbour(t)
		reach := func(node string) {
			t.Helper()
			host := server
			if node == "edge-1" {
				host = agent
			}
			mac := strings.TrimSpace(host.Exec(t, "cat", "/sys/class/net/eth0/address"))
			server.WaitFor(t, "an answer by "+node, func(ctx context.Context) (bool, error) {
				ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
				defer cancel()
				c := http.Client{Transport: &http.Transport{DialContext: neighbour.DialContext, DisableKeepAlives: true}}
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address, nil)
				if err != nil {
					return false, err
				}
				resp, err := c.Do(req)
				if err != nil {
					return false, err
				}
				defer resp.Body.Close()
				if body, err := io.ReadAll(resp.Body); err != nil || strings.TrimSpace(string(body)) != "hello" {
					return false, fmt.Errorf("the answer is %q: %w", body, err)
				}
				out, err := neighbour.Command(ctx, "ip", "neigh", "show", address).Output()
				if err == nil && !strings.Contains(string(out), mac) {
					err = fmt.Errorf("the neighbour knows it as %q, not %s", out, mac)
				}
				return err == nil, err
			})
		}
		first := get("service/web", `.metadata.annotations.svccontroller\.knarr\.dev/announced-by`)
		reach(first)
		server.Kubectl(t, "label", "node", first, corev1.LabelNodeExcludeBalancers+"=")
		second := map[string]string{"edge-1": "node", "node": "edge-1"}[first]
		reach(second)
		server.Kubectl(t, "label", "node", first, corev1.LabelNodeExcludeBalancers+"-")
	})
}
