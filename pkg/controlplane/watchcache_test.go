package controlplane

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/generic/registry"
)

func TestTimersOfWatchCachesGoOffTogether(t *testing.T) {
	c := &cacheClock{begin: time.Now().Add(-90 * time.Millisecond)}
	var last time.Time
	for _, d := range []time.Duration{300 * time.Millisecond, 500 * time.Millisecond, 700 * time.Millisecond} {
		timer := c.NewTimer(d)
		defer timer.Stop()
		at := <-timer.C()
		late := at.Sub(c.begin)
		if off := late % beat; off > beat/2 {
			t.Errorf("a timer of %s goes off %s after the begin", d, late)
		}
		if !last.IsZero() && at.Sub(last) > 2*beat {
			t.Errorf("a timer of %s goes off %s after the one before", d, at.Sub(last))
		}
		last = at
	}
	if d := c.until(1200 * time.Millisecond); d < 1200*time.Millisecond || d > 1200*time.Millisecond+beat {
		t.Errorf("a timer of 1.2 s takes %s", d)
	}
}

func TestReadersNeverWaitATenthOfASecondForTheCache(t *testing.T) {
	if d := (&cacheClock{begin: time.Now()}).until(asking); d != progressPeriod {
		t.Errorf("the store is asked every %s, want %s", d, progressPeriod)
	}
	if d := (&cacheClock{begin: time.Now()}).until(0); d != 0 {
		t.Errorf("what is due now waits %s", d)
	}
}

func TestResourcesWithoutAWatchCacheStaySo(t *testing.T) {
	given := generic.RESTOptions{Decorator: generic.UndecoratedStorage}
	get := func() generic.StorageDecorator {
		o, err := cachedOptions{given, &cacheClock{}}.GetRESTOptions(schema.GroupResource{}, runtime.Object(nil))
		if err != nil {
			t.Fatal(err)
		}
		return o.Decorator
	}
	if !isUncached(get()) {
		t.Error("a resource whose cache is switched off has one")
	}
	given.Decorator = registry.StorageWithCacher()
	if isUncached(get()) {
		t.Error("a resource with a cache has lost it")
	}
}
