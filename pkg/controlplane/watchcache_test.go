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
	for _, since := range []time.Duration{0, 1, 400 * time.Millisecond, 999 * time.Millisecond, 12345 * time.Millisecond} {
		for d := 200 * time.Millisecond; d < 2*time.Second; d += 50 * time.Millisecond {
			takes := onBeat(since, d)
			if takes <= 0 || (since+takes)%beat != 0 {
				t.Errorf("a timer of %s set at %s goes off %s later", d, since, takes)
			}
			if d > beat && (takes-d).Abs() > beat/2 {
				t.Errorf("a timer of %s set at %s takes %s", d, since, takes)
			}
		}
	}
}

func TestTimersThatReadersWaitForAreLeftAlone(t *testing.T) {
	for _, d := range []time.Duration{0, asking} {
		if got := onBeat(time.Hour, d); got != d {
			t.Errorf("a timer of %s takes %s", d, got)
		}
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
