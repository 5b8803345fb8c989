package lifecycle

import (
	"context"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
)

// TestServerIsRestoredFromItsReplica loses the server and its disk a moment after
// a write.
func TestServerIsRestoredFromItsReplica(t *testing.T) {
	n := harness.Start(t, harness.Options{Args: []string{"--disable-agent", "--replicate-to=/root/replica"}})
	n.Create(t, "default",
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "written"}, Data: map[string]string{"text": "kept"}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "written"}, StringData: map[string]string{"text": "secret"}})
	// How long it takes a busy machine is not the point.
	n.WaitFor(t, "the replica to have it", func(ctx context.Context) (bool, error) {
		if _, err := n.ExecErr(ctx, n.Exe, "backup", "restore", "--from-replica", "/root/replica", "--data-dir", "/root/scratch", "--force"); err != nil {
			return false, err
		}
		_, err := n.ExecErr(ctx, n.Exe, "store", "dump", "secrets/default/written", "--data-dir", "/root/scratch")
		return err == nil, err
	})
	n.Kill(t)
	if err := os.RemoveAll(n.Host.Path("/var/lib/knarr/server")); err != nil {
		t.Fatal(err)
	}
	n.Exec(t, n.Exe, "backup", "restore", "--from-replica", "/root/replica")
	n.Resume(t)
	if got := n.Kubectl(t, "get", "configmap", "written", "-o", "jsonpath={.data.text}"); got != "kept" {
		t.Errorf("the ConfigMap reads %q", got)
	}
	if got := n.Kubectl(t, "get", "secret", "written", "-o", "go-template={{.data.text|base64decode}}"); got != "secret" {
		t.Errorf("the Secret reads %q", got)
	}
}
