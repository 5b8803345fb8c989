package controlplane

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/generic/registry"
)

func TestTimersOfWatchCachesGoOffTogether(t *testing.T) {
	for _, since := range []time.Duration{0, 1, 400 * time.Millisecond, 999 * time.Millisecond, 12345 * time.Millisecond} {
		for _, every := range []time.Duration{beat, calm} {
			for d := 200 * time.Millisecond; d < 2*every; d += 50 * time.Millisecond {
				takes := onBeat(since, d, every)
				if takes <= 0 || (since+takes)%every != 0 {
					t.Errorf("a timer of %s set at %s goes off %s later", d, since, takes)
				}
				if d > every && (takes-d).Abs() > every/2 {
					t.Errorf("a timer of %s set at %s takes %s", d, since, takes)
				}
			}
		}
	}
}

func TestTimersThatReadersWaitForAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cacheClock{begin: time.Now()}
		for _, d := range []time.Duration{0, asking} {
			began := time.Now()
			<-c.NewTimer(d).C()
			if took := time.Since(began); took != d {
				t.Errorf("a timer of %s takes %s", d, took)
			}
		}
	})
}

// bookmarks is what a watch cache does with its timer, and when.
func bookmarks(t *testing.T, c *cacheClock) (fired func() []time.Duration) {
	begin := time.Now()
	timer := c.NewTimer(time.Second)
	var mu sync.Mutex
	var at []time.Duration
	go func() {
		for {
			select {
			case <-timer.C():
				timer.Reset(time.Second)
				mu.Lock()
				at = append(at, time.Since(begin))
				mu.Unlock()
			case <-t.Context().Done():
				timer.Stop()
				return
			}
		}
	}()
	return func() []time.Duration {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		was := at
		at = nil
		return was
	}
}

func TestACacheIsCalmWhileNobodyWantsAnythingOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cacheClock{begin: time.Now()}
		fired := bookmarks(t, c)
		const s = time.Second
		time.Sleep(31 * s)
		if got := fired(); !slices.Equal(got, []time.Duration{10 * s, 20 * s, 30 * s}) {
			t.Errorf("calm: %v", got)
		}
		c.Now() // an event, or a watch that waits for its first bookmark
		time.Sleep(10 * s)
		if got := fired(); !slices.Equal(got, []time.Duration{32 * s, 40 * s}) {
			t.Errorf("after something has happened: %v", got)
		}
		for range 100 { // it goes on
			c.Now()
			time.Sleep(100 * time.Millisecond)
		}
		if got := fired(); !slices.Equal(got, []time.Duration{42 * s, 44 * s, 46 * s, 48 * s, 50 * s}) {
			t.Errorf("while something happens: %v", got)
		}
		time.Sleep(8500 * time.Millisecond)
		began := time.Since(c.begin)
		c.Now() // late in a calm period
		time.Sleep(beat)
		if got := fired(); len(got) == 0 || got[len(got)-1]-began > beat {
			t.Errorf("what happened at %s was seen to at %v", began, got)
		}
	})
}

func TestResourcesWithoutAWatchCacheStaySo(t *testing.T) {
	given := generic.RESTOptions{Decorator: generic.UndecoratedStorage}
	get := func() generic.StorageDecorator {
		o, err := cachedOptions{given, time.Now()}.GetRESTOptions(schema.GroupResource{}, runtime.Object(nil))
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
