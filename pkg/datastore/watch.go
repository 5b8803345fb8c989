package datastore

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/knarr-dev/knarr/pkg/datastore/engine"
)

const (
	// progressInterval is how often a watch that asked for it is told the current
	// revision without being asked; etcd's own default is ten minutes. Who cannot
	// wait asks, as the API server does for a consistent read.
	progressInterval = time.Minute
	// progressRetry is the wait before a progress request is tried again while
	// some watch of the stream still has events to send.
	progressRetry = 5 * time.Millisecond
)

// bridge is kine's etcd API with a watch service of our own. kine's has two
// tickers in every stream, one of them ten times a second: the API server's
// seventy idle streams would cost two percent of a core.
//
// It also tells progress at once and exactly: kine waits for its poller, which
// says how far it came only when it is woken the next time, up to a second
// later; and all informers of a starting cluster wait for that word.
type bridge struct {
	*server.KVServerBridge
	engine  *engine.Engine // nil with kine's driver
	history history
	guard   *guard
	ids     atomic.Int64
	// reminded are watches past this API; see watcher.
	reminded reminded

	mu      sync.Mutex
	closing bool
	streams sync.WaitGroup
}

var _ etcdserverpb.WatchServer = (*bridge)(nil)

func newBridge(backend server.Backend, h history, g *guard) *bridge {
	b := &bridge{KVServerBridge: server.New(backend, "http", progressInterval, etcdVersion), history: h, guard: g}
	b.engine, _ = backend.(*engine.Engine)
	return b
}

// history is a driver's part of a watch.
type history interface {
	// revision is that of the last committed write.
	revision(context.Context) (int64, error)
	// follow sends what happens from w.start on.
	follow(ctx context.Context, w *watch) server.WatchResult
	// behind tells whether events up to rev are still to be sent.
	behind(ctx context.Context, w *watch, rev int64) (bool, error)
}

// kineHistory asks kine's table.
type kineHistory struct {
	server.Backend
	db *sql.DB
}

func (h kineHistory) revision(ctx context.Context) (int64, error) {
	var rev int64
	if err := h.db.QueryRowContext(ctx, "SELECT COALESCE(MAX(id), 0) FROM kine").Scan(&rev); err != nil {
		return 0, fmt.Errorf("read revision of store: %w", err)
	}
	return rev, nil
}

func (h kineHistory) follow(ctx context.Context, w *watch) server.WatchResult {
	return h.Watch(ctx, w.key, w.end, w.start)
}

func (h kineHistory) behind(ctx context.Context, w *watch, rev int64) (bool, error) {
	query, args := "SELECT EXISTS(SELECT 1 FROM kine WHERE id > ? AND id <= ? AND ", []any{w.sent.Load(), rev, w.key}
	switch w.end {
	case "":
		query += "name = ?)"
	case "\x00":
		query += "name >= ?)"
	default:
		query, args = query+"name >= ? AND name < ?)", append(args, w.end)
	}
	var is bool
	if err := h.db.QueryRowContext(ctx, query, args...).Scan(&is); err != nil {
		return false, fmt.Errorf("look for events to send: %w", err)
	}
	return is, nil
}

// engineHistory is what the engine knows without a query.
type engineHistory struct{ *engine.Engine }

func (h engineHistory) revision(ctx context.Context) (int64, error) { return h.CurrentRevision(ctx) }

func (h engineHistory) follow(ctx context.Context, w *watch) server.WatchResult {
	f := h.Follow(ctx, w.key, w.end, w.start)
	w.followed.Store(f)
	return f.WatchResult
}

func (h engineHistory) behind(_ context.Context, w *watch, _ int64) (bool, error) {
	f := w.followed.Load()
	return f == nil || f.Behind(w.sent.Load()), nil
}

// serve runs a stream, unless the store is closing.
func (b *bridge) serve(stream func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return false
	}
	b.streams.Go(stream)
	return true
}

// wait returns when every stream has ended; no other starts.
func (b *bridge) wait() {
	b.mu.Lock()
	b.closing = true
	b.mu.Unlock()
	b.streams.Wait()
}

// Watch serves one client's stream of watches.
func (b *bridge) Watch(ws etcdserverpb.Watch_WatchServer) error {
	ctx, cancel := context.WithCancel(ws.Context())
	s := &stream{bridge: b, ws: ws, watches: map[int64]*watch{}, asked: make(chan struct{}, 1)}
	defer s.wg.Wait()
	defer cancel()
	s.wg.Go(func() { s.progress(ctx) })
	for {
		m, err := ws.Recv()
		if err != nil {
			return err
		}
		switch {
		case m.GetCreateRequest() != nil:
			err = s.create(ctx, m.GetCreateRequest())
		case m.GetCancelRequest() != nil:
			err = s.end(m.GetCancelRequest().WatchId, &etcdserverpb.WatchResponse{})
		case m.GetProgressRequest() != nil:
			select {
			case s.asked <- struct{}{}:
			default: // one answer serves all who have asked
			}
		}
		if err != nil {
			return err
		}
	}
}

// stream is a client's connection with its watches.
type stream struct {
	*bridge
	wg    sync.WaitGroup
	asked chan struct{}

	sending sync.Mutex // guards Send and highest
	ws      etcdserverpb.Watch_WatchServer
	highest int64

	mu      sync.Mutex
	watches map[int64]*watch
}

// watch is one watch of a stream.
type watch struct {
	cancel     context.CancelFunc
	key, end   string
	start      int64
	notifiable bool // wants to be told progress unasked
	// sent is the revision up to which the client has all events, or more.
	sent     atomic.Int64
	followed atomic.Pointer[engine.Watch] // by our engine
}

// send writes a response; the revision a client sees never goes back.
func (s *stream) send(r *etcdserverpb.WatchResponse) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	if r.Header == nil {
		r.Header = &etcdserverpb.ResponseHeader{}
	}
	if r.Header.Revision > 0 {
		s.highest = max(s.highest, r.Header.Revision)
		r.Header.Revision = s.highest
	}
	return s.ws.Send(r)
}

func (s *stream) create(ctx context.Context, r *etcdserverpb.WatchCreateRequest) error {
	var refused error
	switch {
	case r.WatchId != clientv3.AutoWatchID:
		refused = server.ErrInvalidWatch
	case r.StartRevision < 0:
		refused = server.ErrCompacted
	}
	if refused != nil {
		rev, err := s.history.revision(ctx)
		if err != nil {
			return err
		}
		return s.send(&etcdserverpb.WatchResponse{
			Header:  &etcdserverpb.ResponseHeader{Revision: rev},
			WatchId: clientv3.InvalidWatchID, Created: true, Canceled: true, CancelReason: refused.Error(),
		})
	}
	ctx, cancel := context.WithCancel(ctx)
	id := s.ids.Add(1)
	w := &watch{cancel: cancel, key: string(r.Key), end: string(r.RangeEnd), start: r.StartRevision, notifiable: r.ProgressNotify}
	// Without a start it tells what comes from now on.
	before := r.StartRevision - 1
	if r.StartRevision == 0 {
		var err error
		if before, err = s.history.revision(ctx); err != nil {
			cancel()
			return err
		}
	}
	w.sent.Store(before)
	s.mu.Lock()
	s.watches[id] = w
	s.mu.Unlock()
	if err := s.send(&etcdserverpb.WatchResponse{WatchId: id, Created: true}); err != nil {
		return err
	}
	s.wg.Go(func() { s.follow(ctx, id, w) })
	return nil
}

// end forgets a watch and tells the client so. An unknown id is not answered.
func (s *stream) end(id int64, last *etcdserverpb.WatchResponse) error {
	s.mu.Lock()
	w := s.watches[id]
	delete(s.watches, id)
	s.mu.Unlock()
	if w == nil {
		return nil
	}
	w.cancel()
	last.WatchId, last.Canceled = id, true
	return s.send(last)
}

// follow sends a watch's events until it ends.
func (s *stream) follow(ctx context.Context, id int64, w *watch) {
	last := &etcdserverpb.WatchResponse{}
	// A client that is gone cannot be told, and its stream ends by itself.
	defer func() { _ = s.end(id, last) }()

	misread := s.guard.misread.Load()
	r := s.history.follow(ctx, w)
	if err := s.guard.read(ctx, misread, nil); err != nil {
		last.CancelReason = err.Error()
		w.cancel()
		go discard(r.Events)
		return
	}
	if r.CompactRevision != 0 {
		last.Header = &etcdserverpb.ResponseHeader{Revision: r.CurrentRevision}
		last.CompactRevision, last.CancelReason = r.CompactRevision, server.ErrCompacted.Error()
		return
	}
	for {
		// kine never ends a watch that begins while the store closes.
		var first []*server.Event
		ok := false
		select {
		case first, ok = <-r.Events:
		case <-ctx.Done():
			go discard(r.Events)
		}
		if !ok {
			break
		}
		events := drain(first, r.Events)
		if len(events) == 0 {
			continue
		}
		revision := events[len(events)-1].KV.ModRevision
		if revision < w.start {
			continue
		}
		err := s.send(&etcdserverpb.WatchResponse{
			Header: &etcdserverpb.ResponseHeader{Revision: revision}, WatchId: id, Events: toEvents(events),
		})
		if err != nil {
			return
		}
		w.sent.Store(max(revision, w.sent.Load()))
	}
	select {
	case err := <-r.Errorc:
		last.CancelReason = err.Error()
	default:
	}
}

// discard reads the events of a watch that has ended, as kine wants it.
func discard(events <-chan []*server.Event) {
	for range events {
	}
}

// drain appends what can be received at once.
func drain(events []*server.Event, c <-chan []*server.Event) []*server.Event {
	for {
		select {
		case e, ok := <-c:
			if !ok {
				return events
			}
			events = append(events, e...)
		default:
			return events
		}
	}
}

// progress tells revisions without events: to the whole stream when the client
// has asked, and now and then to each watch that wants it.
func (s *stream) progress(ctx context.Context) {
	often := time.NewTicker(progressInterval)
	defer often.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.asked:
			for !s.answer(ctx) {
				select {
				case <-ctx.Done():
					return
				case <-time.After(progressRetry):
				}
			}
		case <-often.C:
			s.remind(ctx)
		}
	}
}

// answer sends the current revision if every watch has sent all events up to
// it, and reports whether it did.
func (s *stream) answer(ctx context.Context) bool {
	rev, err := s.history.revision(ctx)
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.watches {
		if behind, err := s.history.behind(ctx, w, rev); err != nil || behind {
			return false
		}
	}
	s.tell(rev, clientv3.InvalidWatchID)
	return true
}

// remind tells each watch that wants it the current revision. One that is
// behind has events to send, which tell as much.
func (s *stream) remind(ctx context.Context) {
	rev, err := s.history.revision(ctx)
	if err != nil {
		return // the next request to the store tells
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, w := range s.watches {
		if !w.notifiable {
			continue
		}
		if behind, err := s.history.behind(ctx, w, rev); err == nil && !behind {
			s.tell(rev, id)
		}
	}
}

// tell sends a revision without events. Should it fail, the stream's end tells
// whoever waits for it.
func (s *stream) tell(rev, id int64) {
	_ = s.send(&etcdserverpb.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: rev}, WatchId: id})
}

func toEvents(events []*server.Event) []*mvccpb.Event {
	out := make([]*mvccpb.Event, len(events))
	for i, e := range events {
		out[i] = engine.EtcdEvent(e)
	}
	return out
}
