package engine

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

// batchBytes is about how much is committed at once: more would only let the
// first of them wait longer.
const batchBytes = 4 << 20

// writer makes all changes, in a goroutine of its own.
type writer struct {
	*Engine
	conn   *sql.Conn
	insert *sql.Stmt
}

func newWriter(e *Engine) (*writer, error) {
	conn, err := e.db.Conn(e.ctx)
	if err != nil {
		return nil, err
	}
	insert, err := conn.PrepareContext(e.ctx, "INSERT INTO log(rev, name, prev, created, version, lease, deleted, value) VALUES(?, ?, ?, ?, ?, ?, ?, ?)")
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &writer{Engine: e, conn: conn, insert: insert}, nil
}

func (w *writer) run() {
	defer w.conn.Close()
	defer w.insert.Close()
	defer w.queue.close()
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-w.queue.filled:
			if changes := w.queue.take(batchBytes); len(changes) > 0 {
				w.write(changes)
			}
		}
	}
}

// batch is what one transaction does.
type batch struct {
	*writer
	rev     int64           // of its last change
	now     map[string]item // keys as they are within the batch; without a revision if gone
	events  []*event
	answers []result
	upTo    int64 // what is compacted, if that changes
	index   int64 // what is indexed, likewise
}

// write commits changes and answers them.
func (w *writer) write(changes []*change) {
	b := &batch{writer: w, rev: w.rev, now: map[string]item{}, upTo: w.compacted, index: w.indexed}
	for _, c := range changes {
		b.answers = append(b.answers, b.decide(c))
	}
	if err := b.commit(); err != nil {
		for _, c := range changes {
			c.answer <- result{rev: w.rev, err: err}
		}
		return
	}
	b.publish()
	for i, c := range changes {
		r := b.answers[i]
		if r.rev == 0 {
			r.rev = b.rev
		}
		c.answer <- r
	}
}

// find returns a key as it is before the next change of the batch.
func (b *batch) find(key string) (item, bool) {
	if it, ok := b.now[key]; ok {
		return it, it.rev > 0
	}
	// Nobody else writes to it, so that it can be read without a lock.
	return b.keys.Get(item{key: key})
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

func (b *batch) commit() error {
	if len(b.events) == 0 && b.upTo == b.compacted {
		return nil
	}
	if b.rev-b.index > b.cfg.IndexLag {
		b.index = min(b.index+indexedAtOnce, b.rev)
	}
	b.index = max(b.index, b.upTo)

	ctx := context.WithoutCancel(b.ctx)
	tx, err := b.conn.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin to write: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	for _, ev := range b.events {
		if _, err := b.insert.ExecContext(ctx, ev.rev, ev.key, ev.prev, ev.created, ev.version, ev.lease, ev.deleted, ev.value); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	if b.index != b.indexed {
		if err := indexes(ctx, tx, b.indexed, b.index); err != nil {
			return err
		}
	}
	if b.upTo != b.compacted {
		if err := forget(ctx, tx, b.compacted, b.upTo); err != nil {
			return err
		}
	}
	began := time.Now()
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	b.cfg.Metrics.committed(len(b.events), time.Since(began))
	return nil
}

// publish makes known what has been committed.
func (b *batch) publish() {
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
	for _, ev := range b.events {
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
