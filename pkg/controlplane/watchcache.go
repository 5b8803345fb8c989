package controlplane

import (
	"reflect"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/utils/clock"
)

// useOurWatchCaches has every resource of an API server cached with a clock of ours.
func useOurWatchCaches(cfg *app.Config) {
	begin := time.Now()
	for _, g := range []*generic.RESTOptionsGetter{
		&cfg.KubeAPIs.ControlPlane.Generic.RESTOptionsGetter,
		&cfg.ApiExtensions.GenericConfig.RESTOptionsGetter,
		&cfg.ApiExtensions.ExtraConfig.CRDRESTOptionsGetter,
		&cfg.Aggregator.GenericConfig.RESTOptionsGetter,
	} {
		*g = cachedOptions{*g, begin}
	}
}

// cachedOptions are upstream's, with a watch cache of ours where it has one.
type cachedOptions struct {
	generic.RESTOptionsGetter
	begin time.Time // of the first beat
}

// GetRESTOptions implements generic.RESTOptionsGetter.
func (g cachedOptions) GetRESTOptions(r schema.GroupResource, example runtime.Object) (generic.RESTOptions, error) {
	o, err := g.RESTOptionsGetter.GetRESTOptions(r, example)
	if err == nil && !isUncached(o.Decorator) {
		o.Decorator = cached(g.begin)
	}
	return o, err
}

// isUncached tells whether the user has switched a resource's cache off.
func isUncached(d generic.StorageDecorator) bool {
	return reflect.ValueOf(d).Pointer() == reflect.ValueOf(generic.UndecoratedStorage).Pointer()
}

// cached is upstream's StorageWithCacher, which takes no clock.
func cached(begin time.Time) generic.StorageDecorator {
	return func(config *storagebackend.ConfigForResource, prefix string, key func(runtime.Object) (string, error),
		newFunc, newList func() runtime.Object, attrs storage.AttrFunc, triggers storage.IndexerFuncs, indexers *cache.Indexers,
	) (storage.Interface, factory.DestroyFunc, error) {
		raw, destroy, err := generic.NewRawStorage(config, newFunc, newList, prefix)
		if err != nil {
			return raw, destroy, err
		}
		caching, err := cacher.NewCacherFromConfig(cacher.Config{
			Storage: raw, Versioner: storage.APIObjectVersioner{}, GroupResource: config.GroupResource,
			EventsHistoryWindow: config.EventsHistoryWindow, ResourcePrefix: prefix, KeyFunc: key,
			NewFunc: newFunc, NewListFunc: newList, GetAttrsFunc: attrs, IndexerFuncs: triggers, Indexers: indexers,
			Codec: config.Codec, Clock: &cacheClock{begin: begin},
		})
		if err != nil {
			return nil, func() {}, err
		}
		delegator := cacher.NewCacheDelegator(caching, raw)
		return delegator, func() {
			delegator.Stop()
			caching.Stop()
			destroy()
		}, nil
	}
}

const (
	// beat is when timers of watch caches go off: all at once, since each wakes
	// the process otherwise, sixty times a second while nothing happens.
	beat = 2 * time.Second
	// calm is the beat of a cache of which nobody wants anything. What it would do
	// at a beat is to send the bookmarks that are due: once a minute to each watch, and
	// without delay to one that waits for its first.
	calm = 5 * beat
	// asking are the periods up to which a timer is upstream's: a reader waits for
	// it, and the cache asks the store how far it has come.
	asking = 100 * time.Millisecond
)

// cacheClock is the time of one watch cache of the API server. Its timers for
// bookmarks and compaction go off together with those of the others. They do so at
// the next beat when something happens in the cache, and else when all is calm.
//
// That something happens is seen by its being asked for the time: for each event,
// each new watch, each bookmark that was sent and each reader who waits.
type cacheClock struct {
	clock.RealClock
	begin time.Time

	mu     sync.Mutex
	timers []*cacheTimer // as many as the cache has: two
}

// Now implements clock.PassiveClock.
func (c *cacheClock) Now() time.Time {
	now := c.RealClock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.timers {
		t.hurry(now)
	}
	return now
}

// NewTimer implements clock.Clock.
func (c *cacheClock) NewTimer(d time.Duration) clock.Timer {
	if d <= asking {
		return c.RealClock.NewTimer(d)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &cacheTimer{c: c}
	t.set(c.RealClock.Now(), d)
	t.Timer = c.RealClock.NewTimer(t.calm.Sub(c.RealClock.Now()))
	c.timers = append(c.timers, t)
	return t
}

// cacheTimer is guarded by its clock's lock.
type cacheTimer struct {
	clock.Timer
	c *cacheClock
	// It goes off when all is calm, or at a beat before that if something happens.
	beat, calm time.Time
	stopped    bool
}

// set is for a timer that is to go off after d.
func (t *cacheTimer) set(now time.Time, d time.Duration) {
	since := now.Sub(t.c.begin)
	t.beat, t.calm, t.stopped = now.Add(onBeat(since, d, beat)), now.Add(onBeat(since, d, calm)), false
}

// hurry has the timer go off at the beat in place of waiting for calm.
func (t *cacheTimer) hurry(now time.Time) {
	if t.stopped || !t.beat.Before(t.calm) {
		return
	}
	// The beat that it was set for may be over.
	at := t.beat
	if !at.After(now) {
		at = now.Add(onBeat(now.Sub(t.c.begin), 0, beat))
	}
	if at.Before(t.calm) {
		t.Timer.Reset(at.Sub(now))
	}
	t.calm = at
	t.beat = at
}

// Reset implements clock.Timer.
func (t *cacheTimer) Reset(d time.Duration) bool {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	now := t.c.RealClock.Now()
	t.set(now, d)
	return t.Timer.Reset(t.calm.Sub(now))
}

// Stop implements clock.Timer.
func (t *cacheTimer) Stop() bool {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.stopped = true
	return t.Timer.Stop()
}

// onBeat is how long a timer of d takes that is set at a time since the first beat,
// if it is to go off at one of every so often.
func onBeat(since, d, every time.Duration) time.Duration {
	at := (since + d).Round(every)
	if at <= since {
		at += every
	}
	return at - since
}
