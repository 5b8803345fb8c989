package controlplane

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/scheduler/framework"
)

// heard is an informer whose events a test gives.
type heard struct {
	cache.SharedIndexInformer
	cache.ResourceEventHandler
}

func (h *heard) AddEventHandler(to cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	h.ResourceEventHandler = to
	return nil, nil
}

func TestPodsAreScheduledOnceThereIsANode(t *testing.T) {
	for name, c := range map[string]struct {
		node  bool
		after time.Duration
	}{
		"a node comes":  {true, time.Second + time.Millisecond},
		"no node comes": {false, firstNodeWithin},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				started := time.Now()
				var inCache atomic.Bool
				nodes := &heard{}
				pod := &framework.QueuedPodInfo{}
				next, err := afterFirstNode(t.Context(), nodes, inCache.Load, func(klog.Logger) (*framework.QueuedPodInfo, error) { return pod, nil })
				if err != nil {
					t.Fatal(err)
				}
				if c.node {
					go func() {
						time.Sleep(time.Second)
						go nodes.OnAdd(nil, true)
						synctest.Wait()
						// The scheduler hears of it later.
						inCache.Store(true)
					}()
				}
				for range 2 {
					if got, err := next(klog.Background()); got != pod || err != nil {
						t.Fatalf("the next pod is %v, %v", got, err)
					}
					if took := time.Since(started); took != c.after {
						t.Errorf("pods are scheduled after %s, not %s", took, c.after)
					}
				}
			})
		})
	}
}
