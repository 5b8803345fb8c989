package controlplane

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/knarr-dev/knarr/pkg/pki"
)

// If upstream renames what seed links to, the variable is empty and this fails;
// what an API server makes of a seeded store is tested on a node.
func TestSeedIsWhatTheAPIServerWouldWrite(t *testing.T) {
	if p := apiVersionPriorities[schema.GroupVersion{Group: "apps", Version: "v1"}]; p.Group == 0 {
		t.Fatal("upstream's apiVersionPriorities has moved: find it anew")
	}
	p, err := pki.Ensure(pki.Config{Dir: filepath.Join(t.TempDir(), "tls"), NodeName: "n", ServiceIP: netip.MustParseAddr("10.43.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	kvs, err := seed(p)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, kv := range kvs {
		if seen[kv.Key] {
			t.Errorf("%s is there twice", kv.Key)
		}
		seen[kv.Key] = true
		json := strings.Contains(kv.Key, "/apiregistration.k8s.io/")
		if !json && !strings.HasPrefix(string(kv.Value), "k8s\x00") || json && !strings.HasPrefix(string(kv.Value), "{") {
			t.Errorf("%s is not in the API server's storage format", kv.Key)
		}
	}
	for _, key := range []string{
		"/registry/namespaces/kube-system", "/registry/serviceaccounts/default/default",
		"/registry/configmaps/default/kube-root-ca.crt", "/registry/clusterroles/cluster-admin",
		"/registry/clusterroles/knarr:node", "/registry/clusterrolebindings/knarr:node", "/registry/clusterrolebindings/knarr:node-bootstrapper",
		"/registry/roles/kube-system/knarr:cluster-info", "/registry/rolebindings/kube-system/knarr:cluster-info",
		"/registry/clusterrolebindings/system:kube-scheduler", "/registry/priorityclasses/system-node-critical",
		"/registry/flowschemas/catch-all", "/registry/apiregistration.k8s.io/apiservices/v1.apps",
		"/registry/apiregistration.k8s.io/apiservices/v1.apiextensions.k8s.io",
	} {
		if !seen[key] {
			t.Errorf("%s is missing", key)
		}
	}
}
