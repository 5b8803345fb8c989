package e2e

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/pkg/datastore"
)

func TestStoreOfARunningServerIsLookedAfter(t *testing.T) {
	s := newSpace(t)
	s.create(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}, Data: map[string]string{"answer": "forty-two"}})
	wantPart(t, "the check", s.Exec(t, s.Exe, "store", "check"), "/server/db/state.db is well")

	var stats datastore.Stats
	if err := json.Unmarshal([]byte(s.Exec(t, s.Exe, "store", "stats", "-o", "json")), &stats); err != nil {
		t.Fatal(err)
	}
	if maps := stats.Resources["configmaps"]; maps.Keys == 0 || maps.KeyBytes == 0 || stats.Keys < maps.Keys || stats.Revisions < stats.Keys || stats.FileBytes == 0 {
		t.Errorf("the sizes of the store: %+v", stats)
	}
	wantPart(t, "the sizes of the store", s.Exec(t, s.Exe, "store", "stats"), "apiservices.apiregistration.k8s.io ")

	key := "configmaps/" + s.ns + "/kept"
	object := s.Exec(t, s.Exe, "store", "dump", key)
	wantPart(t, "the object as it is stored", object, "answer: forty-two")
	wantPart(t, "the object as it is stored", object, "kind: ConfigMap")
	wantPart(t, "the keys", s.Exec(t, s.Exe, "store", "dump", "--keys", "configmaps/"+s.ns+"/"), "\t/registry/"+key+"\n")
	// Every kind that a cluster has from birth can be decoded.
	wantPart(t, "all objects", s.Exec(t, s.Exe, "store", "dump", "/registry/"), "kind: APIService")

	if out, err := s.ExecErr(t.Context(), s.Exe, "store", "compact"); err == nil {
		t.Errorf("the store was compacted under the server: %s", out)
	} else {
		wantPart(t, "the refusal", err.Error(), "is in use by process")
	}

	metrics, err := s.Client.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"knarr_store_commit_changes_count", "knarr_store_commit_duration_seconds_count", "knarr_store_file_reads_total", "knarr_store_keys", "knarr_store_checkpoint_duration_seconds_count"} {
		wantPart(t, "the metrics", string(metrics), name)
	}
}
