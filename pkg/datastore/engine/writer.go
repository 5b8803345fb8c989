package engine

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

// batchBytes is about how much is committed at once: more would only let the
// first of them wait longer.
const batchBytes = 4 << 20

// writer makes all changes, in a goroutine of its own. While one batch of them is
// on its way to the disk, those that are asked for meanwhile go into the open
// transaction of the next one, which is committed when the disk is free.
type writer struct {
	*Engine
	conn                   writeConn
	insert, index, unindex driver.StmtExecContext

	open   *batch     // takes changes
	flying *batch     // is committed, and waits for the disk
	landed chan error // tells of that one; has room for one
	broken error      // why nothing more is written

	indexFails bool // the index is not tried again before something has been written
}

// writeConn is a connection to SQLite past database/sql, which has a goroutine for
// each transaction.
type writeConn interface {
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.ExecerContext
}

const insertRow = "INSERT INTO log(rev, name, prev, created, version, lease, deleted, value) VALUES(?, ?, ?, ?, ?, ?, ?, ?)"

// newWriter returns what writes until the engine ends.
func newWriter(e *Engine) (run func(), err error) {
	conn, err := e.db.Conn(e.ctx)
	if err != nil {
		return nil, err
	}
	w := &writer{Engine: e, landed: make(chan error, 1)}
	err = conn.Raw(func(c any) error {
		w.conn = c.(writeConn)
		for stmt, query := range map[*driver.StmtExecContext]string{&w.insert: insertRow, &w.index: indexKey, &w.unindex: unindexKey} {
			s, err := w.conn.PrepareContext(context.WithoutCancel(e.ctx), query)
			if err != nil {
				return err // what was prepared goes with the connection
			}
			*stmt = s.(driver.StmtExecContext)
		}
		return nil
	})
	if err != nil {
		conn.Close()
		return nil, err
	}
	return func() {
		defer conn.Close()
		defer e.queue.close()
		_ = conn.Raw(func(any) error {
			w.run()
			return errors.Join(w.insert.(driver.Stmt).Close(), w.index.(driver.Stmt).Close(), w.unindex.(driver.Stmt).Close())
		})
	}, nil
}

// exec runs a statement whose arguments are numbers.
func (w *writer) exec(query string, args ...int64) error {
	_, err := w.conn.ExecContext(context.WithoutCancel(w.ctx), query, named(args...))
	return err
}

func (w *writer) run() {
	rest := time.NewTimer(calm)
	defer rest.Stop()
	for {
		rest.Stop()
		if w.open == nil && w.flying == nil && !w.indexFails && w.rev-w.indexed > w.cfg.IndexLag {
			rest.Reset(calm)
		}
		filled := w.queue.filled
		if w.open != nil && w.open.bytes >= batchBytes {
			filled = nil // the rest waits in the queue, which is bounded
		}
		select {
		case <-w.ctx.Done():
			w.end()
			return
		case <-filled:
			w.take()
		case err := <-w.landed:
			answered := w.flying
			w.land(err)
			w.gather(answered)
		case <-rest.C:
			w.open = w.newBatch()
			w.indexFails = w.open.begin() != nil
		}
		if w.open != nil && w.flying == nil {
			w.commit()
		}
	}
}

// gather lets those who have just been answered go on, as long as that brings more
// to share the next wait for the disk, and no longer than the last one took.
func (w *writer) gather(answered *batch) {
	if answered.size() == 1 {
		return
	}
	began := time.Now()
	for more := true; more && time.Since(began) < began.Sub(answered.began); {
		had := w.open.size()
		runtime.Gosched()
		w.take()
		more = w.open.size() > had
	}
}

// size is how many changes there are; a batch that is not there has none.
func (b *batch) size() int {
	if b == nil {
		return 0
	}
	return len(b.changes)
}

// take puts what waits into the open batch.
func (w *writer) take() {
	room := batchBytes
	if w.open != nil {
		room -= w.open.bytes
	}
	for _, c := range w.queue.take(room) {
		if w.open == nil {
			w.open = w.newBatch()
		}
		if err := w.open.add(c); err != nil {
			w.open.fail(err)
			w.open = nil
		}
	}
}

// commit commits the open batch, and sends it on its way to the disk.
func (w *writer) commit() {
	b := w.open
	w.open = nil
	if err := b.commit(); err != nil {
		w.indexFails = true
		b.fail(err)
		return
	}
	w.indexFails = w.indexFails && len(b.changes) == 0
	if len(b.changes) == 0 || b.began.IsZero() || w.cfg.Flush == nil {
		b.publish() // nobody waits for the disk
		return
	}
	w.flying = b
	go func() { w.landed <- w.cfg.Flush() }()
}

// land answers the batch that was on its way. Where it may not have arrived,
// neither it nor what was built upon it is known to anybody, and nothing more is
// written: the file may have it.
func (w *writer) land(err error) {
	b := w.flying
	w.flying = nil
	if err == nil {
		b.publish()
		return
	}
	w.broken = fmt.Errorf("bring a write to the disk: %w", err)
	b.fail(w.broken)
	if w.open != nil {
		w.open.fail(w.broken)
		w.open = nil
	}
}

// end answers all that has been taken.
func (w *writer) end() {
	if w.flying != nil {
		w.land(<-w.landed)
	}
	if w.open != nil {
		w.open.fail(ErrClosed)
	}
}

// batch is what one transaction does.
type batch struct {
	*writer
	tx      driver.Tx       // nil until there is something to write
	rev     int64           // of its last change
	now     map[string]item // keys as they are within the batch; without a revision if gone
	changes []*change
	answers []result
	bytes   int
	events  []*event
	upTo    int64     // what is compacted, if that changes
	index   int64     // what is indexed, likewise
	began   time.Time // when it was committed, if there was anything to commit
}

func (w *writer) newBatch() *batch {
	b := &batch{writer: w, rev: w.rev, now: map[string]item{}, upTo: w.compacted, index: w.indexed}
	if f := w.flying; f != nil {
		b.rev, b.upTo, b.index = f.rev, f.upTo, f.index
	}
	return b
}

// find returns a key as it is before the next change of the batch.
func (b *batch) find(key string) (item, bool) {
	if it, ok := b.now[key]; ok {
		return it, it.rev > 0
	}
	if f := b.flying; f != nil {
		if it, ok := f.now[key]; ok {
			return it, it.rev > 0
		}
	}
	// Nobody else writes to it, so that it can be read without a lock.
	return b.keys.Get(item{key: key})
}

// add decides a change and writes it. The batch is lost with an error.
func (b *batch) add(c *change) error {
	b.changes, b.bytes = append(b.changes, c), b.bytes+c.size()
	if b.broken != nil {
		return b.broken
	}
	events := len(b.events)
	b.answers = append(b.answers, b.decide(c))
	if len(b.events) > events || c.kind == compact {
		if err := b.begin(); err != nil {
			return err
		}
	}
	for _, ev := range b.events[events:] {
		args := [...]driver.NamedValue{
			{Ordinal: 1, Value: ev.rev}, {Ordinal: 2, Value: ev.key}, {Ordinal: 3, Value: ev.prev}, {Ordinal: 4, Value: ev.created},
			{Ordinal: 5, Value: ev.version}, {Ordinal: 6, Value: ev.lease}, {Ordinal: 7, Value: ev.deleted}, {Ordinal: 8, Value: ev.value},
		}
		if _, err := b.insert.ExecContext(context.WithoutCancel(b.ctx), args[:]); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}

// begin opens the transaction, if it is not open.
func (b *batch) begin() error {
	if b.tx != nil {
		return nil
	}
	tx, err := b.conn.BeginTx(context.WithoutCancel(b.ctx), driver.TxOptions{})
	if err != nil {
		return fmt.Errorf("begin to write: %w", err)
	}
	b.tx = tx
	return nil
}

// decide answers a change, should the batch be committed.
func (b *batch) decide(c *change) result {
	if c.kind == compact {
		b.upTo = max(b.upTo, min(c.was, b.rev))
		return result{done: true}
	}
	was, exists := b.find(c.key)
	switch {
	case c.kind == create && exists:
		return result{err: server.ErrKeyExists}
	case c.kind == update && !exists && c.was != 0:
		return result{}
	case c.kind == remove && !exists:
		return result{done: c.was == 0}
	case c.kind != create && c.was != was.rev && (c.kind == update || c.was != 0):
		return result{at: was}
	}
	b.rev++
	now := item{key: c.key, rev: b.rev, created: b.rev, version: 1, lease: c.lease}
	if exists {
		now.created, now.version = was.created, was.version+1
	}
	ev := &event{item: now, prev: was.rev, value: c.value, engine: b.Engine}
	r := result{rev: b.rev, done: true}
	if c.kind == remove {
		ev.item = item{key: c.key, rev: b.rev}
		ev.deleted, ev.value = true, nil
		b.now[c.key] = item{}
		r.at = was
	} else {
		b.now[c.key] = now
		r.kv = ev.keyValue()
	}
	b.events = append(b.events, ev)
	return r
}

// commit is called when no other batch is on its way.
func (b *batch) commit() error {
	if b.tx == nil {
		return nil
	}
	began := time.Now()
	switch {
	case len(b.changes) == 0:
		b.index = min(b.index+indexedAtRest, b.Engine.rev)
	case b.rev-b.index > restless*b.cfg.IndexLag:
		b.index = min(b.index+indexedByOthers+int64(len(b.events)), b.Engine.rev)
	}
	b.index = max(b.index, b.upTo)
	if b.index != b.indexed {
		if err := b.indexes(b.indexed, b.index); err != nil {
			return err
		}
	}
	if b.upTo != b.compacted {
		if err := b.forget(b.compacted, b.upTo); err != nil {
			return err
		}
	}
	b.began = time.Now()
	tx := b.tx
	b.tx = nil
	if err := tx.Commit(); err != nil { // and is rolled back
		return fmt.Errorf("write: %w", err)
	}
	if b.upTo-b.compacted >= b.pace.next() {
		b.pace.took(time.Since(began))
	}
	return nil
}

// fail answers what was not written, or may not have been.
func (b *batch) fail(err error) {
	if b.tx != nil {
		_ = b.tx.Rollback()
	}
	for _, c := range b.changes {
		c.answer <- result{rev: b.Engine.rev, err: err}
	}
}

// publish makes known what is on the disk, and answers.
func (b *batch) publish() {
	if !b.began.IsZero() {
		b.cfg.Metrics.committed(len(b.events), time.Since(b.began))
		b.reveal()
	}
	for i, c := range b.changes {
		r := b.answers[i]
		if r.rev == 0 {
			r.rev = b.rev
		}
		c.answer <- r
	}
}

func (b *batch) reveal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, it := range b.now {
		if it.rev == 0 {
			b.keys.Delete(item{key: key})
		} else {
			b.keys.ReplaceOrInsert(it)
		}
	}
	b.Engine.rev, b.compacted, b.indexed = b.rev, b.upTo, b.index
	known := 0
	for known < len(b.unindexed) && b.unindexed[known].rev <= b.index {
		known++
	}
	b.unindexed = b.unindexed[known:]
	for _, ev := range b.events {
		b.unindexed = append(b.unindexed, revised{ev.key, ev.rev})
		b.ring.add(ev)
		if ev.lease > 0 {
			b.lease.add(ev.item)
		}
		for w := range b.watchers {
			if w.wants(ev.key) {
				w.match(ev.rev)
				w.rouse()
			}
		}
	}
}
