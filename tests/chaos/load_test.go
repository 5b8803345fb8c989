package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"

	"github.com/knarr-dev/knarr/tests/chaos/record"
	"github.com/knarr-dev/knarr/tests/harness"
)

const (
	// strict is served from the store, not from the API server's cache, by
	// uncached: its watches go on across restarts.
	strict = "configmaps"
	// cached is served as everything is: a watch that asks for what was before the
	// restart is told to list anew, which clients do.
	cached = "secrets"
	// valueKey is the annotation with an object's value: events of deletions
	// have it too.
	valueKey = "chaos/value"
	lastName = "end"

	// answerTimeout is for what only a test that is about to fail waits for.
	answerTimeout = time.Minute
)

// uncached has the API server read one resource from the store each time.
const uncached = "--kube-apiserver-arg=watch-cache-sizes=" + strict + "#0"

// apiLoad writes objects of one resource through the API, and watches them,
// through whatever becomes of the server.
type apiLoad struct {
	node     *harness.Node
	resource string
	client   dynamic.ResourceInterface
	history  *record.History
	cancel   context.CancelFunc
	writers  sync.WaitGroup
	watchers sync.WaitGroup
	endWatch context.CancelFunc

	mu    sync.Mutex
	names int
	acked int
	more  chan struct{}
}

// startLoad begins to write to the default namespace.
func startLoad(t *testing.T, n *harness.Node, resource string, writers int) *apiLoad {
	t.Helper()
	client, err := dynamic.NewForConfig(n.REST)
	if err != nil {
		t.Fatal(err)
	}
	l := &apiLoad{
		node: n, resource: resource, history: record.New(), more: make(chan struct{}),
		client: client.Resource(schema.GroupVersionResource{Version: "v1", Resource: resource}).Namespace("default"),
	}
	list, err := l.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var watching, writing context.Context
	watching, l.endWatch = context.WithCancel(context.Background())
	writing, l.cancel = context.WithCancel(context.Background())
	t.Cleanup(l.cancel)
	t.Cleanup(l.endWatch)
	for _, name := range []string{"first", "second"} {
		l.history.Watching(name, revision(list.GetResourceVersion()))
		l.watchers.Go(func() { l.watch(watching, name) })
	}
	for i := range writers {
		random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(i)))
		l.writers.Go(func() { l.write(writing, fmt.Sprintf("w%d", i), random) })
	}
	return l
}

func (l *apiLoad) list(ctx context.Context) (*unstructured.UnstructuredList, error) {
	return l.client.List(ctx, metav1.ListOptions{LabelSelector: "chaos"})
}

// acknowledged waits until that many more operations were.
func (l *apiLoad) acknowledged(t *testing.T, count int) {
	t.Helper()
	limit := time.After(answerTimeout)
	l.mu.Lock()
	want := l.acked + count
	l.mu.Unlock()
	for {
		l.mu.Lock()
		acked, more := l.acked, l.more
		l.mu.Unlock()
		if acked >= want {
			return
		}
		select {
		case <-more:
		case <-limit:
			t.Fatalf("%d writes to %s were acknowledged in %s, want %d", acked+count-want, l.resource, answerTimeout, count)
		}
	}
}

func (l *apiLoad) done(op *record.Op, rev int64) {
	l.history.Acknowledge(op, rev)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked++
	close(l.more)
	l.more = make(chan struct{})
}

// write does one operation after the other on objects that nobody else writes.
func (l *apiLoad) write(ctx context.Context, prefix string, random *rand.Rand) {
	known := map[string]*unstructured.Unstructured{}
	for ctx.Err() == nil {
		name := fmt.Sprintf("%s-%d", prefix, random.IntN(8))
		at, ok := known[name]
		if !ok {
			var err error
			at, err = l.client.Get(ctx, name, metav1.GetOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				pause(ctx)
				continue
			}
			if err != nil {
				at = nil
			}
		}
		delete(known, name)
		if now, err := l.one(ctx, name, at, random.IntN(6) == 0); err == nil {
			known[name] = now
		} else {
			pause(ctx)
		}
	}
}

// pause is between two attempts while the server is away.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Millisecond):
	}
}

// one does an operation on an object, nil for none; after it the object is as
// returned, unless there is an error.
func (l *apiLoad) one(ctx context.Context, name string, at *unstructured.Unstructured, remove bool) (*unstructured.Unstructured, error) {
	var err error
	if at != nil && remove {
		uid, rev := at.GetUID(), at.GetResourceVersion()
		op := l.history.Begin(record.Delete, name, value(at))
		err = l.client.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &rev}})
		l.settle(op, 0, err)
		return nil, err
	}
	l.mu.Lock()
	l.names++
	id := strconv.Itoa(l.names)
	l.mu.Unlock()
	var now *unstructured.Unstructured
	var op *record.Op
	if at == nil {
		now = &unstructured.Unstructured{}
		now.SetAPIVersion("v1")
		now.SetKind(map[string]string{strict: "ConfigMap", cached: "Secret"}[l.resource])
		now.SetName(name)
		now.SetLabels(map[string]string{"chaos": ""})
		now.SetAnnotations(map[string]string{valueKey: id})
		op = l.history.Begin(record.Create, name, id)
		now, err = l.client.Create(ctx, now, metav1.CreateOptions{})
	} else {
		now = at.DeepCopy()
		now.SetAnnotations(map[string]string{valueKey: id})
		op = l.history.Begin(record.Update, name, id)
		now, err = l.client.Update(ctx, now, metav1.UpdateOptions{})
	}
	if err != nil {
		l.settle(op, 0, err)
		return nil, err
	}
	l.settle(op, revision(now.GetResourceVersion()), nil)
	return now, nil
}

// settle records an answer. An error may have come after the deed.
func (l *apiLoad) settle(op *record.Op, rev int64, err error) {
	switch {
	case err == nil:
		l.done(op, rev)
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsTooManyRequests(err):
		l.history.Refuse(op)
	}
}

func value(o *unstructured.Unstructured) string { return o.GetAnnotations()[valueKey] }

func revision(s string) int64 {
	rev, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic(err) // the API server writes numbers
	}
	return rev
}

// watch goes on from the last event for as long as it can.
func (l *apiLoad) watch(ctx context.Context, name string) {
	for ctx.Err() == nil {
		from, _ := l.history.Seen(name)
		w, err := l.client.Watch(ctx, metav1.ListOptions{LabelSelector: "chaos", ResourceVersion: strconv.FormatInt(from, 10)})
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			l.anew(ctx, name)
			continue
		}
		if err != nil {
			pause(ctx)
			continue
		}
		for e := range w.ResultChan() {
			o, ok := e.Object.(*unstructured.Unstructured)
			if e.Type == watch.Error {
				if err := apierrors.FromObject(e.Object); apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
					l.anew(ctx, name)
				}
				break
			}
			if !ok || e.Type == watch.Bookmark {
				continue
			}
			l.history.Saw(name, record.Event{
				Rev: revision(o.GetResourceVersion()), Delete: e.Type == watch.Deleted, Key: o.GetName(), Value: value(o),
			})
		}
		w.Stop()
		pause(ctx)
	}
}

// anew begins a watch after a list, as clients do whose revision is too old.
func (l *apiLoad) anew(ctx context.Context, name string) {
	if list, err := l.list(ctx); err == nil {
		l.history.Watching(name, revision(list.GetResourceVersion()))
	}
}

// finish ends the load and checks all of it.
func (l *apiLoad) finish(t *testing.T) {
	t.Helper()
	l.cancel()
	l.writers.Wait()
	defer l.watchers.Wait()
	defer l.endWatch()
	ctx, cancel := context.WithTimeout(t.Context(), answerTimeout)
	defer cancel()
	at, err := l.client.Get(ctx, lastName, metav1.GetOptions{})
	if err != nil {
		at = nil
	}
	last, err := l.one(ctx, lastName, at, false)
	if err != nil {
		t.Fatalf("the last write to %s: %v", l.resource, err)
	}
	rev := revision(last.GetResourceVersion())
	for {
		behind, more := l.history.Behind(rev)
		if len(behind) == 0 {
			break
		}
		select {
		case <-more:
		case <-ctx.Done():
			t.Fatalf("watches %s of %s did not come to revision %d", behind, l.resource, rev)
		}
	}
	list, err := l.list(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var entries []record.Event
	for _, o := range list.Items {
		entries = append(entries, record.Event{Rev: revision(o.GetResourceVersion()), Key: o.GetName(), Value: value(&o)})
	}
	l.history.Final(entries, revision(list.GetResourceVersion()))
	report(t, l.resource, l.history)
}

// report checks a history and says how much there was of it.
func report(t *testing.T, of string, h *record.History) {
	t.Helper()
	for _, problem := range h.Check() {
		t.Errorf("%s: %s", of, problem)
	}
	acked, open, events := h.Counts()
	t.Logf("%s: %d writes acknowledged, %d without an answer, %d events", of, acked, open, events)
}
