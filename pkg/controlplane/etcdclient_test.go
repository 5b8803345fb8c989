package controlplane

import (
	"path/filepath"
	"testing"

	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"

	"github.com/knarr-dev/knarr/pkg/datastore"
)

func TestTheAPIServerMakesItsEtcdClientsByAVariable(t *testing.T) {
	if newETCD3Client == nil {
		t.Fatal("upstream's newETCD3Client has moved: find it anew")
	}
	s, err := datastore.Open(t.Context(), datastore.Config{Path: filepath.Join(t.TempDir(), "state.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)

	// Nothing listens at the address: only a client of the store itself answers.
	cfg := storagebackend.Config{Transport: storagebackend.TransportConfig{ServerList: []string{"http://127.0.0.1:1"}}}
	reach(&cfg.Transport, s)
	prober, err := factory.CreateProber(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer prober.Close()
	if err := prober.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
}
