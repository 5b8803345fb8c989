package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/pkg/encryption"
)

// onDisk tells whether a text is anywhere in the store's files: its pages, used
// and free, and its log.
func (s *space) onDisk(text string) bool {
	s.t.Helper()
	for _, name := range []string{"state.db", "state.db-wal"} {
		content, err := os.ReadFile(s.Host.Path(filepath.Join("/var/lib/knarr/server/db", name)))
		if err != nil {
			s.t.Fatal(err)
		}
		if bytes.Contains(content, []byte(text)) {
			return true
		}
	}
	return false
}

func (s *space) secretsStatus() encryption.Status {
	s.t.Helper()
	var status encryption.Status
	if err := json.Unmarshal([]byte(s.Exec(s.t, s.Exe, "secrets-encrypt", "status", "-o", "json")), &status); err != nil {
		s.t.Fatal(err)
	}
	return status
}

// TestSecretsAreNowhereOnTheDiskAndGetAnotherKey plants a Secret, and beside it a
// ConfigMap that must be found, lest the search be at fault.
func TestSecretsAreNowhereOnTheDiskAndGetAnotherKey(t *testing.T) {
	s := newSpace(t)
	planted, open := "planted-"+s.ns, "in-the-clear-"+s.ns
	s.create(
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "planted"}, StringData: map[string]string{"password": planted}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "open"}, Data: map[string]string{"text": open}})
	if !s.onDisk(open) {
		t.Fatal("the ConfigMap is not found in the store's files")
	}
	if s.onDisk(planted) {
		t.Error("the Secret is in the store's files")
	}
	before := s.secretsStatus()
	if !before.Enabled || !before.Loaded || before.Secrets[before.Key] == 0 || before.Secrets[""] > 0 || len(before.Keys) != 1 {
		t.Errorf("a new cluster's Secrets: %+v", before)
	}

	out := s.Exec(t, s.Exe, "secrets-encrypt", "rotate-keys")
	wantPart(t, "the rotation", out, "use a new key, key")
	wantPart(t, "the rotation", out, "done")
	after := s.secretsStatus()
	if after.Key == before.Key || len(after.Keys) != 1 || !after.Loaded || after.Pending > 0 || after.Secrets[after.Key] == 0 {
		t.Errorf("after the rotation: %+v", after)
	}
	if s.onDisk(planted) {
		t.Error("the Secret is in the store's files after the rotation")
	}
	secret, err := s.Client.CoreV1().Secrets(s.ns).Get(t.Context(), "planted", metav1.GetOptions{})
	if err != nil || string(secret.Data["password"]) != planted {
		t.Errorf("the Secret is %v, %v", secret, err)
	}
	wantPart(t, "the Secret as the server keeps it", s.Exec(t, s.Exe, "store", "dump", "secrets/"+s.ns+"/planted"), "kind: Secret")
	if info, err := os.Stat(s.Host.Path("/var/lib/knarr/server/encryption-config.yaml")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key's file: %v, %v", info.Mode(), err)
	}
	if log := s.Log(t); !strings.Contains(log, "the encryption configuration has changed") {
		t.Error("the server does not say that it uses another configuration")
	}
}
