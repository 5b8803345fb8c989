package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
	"github.com/knarr-dev/knarr/tests/harness"
)

const (
	manifests = "/var/lib/knarr/agent/pod-manifests"
	// mirror is the static pod's name in the API.
	mirror = "steady-node"
)

var noDatabase = strings.Repeat("no database\n", 1000)

func steady(body string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: steady, annotations: {says: %q}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: serve, image: "knarr.dev/test:1", args: [testbox, serve, --port, "80", --body, %q]}]
`, body, body)
}

// store is the cluster's file.
const store = "/var/lib/knarr/server/db/state.db"

func TestStaticPods(t *testing.T) {
	n := harness.Prepare(t, harness.Options{Files: map[string]string{manifests + "/steady.yaml": steady("first")}})
	t.Run("run while another program holds the API's port, and follow their files", func(t *testing.T) { staticPodWithoutPort(t, n) })
	t.Run("run with a broken store, which is mended", func(t *testing.T) { staticPodWithABrokenStore(t, n) })
}

func staticPodWithoutPort(t *testing.T, n *harness.Node) {
	holder := holdPort(t, n, 6443)
	if err := n.Launch(); err != nil {
		t.Fatal(err)
	}
	waitSays(t, n, "first")
	failing := waitFailing(t, n)
	if !strings.Contains(failing.LastError, "address already in use") || !strings.Contains(failing.LastError, "6443") {
		t.Errorf("the API server's error is %q", failing.LastError)
	}
	if n.Said("READY=1") || n.Status(t).Ready {
		t.Error("READY=1 was said without a control plane")
	}
	for _, format := range []string{"json", "yaml", "table"} {
		if out := n.Exec(t, n.Exe, "status", "-o", format); !strings.Contains(out, string(component.StateRetrying)) {
			t.Errorf("knarr status -o %s does not tell that the API server is tried again:\n%s", format, out)
		}
	}

	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	n.WaitReady(t)
	pod := n.WaitPodRunning(t, "default", mirror)
	if pod.Annotations["says"] != "first" || pod.Annotations[corev1.MirrorPodAnnotationKey] == "" {
		t.Errorf("the mirror pod's annotations are %v", pod.Annotations)
	}

	n.Write(t, manifests+"/steady.yaml", steady("second"))
	waitSays(t, n, "second")
	n.WaitPod(t, "default", mirror, "as its edited file says", func(p *corev1.Pod) bool {
		return harness.PodReady(p) && p.Annotations["says"] == "second"
	})

	if err := os.Remove(n.Host.Path(manifests + "/steady.yaml")); err != nil {
		t.Fatal(err)
	}
	n.WaitGone(t, "default", mirror)
	n.WaitFor(t, "the static pod's container to be gone", func(ctx context.Context) (bool, error) {
		out, err := n.ExecErr(ctx, n.Exe, "crictl", "ps", "-q")
		return strings.TrimSpace(out) == "", err
	})
}

func staticPodWithABrokenStore(t *testing.T, n *harness.Node) {
	n.Stop(t)
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(n.Host.Path(store + suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	n.Write(t, store, noDatabase)
	n.Write(t, manifests+"/steady.yaml", steady("third"))
	if err := n.Launch(); err != nil {
		t.Fatal(err)
	}
	waitSays(t, n, "third")
	failing := waitFailing(t, n)
	if !strings.Contains(failing.LastError, store) {
		t.Errorf("the error does not name the file: %q", failing.LastError)
	}
	if n.Said("READY=1") {
		t.Error("READY=1 was said without a store")
	}

	if err := os.Rename(n.Host.Path(store), n.Host.Path(store+".broken")); err != nil {
		t.Fatal(err)
	}
	n.WaitReady(t)
	n.WaitPodRunning(t, "default", mirror)
	if _, err := n.Client.CoreV1().ServiceAccounts("default").Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

// The node has never been told its pod subnet, and takes the one that a new
// cluster gives its first node.
func TestStaticPodRunsOnAMachineWhoseStoreWasNeverWhole(t *testing.T) {
	n := harness.Prepare(t, harness.Options{Files: map[string]string{manifests + "/steady.yaml": steady("alone"), store: noDatabase}})
	if err := n.Launch(); err != nil {
		t.Fatal(err)
	}
	waitSays(t, n, "alone")
	waitFailing(t, n)

	if err := os.Remove(n.Host.Path(store)); err != nil {
		t.Fatal(err)
	}
	n.WaitReady(t)
	pod := n.WaitPodRunning(t, "default", mirror)
	subnet := netip.MustParsePrefix(n.Kubectl(t, "get", "node", "node", "-o", "jsonpath={.spec.podCIDR}"))
	if ip := netip.MustParseAddr(pod.Status.PodIP); !subnet.Contains(ip) {
		t.Errorf("the static pod's address %s is not of the node's subnet %s", ip, subnet)
	}
	waitSays(t, n, "alone")
}

// holdPort has another program listen on a port of the host.
func holdPort(t *testing.T, n *harness.Node, port int) *lab.Cmd {
	t.Helper()
	harness.CopyFile(t, harness.Testbox(t), n.Host.Path("/opt/testbox"), 0o755)
	holder := n.Host.Command(t.Context(), "/opt/testbox", "serve", "--port", fmt.Sprint(port))
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	n.WaitFor(t, fmt.Sprintf("port %d to be taken", port), func(ctx context.Context) (bool, error) {
		conn, err := n.Host.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return false, err
		}
		return true, conn.Close()
	})
	return holder
}

// waitFailing waits until the API server stands as failed and retrying.
func waitFailing(t *testing.T, n *harness.Node) component.Status {
	t.Helper()
	var found component.Status
	n.WaitFor(t, "the API server to be told as failed", func(context.Context) (bool, error) {
		for _, c := range n.Status(t).Components {
			if c.Name == "apiserver" {
				found = c
			}
		}
		if found.State != component.StateRetrying {
			return false, fmt.Errorf("it is %s", found.State)
		}
		return true, nil
	})
	return found
}

// waitSays waits until the static pod answers with body. The API is not asked
// where the pod is, the container runtime is.
func waitSays(t *testing.T, n *harness.Node, body string) {
	t.Helper()
	n.WaitFor(t, "the static pod to say "+body, func(ctx context.Context) (bool, error) {
		out, err := n.ExecErr(ctx, n.Exe, "crictl", "pods", "--state", "ready", "-q")
		if err != nil {
			return false, err
		}
		for id := range strings.FieldsSeq(out) {
			said, err := ask(ctx, n, id)
			if err != nil {
				return false, err
			}
			if said == body {
				return true, nil
			}
		}
		return false, errors.New("no pod says so")
	})
}

func ask(ctx context.Context, n *harness.Node, id string) (string, error) {
	out, err := n.ExecErr(ctx, n.Exe, "crictl", "inspectp", id)
	if err != nil {
		return "", err
	}
	var sandbox struct {
		Status struct{ Network struct{ IP string } }
	}
	if err := json.Unmarshal([]byte(out), &sandbox); err != nil {
		return "", err
	}
	text, err := get(ctx, n, "http://"+net.JoinHostPort(sandbox.Status.Network.IP, "80"))
	return strings.TrimSpace(text), err
}
