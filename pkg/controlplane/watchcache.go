package controlplane

import (
	"reflect"
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

// useOurWatchCaches has every resource of an API server cached with our clock.
func useOurWatchCaches(cfg *app.Config) {
	c := &cacheClock{begin: time.Now()}
	for _, g := range []*generic.RESTOptionsGetter{
		&cfg.KubeAPIs.ControlPlane.Generic.RESTOptionsGetter,
		&cfg.ApiExtensions.GenericConfig.RESTOptionsGetter,
		&cfg.ApiExtensions.ExtraConfig.CRDRESTOptionsGetter,
		&cfg.Aggregator.GenericConfig.RESTOptionsGetter,
	} {
		*g = cachedOptions{*g, c}
	}
}

// cachedOptions are upstream's, with a watch cache of ours where it has one.
type cachedOptions struct {
	generic.RESTOptionsGetter
	clock clock.WithTicker
}

// GetRESTOptions implements generic.RESTOptionsGetter.
func (g cachedOptions) GetRESTOptions(r schema.GroupResource, example runtime.Object) (generic.RESTOptions, error) {
	o, err := g.RESTOptionsGetter.GetRESTOptions(r, example)
	if err == nil && !isUncached(o.Decorator) {
		o.Decorator = cached(g.clock)
	}
	return o, err
}

// isUncached tells whether the user has switched a resource's cache off.
func isUncached(d generic.StorageDecorator) bool {
	return reflect.ValueOf(d).Pointer() == reflect.ValueOf(generic.UndecoratedStorage).Pointer()
}

// cached is upstream's StorageWithCacher, which takes no clock.
func cached(c clock.WithTicker) generic.StorageDecorator {
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
			Codec: config.Codec, Clock: c,
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
	// asking are the periods up to which a timer is upstream's: a reader waits for
	// it, and the cache asks the store how far it has come.
	asking = 100 * time.Millisecond
)

// cacheClock is the time of the API server's watch caches. Its timers for
// bookmarks and compaction go off together, up to half a beat early or late.
type cacheClock struct {
	clock.RealClock
	begin time.Time
}

// NewTimer implements clock.Clock.
func (c *cacheClock) NewTimer(d time.Duration) clock.Timer {
	return cacheTimer{c.RealClock.NewTimer(c.until(d)), c}
}

func (c *cacheClock) until(d time.Duration) time.Duration { return onBeat(time.Since(c.begin), d) }

// onBeat is how long a timer of d takes that is set at a time since the first beat.
func onBeat(since, d time.Duration) time.Duration {
	if d <= asking {
		return d
	}
	at := (since + d).Round(beat)
	if at <= since {
		at += beat
	}
	return at - since
}

type cacheTimer struct {
	clock.Timer
	c *cacheClock
}

// Reset implements clock.Timer.
func (t cacheTimer) Reset(d time.Duration) bool { return t.Timer.Reset(t.c.until(d)) }
