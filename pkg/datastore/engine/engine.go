// Package engine is a key-value store with revisions, etcd's semantics and one
// SQLite file: the backend that Knarr's API server writes to.
//
// One goroutine writes. It takes all changes that have been asked for while the
// disk was at work and commits them as one transaction, so that many clients share
// one wait for the disk. The file has a row for each revision, found by its number
// alone; which revision a key has is kept in memory, as are the latest events.
package engine

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/btree"
	"github.com/k3s-io/kine/pkg/server"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Config are the settings of an Engine; zero values mean the defaults.
type Config struct {
	// CompactEvery is how often old revisions are forgotten: those that were old
	// the last time already, but for the last CompactRetain. Default 5 minutes; if
	// negative, never.
	CompactEvery time.Duration
	// CompactRetain is how many revisions are always kept. Default 1000.
	CompactRetain int64
	// IndexLag is how many revisions the file's index of keys may be behind, which
	// the next start reads, when the store has rest; ten times as many when it has
	// none. Default 10,000.
	IndexLag int64
	// RingBytes is how many bytes of recent events are kept in memory, for
	// watches and for reads of what has just been written. Default 4 MiB.
	RingBytes int
	// QueueBytes bounds the changes that wait to be written. Default 64 MiB.
	QueueBytes int
	// Flush returns once everything that has been committed is on the disk. While it
	// does, the next changes are prepared. After an error nothing more is written.
	// Default: a commit is on the disk when it is done.
	Flush func() error
	// Metrics are told what happens. Default: nobody is.
	Metrics *Metrics
	// Seed returns what a new store has in it from birth. It is not called when
	// the store exists.
	Seed func() ([]Entry, error)
}

// Entry is a key with its value.
type Entry struct {
	Key   string
	Value []byte
}

func (c Config) withDefaults() Config {
	if c.CompactEvery == 0 {
		c.CompactEvery = 5 * time.Minute
	}
	if c.CompactRetain == 0 {
		c.CompactRetain = 1000
	}
	if c.IndexLag == 0 {
		c.IndexLag = 10_000
	}
	if c.RingBytes == 0 {
		c.RingBytes = 4 << 20
	}
	if c.QueueBytes == 0 {
		c.QueueBytes = 64 << 20
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics()
	}
	return c
}

// Errors of requests; they are etcd's words where etcd has some.
var (
	// ErrBusy answers changes while too many wait to be written.
	ErrBusy = status.Error(codes.ResourceExhausted, "etcdserver: too many requests")
	// ErrTooLarge answers a change that etcd's default limit would refuse.
	ErrTooLarge = status.Error(codes.InvalidArgument, "etcdserver: request is too large")
	// ErrClosed answers requests of a closed store.
	ErrClosed = status.Error(codes.Unavailable, "etcdserver: server stopped")
)

// maxRequest is the size, in bytes, up to which a value is taken: etcd's
// --max-request-bytes.
const maxRequest = 1536 << 10

// item is what is known of a living key without reading the file.
type item struct {
	key     string
	rev     int64 // of its last change
	created int64
	version int64
	lease   int64
}

func byKey(a, b item) bool { return a.key < b.key }

// Engine is an open store. It implements kine's server.Backend.
type Engine struct {
	cfg Config
	db  *sql.DB
	ctx context.Context // done when the engine closes
	end context.CancelFunc
	wg  sync.WaitGroup

	// mu guards what is known in memory. It is written to after a commit only.
	mu        sync.RWMutex
	keys      *btree.BTreeG[item]
	rev       int64     // of the last committed change
	compacted int64     // revisions below may be gone
	indexed   int64     // the file's index has the keys as of then, unless they changed later; the writer's own
	unindexed []revised // all changes after that; likewise
	ring      ring
	watchers  map[*Subscription]struct{}

	queue queue
	lease leases
	pace  pace // of compaction
}

var _ server.Backend = (*Engine)(nil)

// New returns an engine over the tables of db, which it makes if they are
// missing. db must take one writer and several readers at a time.
func New(ctx context.Context, db *sql.DB, cfg Config) (*Engine, error) {
	e := &Engine{
		cfg: cfg.withDefaults(), db: db, watchers: map[*Subscription]struct{}{},
		keys: btree.NewG(64, byKey), queue: newQueue(),
	}
	e.ring.limit = e.cfg.RingBytes
	e.lease.due = make(chan struct{}, 1)
	e.cfg.Metrics.watch(e)
	if err := prepare(ctx, db, cfg.Seed); err != nil {
		return nil, err
	}
	if err := e.load(ctx); err != nil {
		return nil, err
	}
	return e, nil
}

// Start begins to write. The engine ends with ctx; Wait tells when it has.
func (e *Engine) Start(ctx context.Context) error {
	e.ctx, e.end = context.WithCancel(ctx)
	write, err := newWriter(e)
	if err != nil {
		return fmt.Errorf("prepare to write: %w", err)
	}
	e.wg.Go(write)
	e.wg.Go(e.compactNowAndThen)
	e.wg.Go(e.expire)
	if _, err := e.Create(e.ctx, server.HealthKey, []byte(server.HealthVal), 0); err != nil && !errors.Is(err, server.ErrKeyExists) {
		e.end()
		e.wg.Wait()
		return fmt.Errorf("write the first key: %w", err)
	}
	return nil
}

// Wait returns once the engine has ended and every request has its answer.
func (e *Engine) Wait() { e.wg.Wait() }

// CurrentRevision is that of the last change.
func (e *Engine) CurrentRevision(context.Context) (int64, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.rev, nil
}

// Compacted is the revision before which some may be forgotten.
func (e *Engine) Compacted() int64 {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.compacted
}

// WaitForSyncTo has nothing to wait for: what has been answered can be read.
func (e *Engine) WaitForSyncTo(int64) {}

// DbSize is the size of the file, in bytes.
func (e *Engine) DbSize(ctx context.Context) (int64, error) {
	var size int64
	if err := e.db.QueryRowContext(ctx, "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").Scan(&size); err != nil {
		return 0, fmt.Errorf("read the size of the store: %w", err)
	}
	return size, nil
}

// Create makes a key that does not exist, or fails with server.ErrKeyExists.
func (e *Engine) Create(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	r := e.do(ctx, &change{kind: create, key: key, value: value, lease: lease})
	return r.rev, r.err
}

// Update changes a key whose last change was revision, or makes one that does not
// exist if that is 0, and returns the changed key; otherwise what is there, or nil.
func (e *Engine) Update(ctx context.Context, key string, value []byte, revision, lease int64) (int64, *server.KeyValue, bool, error) {
	return e.alter(ctx, &change{kind: update, key: key, value: value, was: revision, lease: lease})
}

// Delete deletes a key whose last change was revision, or any if that is 0, and
// returns what was there. A key that does not exist is deleted.
func (e *Engine) Delete(ctx context.Context, key string, revision int64) (int64, *server.KeyValue, bool, error) {
	return e.alter(ctx, &change{kind: remove, key: key, was: revision})
}

func (e *Engine) alter(ctx context.Context, c *change) (int64, *server.KeyValue, bool, error) {
	r := e.do(ctx, c)
	if r.err != nil {
		return r.rev, nil, false, r.err
	}
	if r.at == (item{}) {
		return r.rev, r.kv, r.done, nil
	}
	kv, err := e.read(ctx, r.at)
	if errors.Is(err, errGone) {
		// Compacted meanwhile: what was deleted is not known any more, and what was
		// there instead has changed again.
		if r.done {
			return r.rev, r.at.keyValue(), true, nil
		}
		_, kv, err = e.Get(ctx, c.key, 0, false)
	}
	return r.rev, kv, r.done, err
}

// do has a change written and waits for the answer.
func (e *Engine) do(ctx context.Context, c *change) result {
	if len(c.key)+len(c.value) > maxRequest {
		return result{err: ErrTooLarge}
	}
	c.answer = make(chan result, 1)
	if err := e.queue.put(c, e.cfg.QueueBytes); err != nil {
		return result{err: err}
	}
	select {
	case r := <-c.answer:
		return r
	case <-ctx.Done():
		// It is written all the same, or was.
		return result{err: ctx.Err()}
	}
}
