package engine

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// event is a committed change.
type event struct {
	item
	prev    int64
	deleted bool
	value   []byte
	engine  *Engine

	once sync.Once
	was  *server.KeyValue

	telling sync.Once
	told    *mvccpb.Event // to all who watch
}

func (ev *event) keyValue() *server.KeyValue {
	kv := ev.item.keyValue()
	kv.Value = ev.value
	return kv
}

// before returns the key before the change, or nil where it was not there or has
// been compacted. It is read once for all who watch.
func (ev *event) before(ctx context.Context) (*server.KeyValue, error) {
	if ev.prev == 0 {
		return nil, nil
	}
	var err error
	ev.once.Do(func() { ev.was, err = ev.engine.revision(ctx, ev.key, ev.prev) })
	return ev.was, err
}

// revision reads a row, or nil if it is gone.
func (e *Engine) revision(ctx context.Context, key string, rev int64) (*server.KeyValue, error) {
	e.mu.RLock()
	recent := e.ring.at(rev)
	e.mu.RUnlock()
	if recent != nil {
		return recent.keyValue(), nil
	}
	kv := &server.KeyValue{Key: key, ModRevision: rev}
	err := e.db.QueryRowContext(context.WithoutCancel(ctx), "SELECT created, version, lease, value FROM log WHERE rev = ?", rev).
		Scan(&kv.CreateRevision, &kv.Version, &kv.Lease, &kv.Value)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read revision %d: %w", rev, err)
	}
	e.cfg.Metrics.watched.Inc()
	return kv, nil
}

func (ev *event) toServer(ctx context.Context) (*server.Event, error) {
	was, err := ev.before(ctx)
	if err != nil {
		return nil, err
	}
	return &server.Event{Delete: ev.deleted, Create: !ev.deleted && ev.version == 1, KV: ev.keyValue(), PrevKV: was}, nil
}

// toClients is the event as etcd's clients get it, one for all of them.
func (ev *event) toClients(ctx context.Context) (*mvccpb.Event, error) {
	e, err := ev.toServer(ctx)
	if err != nil {
		return nil, err
	}
	ev.telling.Do(func() { ev.told = EtcdEvent(e) })
	return ev.told, nil
}

// EtcdEvent is an event in etcd's form; it shares the values.
func EtcdEvent(e *server.Event) *mvccpb.Event {
	ev := &mvccpb.Event{Kv: EtcdKeyValue(e.KV)}
	if e.Delete {
		ev.Type = mvccpb.DELETE
	}
	if !e.Create {
		ev.PrevKv = EtcdKeyValue(e.PrevKV)
	}
	return ev
}

// EtcdKeyValue is a key in etcd's form, nil for nil; it shares the value.
func EtcdKeyValue(kv *server.KeyValue) *mvccpb.KeyValue {
	if kv == nil {
		return nil
	}
	return &mvccpb.KeyValue{
		Key: []byte(kv.Key), Value: kv.Value, Version: kv.Version, Lease: kv.Lease,
		CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision,
	}
}

// ring has the latest events, without a gap.
type ring struct {
	limit, bytes int
	first        int64 // revision of the oldest, or of the next one
	events       []*event
}

func (r *ring) add(ev *event) {
	r.events = append(r.events, ev)
	r.bytes += ev.size()
	for r.bytes > r.limit && len(r.events) > 1 {
		r.bytes -= r.events[0].size()
		r.events[0] = nil
		r.events = r.events[1:]
		r.first++
	}
}

func (ev *event) size() int { return len(ev.key) + len(ev.value) + 200 }

// at returns the event of a revision, or nil.
func (r *ring) at(rev int64) *event {
	if i := rev - r.first; i >= 0 && i < int64(len(r.events)) {
		return r.events[i]
	}
	return nil
}

const (
	// sentAtOnce is how many events a watch is given at a time.
	sentAtOnce = 500
	// historyAtOnce is how many revisions of the past are looked at in one query.
	historyAtOnce = 2000
)

// Subscription is one watch, whose events one goroutine asks for.
type Subscription struct {
	engine   *Engine
	key, end string
	woken    chan struct{} // full if there may be events

	since int64 // revision at which it began: events up to there are found by looking
	// next is the revision to go on with. Only who asks for events changes it.
	next atomic.Int64
	// pending is the revision of the first event that was not asked for yet, 0 if
	// there is none. Before it there is nothing to look for.
	pending atomic.Int64
	matched atomic.Int64 // the highest revision of an event, as far as is known
}

// match notes an event. The engine's mu is held.
func (w *Subscription) match(rev int64) {
	w.pending.CompareAndSwap(0, rev)
	w.found(rev)
}

// found notes that there are events up to a revision.
func (w *Subscription) found(rev int64) {
	for was := w.matched.Load(); was < rev && !w.matched.CompareAndSwap(was, rev); was = w.matched.Load() {
	}
}

func (w *Subscription) wants(key string) bool { return within(key, w.key, w.end) }

func (w *Subscription) rouse() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

// Subscribe begins a watch of a range, from a revision on or from now on if that is
// 0, and returns the store's revision, too. Close ends it. It fails with
// server.ErrCompacted.
func (e *Engine) Subscribe(key, end string, revision int64) (*Subscription, int64, error) {
	w := &Subscription{engine: e, key: key, end: end, woken: make(chan struct{}, 1)}
	e.mu.Lock()
	defer e.mu.Unlock()
	if w.next.Store(revision); revision == 0 {
		w.next.Store(e.rev + 1)
	} else if revision < e.compacted {
		return nil, e.rev, server.ErrCompacted
	}
	w.since = e.rev
	w.rouse()
	e.watchers[w] = struct{}{}
	return w, e.rev, nil
}

// Close ends the watch.
func (w *Subscription) Close() {
	w.engine.mu.Lock()
	defer w.engine.mu.Unlock()
	delete(w.engine.watchers, w)
}

// Woken tells that there may be events.
func (w *Subscription) Woken() <-chan struct{} { return w.woken }

// UpTo is the revision up to which Next has returned all events.
func (w *Subscription) UpTo() int64 {
	w.engine.mu.RLock()
	defer w.engine.mu.RUnlock()
	return min(w.next.Load()-1, w.engine.rev)
}

// Next returns the next events, if there are any, and tells whether there may be
// more already. Nothing is left out, and nobody is waited for: who is slow reads
// old events from the file, and gets server.ErrCompacted when these are gone.
// Others have the same events: they must not be changed.
func (w *Subscription) Next(ctx context.Context) (events []*mvccpb.Event, more bool, err error) {
	return next(ctx, w, (*event).toClients)
}

func next[E any](ctx context.Context, w *Subscription, as func(*event, context.Context) (E, error)) (events []E, more bool, err error) {
	found, more, err := w.collect(ctx)
	if err != nil || len(found) == 0 {
		return nil, more, err
	}
	events = make([]E, len(found))
	for i, ev := range found {
		if events[i], err = as(ev, ctx); err != nil {
			return nil, false, err
		}
	}
	return events, more, nil
}

// collect moves the watch on, and returns the events that it comes upon.
func (w *Subscription) collect(ctx context.Context) (found []*event, more bool, err error) {
	e, next := w.engine, w.next.Load()
	e.mu.RLock()
	first, last := e.ring.first, e.rev
	if next > w.since {
		if pending := w.pending.Load(); pending > 0 {
			next = max(next, pending)
		} else {
			next = max(next, last+1)
		}
	}
	if next < e.compacted {
		e.mu.RUnlock()
		return nil, false, server.ErrCompacted
	}
	for from := next; from >= first && next <= last && len(found) < sentAtOnce; next++ {
		if ev := e.ring.at(next); w.wants(ev.key) {
			found = append(found, ev)
		}
	}
	if next > last {
		w.pending.Store(0)
	}
	e.mu.RUnlock()
	if next < first {
		until := min(next+historyAtOnce, first)
		if found, err = e.history(ctx, w, next, until-1); err == nil {
			err = e.still(next)
		}
		if err != nil {
			return nil, false, err
		}
		next = until
	}
	if len(found) > 0 {
		w.found(found[len(found)-1].rev)
	}
	w.next.Store(next)
	return found, next <= last, nil
}

// Watch is a running watch; see Follow.
type Watch struct {
	server.WatchResult
	*Subscription
}

// Behind tells whether there are events that were committed already and that one
// who has had those up to revision had from the channel has still to get.
func (w *Watch) Behind(had int64) bool {
	if w.Subscription == nil {
		return false // it ends
	}
	w.engine.mu.RLock()
	defer w.engine.mu.RUnlock()
	return w.next.Load() <= w.since || w.matched.Load() > had
}

// Watch implements server.Backend; see Follow.
func (e *Engine) Watch(ctx context.Context, key, end string, revision int64) server.WatchResult {
	return e.Follow(ctx, key, end, revision).WatchResult
}

// Follow sends the events of a range, from a revision on or from now on if that
// is 0, until ctx or the engine ends; the channel is closed then. Where events are
// gone, the other channel has server.ErrCompacted.
func (e *Engine) Follow(ctx context.Context, key, end string, revision int64) *Watch {
	events, failed := make(chan []*server.Event), make(chan error, 1)
	s, now, err := e.Subscribe(key, end, revision)
	f := &Watch{WatchResult: server.WatchResult{CurrentRevision: now, Events: events, Errorc: failed}, Subscription: s}
	if err != nil {
		f.CompactRevision = e.Compacted()
		close(events)
		return f
	}
	e.wg.Go(func() {
		defer close(events)
		defer s.Close()
		if err := s.send(ctx, events); err != nil {
			failed <- err
		}
	})
	return f
}

func (w *Subscription) send(ctx context.Context, to chan<- []*server.Event) error {
	for more := false; ; {
		if !more {
			select {
			case <-w.woken:
			case <-ctx.Done():
				return nil
			case <-w.engine.ctx.Done():
				return nil
			}
		}
		var events []*server.Event
		var err error
		if events, more, err = next(ctx, w, (*event).toServer); err != nil {
			return err
		}
		if len(events) == 0 {
			continue
		}
		select {
		case to <- events:
		case <-ctx.Done():
			return nil
		case <-w.engine.ctx.Done():
			return nil
		}
	}
}

// history reads events from the file.
func (e *Engine) history(ctx context.Context, w *Subscription, from, last int64) ([]*event, error) {
	rows, err := e.db.QueryContext(ctx, "SELECT rev, name, prev, created, version, lease, deleted, value FROM log WHERE rev >= ? AND rev <= ? ORDER BY rev", from, last)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	defer rows.Close()
	var found []*event
	for rows.Next() {
		ev := &event{engine: e}
		var value sql.RawBytes
		if err := rows.Scan(&ev.rev, &ev.key, &ev.prev, &ev.created, &ev.version, &ev.lease, &ev.deleted, &value); err != nil {
			return nil, fmt.Errorf("read events: %w", err)
		}
		if w.wants(ev.key) {
			ev.value = append([]byte(nil), value...)
			found = append(found, ev)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	e.cfg.Metrics.watched.Add(float64(len(found)))
	return found, nil
}
