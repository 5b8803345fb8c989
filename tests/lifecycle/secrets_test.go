package lifecycle

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kms/pkg/service"

	"github.com/knarr-dev/knarr/pkg/encryption"
	"github.com/knarr-dev/knarr/tests/harness"
)

// kmsConfig is a user's own: a KMS plugin encrypts, and Knarr's key is not used.
const kmsConfig = `
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - kms: {apiVersion: v2, name: vault, endpoint: "unix:///run/kms.sock", timeout: 3s}
  - identity: {}
`

// vault is a KMS plugin, whose encryption is no secret.
type vault struct{}

func (vault) Status(context.Context) (*service.StatusResponse, error) {
	return &service.StatusResponse{Version: "v2", Healthz: "ok", KeyID: "1"}, nil
}

func (vault) Encrypt(_ context.Context, _ string, data []byte) (*service.EncryptResponse, error) {
	return &service.EncryptResponse{Ciphertext: flip(data), KeyID: "1"}, nil
}

func (vault) Decrypt(_ context.Context, _ string, r *service.DecryptRequest) ([]byte, error) {
	return flip(r.Ciphertext), nil
}

func flip(data []byte) []byte {
	out := bytes.Clone(data)
	for i := range out {
		out[i] ^= 0xff
	}
	return out
}

// TestSecretsOfAnOlderClusterAreEncryptedWhenSomebodyAsks goes from a cluster
// without encryption to one with it and back, with no restart, and to a user's own
// KMS plugin.
func TestSecretsOfAnOlderClusterAreEncryptedWhenSomebodyAsks(t *testing.T) {
	n := harness.Start(t, harness.Options{Args: []string{"--disable-agent", "--secrets-encryption=false"}})
	plant := func(t *testing.T, name string) string {
		text := "planted-" + name
		n.Create(t, "default", &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"password": text}})
		return text
	}
	onDisk := func(t *testing.T, text string) bool {
		for _, name := range []string{"state.db", "state.db-wal"} {
			content, err := os.ReadFile(n.Host.Path(filepath.Join("/var/lib/knarr/server/db", name)))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(content, []byte(text)) {
				return true
			}
		}
		return false
	}
	status := func(t *testing.T) (s encryption.Status) {
		if err := json.Unmarshal([]byte(n.Exec(t, n.Exe, "secrets-encrypt", "status", "-o", "json")), &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	old := plant(t, "old")
	if s := status(t); s.Enabled || !s.Loaded || s.Secrets[""] == 0 || !onDisk(t, old) {
		t.Errorf("a cluster that was to have none: %+v", s)
	}
	n.Restart(t, "--disable-agent")
	if s := status(t); s.Enabled || s.Pending > 0 {
		t.Errorf("it exists, and is started with the default: %+v", s)
	}

	n.Exec(t, n.Exe, "secrets-encrypt", "enable")
	if s := status(t); !s.Enabled || s.Secrets["key1"] == 0 || s.Pending > 0 {
		t.Errorf("after enable: %+v", s)
	}
	if young := plant(t, "young"); onDisk(t, young) {
		t.Error("a Secret is on the disk after enable")
	}
	n.Stop(t)
	n.Exec(t, n.Exe, "store", "compact")
	if onDisk(t, old) {
		t.Error("a Secret of before is on the disk after enable and compact")
	}
	if _, err := n.ExecErr(t.Context(), n.Exe, "secrets-encrypt", "rotate-keys"); err == nil || !strings.Contains(err.Error(), "start it") {
		t.Errorf("rotation with no server: %v", err)
	}
	n.Resume(t)
	n.Exec(t, n.Exe, "secrets-encrypt", "disable")
	if s := status(t); s.Enabled || s.Secrets[""] == 0 || s.Pending > 0 {
		t.Errorf("after disable: %+v", s)
	}
	if bare := plant(t, "bare"); !onDisk(t, bare) {
		t.Error("a Secret is encrypted after disable")
	}

	plugin := service.NewGRPCService(n.Host.Path("/run/kms.sock"), time.Second, vault{})
	ended := make(chan error, 1)
	go func() { ended <- plugin.ListenAndServe() }()
	t.Cleanup(func() {
		plugin.Shutdown()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	n.Write(t, "/etc/knarr/kms.yaml", kmsConfig)
	n.Restart(t, "--disable-agent", "--kube-apiserver-arg=encryption-provider-config=/etc/knarr/kms.yaml")
	if kept := plant(t, "kept"); onDisk(t, kept) {
		t.Error("a Secret is on the disk with a KMS plugin")
	}
	if s := status(t); s.Secrets["provider kms"] != 1 || s.Loaded {
		t.Errorf("with a KMS plugin: %+v", s)
	}
	if got := n.Kubectl(t, "get", "secret", "kept", "-o", "go-template={{.data.password|base64decode}}"); got != "planted-kept" {
		t.Errorf("it reads %q", got)
	}
	if _, err := n.ExecErr(t.Context(), n.Exe, "secrets-encrypt", "enable"); err == nil || !strings.Contains(err.Error(), "of your own") {
		t.Errorf("enable beside a configuration of the user's own: %v", err)
	}
}
