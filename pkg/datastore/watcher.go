package datastore

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"github.com/knarr-dev/knarr/pkg/datastore/engine"
)

// watcher is a client's watches of our engine. Each is one goroutine from the
// engine to who reads its channel, where etcd's client and a server of streams
// would have seven, six of which hand every event on.
type watcher struct {
	api *bridge
	ctx context.Context // done when the store or the client closes
	end context.CancelFunc

	mu      sync.Mutex
	running sync.WaitGroup
	watches map[*directWatch]struct{}
}

// reminded are the watches that are told progress unasked: all at one moment, so
// that an idle store wakes the processor once.
type reminded struct {
	mu      sync.Mutex
	watches map[*directWatch]struct{}
}

func (r *reminded) add(d *directWatch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watches == nil {
		r.watches = map[*directWatch]struct{}{}
	}
	r.watches[d] = struct{}{}
}

func (r *reminded) remove(d *directWatch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.watches, d)
}

// run reminds until ctx is done.
func (r *reminded) run(ctx context.Context) {
	often := time.NewTicker(progressInterval)
	defer often.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-often.C:
		}
		r.mu.Lock()
		for d := range r.watches {
			d.ask()
		}
		r.mu.Unlock()
	}
}

var _ clientv3.Watcher = (*watcher)(nil)

func newWatcher(ctx context.Context, api *bridge) *watcher {
	w := &watcher{api: api, watches: map[*directWatch]struct{}{}}
	w.ctx, w.end = context.WithCancel(ctx)
	return w
}

// directWatch is one watch.
type directWatch struct {
	*engine.Subscription
	stream string        // those of one stream are told progress together
	asked  chan struct{} // full if progress is to be told
	out    chan clientv3.WatchResponse
}

// streamOf tells which watches etcd's client has in one stream: those whose
// contexts have the same metadata.
func streamOf(ctx context.Context) string {
	md, _ := metadata.FromOutgoingContext(ctx)
	return fmt.Sprint(map[string][]string(md))
}

// option tells whether a watch has one of the options that etcd's client keeps to
// itself.
func option(op clientv3.Op, name string) bool { return reflect.ValueOf(op).FieldByName(name).Bool() }

// Watch sends the events of a key or a range from the revision that is given, or from
// now on; with the key before each change, asked for or not. The channel is closed
// when ctx, the client or the store ends. Where events are gone that it should
// begin with, or a slow reader was to get, its last word says so.
func (w *watcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	op := clientv3.OpGet(key, opts...)
	d := &directWatch{stream: streamOf(ctx), asked: make(chan struct{}, 1), out: make(chan clientv3.WatchResponse, 1)}
	sub, revision, err := w.api.engine.Subscribe(string(op.KeyBytes()), string(op.RangeBytes()), op.Rev())
	if err != nil {
		d.out <- w.compacted(revision)
		close(d.out)
		return d.out
	}
	d.Subscription = sub
	if option(op, "createdNotify") {
		d.out <- clientv3.WatchResponse{Header: header(revision), Created: true}
	}
	if !w.begin(ctx, d, option(op, "progressNotify")) {
		sub.Close()
		close(d.out)
	}
	return d.out
}

// begin runs a watch, unless the client or the store has closed.
func (w *watcher) begin(ctx context.Context, d *directWatch, remind bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx.Err() != nil {
		return false
	}
	w.running.Add(1)
	w.watches[d] = struct{}{}
	if remind {
		w.api.reminded.add(d)
	}
	began := w.api.serve(func() {
		defer w.running.Done()
		defer close(d.out)
		defer w.forget(d)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(w.ctx, cancel)()
		err := w.follow(ctx, d)
		if errors.Is(err, server.ErrCompacted) {
			now, _ := w.api.engine.CurrentRevision(ctx)
			_ = d.send(ctx, w.compacted(now))
		} else if err != nil {
			_ = w.api.guard.note(err) // the next request is told
		}
	})
	if !began {
		delete(w.watches, d)
		w.api.reminded.remove(d)
		w.running.Done()
	}
	return began
}

func (w *watcher) forget(d *directWatch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d.Close()
	delete(w.watches, d)
	w.api.reminded.remove(d)
}

// follow returns when ctx is done, or with the error that ends the watch.
func (w *watcher) follow(ctx context.Context, d *directWatch) error {
	for due := false; ; {
		events, more, err := d.Next(ctx)
		if err != nil || ctx.Err() != nil {
			return err
		}
		if len(events) > 0 {
			last := events[len(events)-1].Kv.ModRevision
			if !d.send(ctx, clientv3.WatchResponse{Header: header(last), Events: clientEvents(events)}) {
				return nil
			}
		}
		if more {
			continue
		}
		if due && !d.send(ctx, clientv3.WatchResponse{Header: header(d.UpTo())}) {
			return nil
		}
		due = false
		select {
		case <-d.Woken():
		case <-d.asked:
			due = true
		case <-ctx.Done():
			return nil
		}
	}
}

// ask has the watch tell progress, once it has sent all that there is by now.
func (d *directWatch) ask() {
	select {
	case d.asked <- struct{}{}:
	default: // one answer serves all who have asked
	}
}

// send reports whether the response was taken.
func (d *directWatch) send(ctx context.Context, r clientv3.WatchResponse) bool {
	select {
	case d.out <- r:
		return true
	case <-ctx.Done():
		return false
	}
}

// RequestProgress has each watch of the context's stream tell a revision, that of the
// store now or a later one, once it has sent all events up to there.
func (w *watcher) RequestProgress(ctx context.Context) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	stream := streamOf(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	for d := range w.watches {
		if d.stream == stream {
			d.ask()
		}
	}
	return nil
}

// Close ends all watches of the client.
func (w *watcher) Close() error {
	w.mu.Lock()
	w.end()
	w.mu.Unlock()
	w.running.Wait()
	return nil
}

func (w *watcher) compacted(revision int64) clientv3.WatchResponse {
	return clientv3.WatchResponse{Header: header(revision), CompactRevision: max(w.api.engine.Compacted(), 1), Canceled: true}
}

func header(revision int64) etcdserverpb.ResponseHeader {
	return etcdserverpb.ResponseHeader{Revision: revision}
}

func clientEvents(events []*mvccpb.Event) []*clientv3.Event {
	out := make([]*clientv3.Event, len(events))
	for i, e := range events {
		out[i] = (*clientv3.Event)(e)
	}
	return out
}
