package lifecycle

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// A machine whose root is mounted read-only: what is missing is told before anything
// is changed, and with the folders of docs/edge.md it is a node.
func TestRootMayBeReadOnly(t *testing.T) {
	n := harness.Prepare(t, harness.Options{})
	sh := func(script string) {
		t.Helper()
		if out, err := n.Host.Command(t.Context(), "sh", "-ec", script).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
	}
	sh("mkdir -p /data /etc/cni /etc/knarr /var/lib/knarr /var/lib/cni /var/lib/kubelet; " +
		"mount -t tmpfs tmpfs /tmp; mount --bind /var/lib/knarr /var/lib/knarr; mount --bind /data /data; " +
		"mount -o remount,bind,ro /etc; mount -o remount,bind,ro /")
	said := refused(t, n, 1, n.Exe, "server")
	for _, want := range []string{"/etc/cni", "/var/lib/kubelet", "/var/log/pods", "--write-kubeconfig", "read-only"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in:\n%s", want, said)
		}
	}
	if _, err := os.Stat(n.Host.Path("/var/lib/knarr/server")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the server began all the same: %v", err)
	}

	sh("for name in kubelet log knarr-etc; do mkdir -p /data/$name; done; mount --bind /data/kubelet /var/lib/kubelet; " +
		"mount --bind /data/log /var/log; mount --bind /data/knarr-etc /etc/knarr; " +
		"mount -t tmpfs tmpfs /etc/cni; mount -t tmpfs tmpfs /var/lib/cni")
	if err := n.Launch(); err != nil {
		t.Fatal(err)
	}
	n.WaitReady(t)
	ns := n.Namespace(t)
	n.Create(t, ns, kube.Pod("web", kube.Serve("afloat")))
	n.WaitPodRunning(t, ns, "web")
	if out := n.Kubectl(t, "exec", "-n", ns, "web", "--", "testbox", "get", "http://localhost:8080"); !strings.Contains(out, "afloat") {
		t.Errorf("the pod answers %q", out)
	}
	n.Restart(t)
	n.WaitPodRunning(t, ns, "web")
	if out, err := n.Host.Command(t.Context(), "touch", "/opt/x").CombinedOutput(); err == nil {
		t.Errorf("the root is writable: %s", out)
	}
}
