package dns

import (
	"context"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestARefusalOfTheFirstMomentIsNotTheInformers(t *testing.T) {
	api := newAPIServer(t, &corev1.Namespace{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: "default"},
	})
	api.refusals = 3
	conn, err := api.rest()
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCluster(conn, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := AwaitAccess(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { c.run(ctx, nil) })
	<-c.synced
	api.mu.Lock()
	defer api.mu.Unlock()
	if len(api.refused) != 3 {
		t.Errorf("refused were %q", api.refused)
	}
	for _, query := range api.refused {
		if !strings.Contains(query, "limit=1") {
			t.Errorf("an informer was refused: %s", query)
		}
	}
}
