package controlplane

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"
	"unsafe"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/util/workqueue"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	"k8s.io/kube-aggregator/pkg/controllers/openapiv3/aggregator"

	"github.com/knarr-dev/knarr/pkg/datastore"
)

const (
	// crdPrefix is where CustomResourceDefinitions are in the store: they alone
	// change what this process' own servers publish.
	crdPrefix = "/registry/apiextensions.k8s.io/customresourcedefinitions/"
	// openAPIStaysBusy is how long after a change the aggregator asks its own
	// servers every second, as it does all the time upstream.
	openAPIStaysBusy = 15 * time.Second
)

// calmOpenAPI has the aggregator ask the servers of this process for their
// OpenAPI v3 index only while it can change. Upstream asks them once a second
// forever, and each answer takes some forty goroutines: a fifth of what an idle
// API server does. It must be called after PrepareRun, which makes the
// controller, and before the server runs.
func calmOpenAPI(ctx context.Context, s *aggregatorapiserver.APIAggregator, store *datastore.Store) error {
	queue, err := openAPIQueue(s)
	if err != nil {
		return err
	}
	calm := &calmQueue{TypedRateLimitingInterface: *queue, busyUntil: time.Now().Add(openAPIStaysBusy)}
	*queue = calm
	go func() {
		client := store.Client()
		defer client.Close()
		for r := range client.Watch(ctx, crdPrefix, clientv3.WithPrefix()) {
			if len(r.Events) > 0 {
				calm.stir()
			}
		}
		// Without the watch nobody tells of changes: ask as upstream does.
		calm.stayBusy()
	}()
	return nil
}

// openAPIQueue points to the queue of the aggregator's OpenAPI v3 controller,
// which upstream hides. TestTheAggregatorHasAQueueForOpenAPI tells when it moves.
func openAPIQueue(s *aggregatorapiserver.APIAggregator) (*workqueue.TypedRateLimitingInterface[string], error) {
	moved := errors.New("upstream's OpenAPI v3 controller has changed; adapt pkg/controlplane/openapi.go")
	controller := reflect.ValueOf(s).Elem().FieldByName("openAPIV3AggregationController")
	if !controller.IsValid() || controller.Kind() != reflect.Pointer || controller.IsNil() {
		return nil, fmt.Errorf("find the aggregator's OpenAPI controller: %w", moved)
	}
	queue := controller.Elem().FieldByName("queue")
	if !queue.IsValid() || queue.Type() != reflect.TypeFor[workqueue.TypedRateLimitingInterface[string]]() {
		return nil, fmt.Errorf("find the queue of the aggregator's OpenAPI controller: %w", moved)
	}
	return (*workqueue.TypedRateLimitingInterface[string])(unsafe.Pointer(queue.UnsafeAddr())), nil
}

// calmQueue holds back what is put in for the next second while nothing changes.
type calmQueue struct {
	workqueue.TypedRateLimitingInterface[string]

	mu        sync.Mutex
	busyUntil time.Time
	always    bool
	held      map[string]time.Duration
}

// AddAfter is called for each server of this process once it has been asked.
func (q *calmQueue) AddAfter(key string, after time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if aggregator.IsLocalAPIService(key) && !q.always && time.Now().After(q.busyUntil) {
		if q.held == nil {
			q.held = map[string]time.Duration{}
		}
		q.held[key] = after
		return
	}
	q.TypedRateLimitingInterface.AddAfter(key, after)
}

func (q *calmQueue) stir() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busyUntil = time.Now().Add(openAPIStaysBusy)
	q.release()
}

func (q *calmQueue) stayBusy() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.always = true
	q.release()
}

func (q *calmQueue) release() {
	for key, after := range q.held {
		q.TypedRateLimitingInterface.AddAfter(key, after)
	}
	q.held = nil
}
