package engine

import (
	"cmp"
	"context"
	"database/sql/driver"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

// Everybody who writes waits for the transaction that forgets revisions. It forgets
// so many that this takes about forgetTime, by how long it took before.
const (
	forgetTime                           = 4 * time.Millisecond
	leastAtOnce, firstAtOnce, mostAtOnce = 50, 200, 500
)

// pace is how many revisions are to be forgotten at once.
type pace struct{ n atomic.Int64 }

func (p *pace) next() int64 { return cmp.Or(p.n.Load(), firstAtOnce) }

// took learns from a transaction that forgot as many as were to be.
func (p *pace) took(d time.Duration) {
	n := p.next()
	switch {
	case d > forgetTime:
		n /= 2
	case d < forgetTime/2:
		n += n / 4
	}
	p.n.Store(min(max(n, leastAtOnce), mostAtOnce))
}

// Compact forgets what was changed again up to a revision, and returns the
// store's. It does so in steps, each in a transaction that other changes share. It
// fails with server.ErrCompacted if that was done before, and with
// server.ErrFutureRev if there is no such revision yet.
func (e *Engine) Compact(ctx context.Context, revision int64) (int64, error) {
	for first := true; ; first = false {
		e.mu.RLock()
		done, rev := e.compacted, e.rev
		e.mu.RUnlock()
		switch {
		case revision > rev:
			return rev, server.ErrFutureRev
		case done >= revision && first:
			return rev, server.ErrCompacted
		case done >= revision:
			return rev, nil
		}
		step := min(revision, done+e.pace.next())
		if r := e.do(ctx, &change{kind: compact, was: step}); r.err != nil {
			return rev, r.err
		}
	}
}

// compactNowAndThen forgets revisions that are as old as the pause between.
func (e *Engine) compactNowAndThen() {
	if e.cfg.CompactEvery < 0 {
		return
	}
	tick := time.NewTicker(e.cfg.CompactEvery)
	defer tick.Stop()
	target, _ := e.CurrentRevision(e.ctx)
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-tick.C:
		}
		now, _ := e.CurrentRevision(e.ctx)
		// An error is that of the disk, of which the next change is told, too, or
		// there is nothing to do.
		_, _ = e.Compact(e.ctx, min(target, now-e.cfg.CompactRetain))
		target = now
	}
}

// The index is brought on when nothing has been written for a moment, or by what is
// written if that never happens. Each revision may be on a page of its own, so that
// a hundred of them take milliseconds. Of a key that changes often only the last
// change is written to it.
const (
	// calm is how long nothing is to happen before it is brought on, and between two
	// steps.
	calm = 20 * time.Millisecond
	// indexedAtRest is how many revisions a step brings it on.
	indexedAtRest = 200
	// restless is how many times its lag it may be behind before commits bring it on,
	// by as many as they have themselves and indexedByOthers more.
	restless        = 10
	indexedByOthers = 16
)

// revised is a revision of a key.
type revised struct {
	key string
	rev int64
}

// These write the index.
const (
	indexKey = `INSERT INTO cur(name, rev, created, version, lease, deleted) VALUES(?, ?, ?, ?, ?, 0)
		ON CONFLICT(name) DO UPDATE SET rev = excluded.rev, created = excluded.created, version = excluded.version, lease = excluded.lease`
	unindexKey = "DELETE FROM cur WHERE name = ?"
)

// indexes brings cur, in a transaction, from one revision to a later one. It has
// to come before what is forgotten up to there, which may be a deletion. A key that
// has changed again is left for that change: a start reads it in the log.
func (w *writer) indexes(from, to int64) error {
	for _, r := range w.unindexed {
		if r.rev > to {
			break
		}
		stmt, args := w.unindex, []driver.NamedValue{{Ordinal: 1, Value: r.key}}
		if it, ok := w.keys.Get(item{key: r.key}); ok {
			if it.rev != r.rev {
				continue
			}
			stmt, args = w.index, append(args, driver.NamedValue{Ordinal: 2, Value: it.rev}, driver.NamedValue{Ordinal: 3, Value: it.created},
				driver.NamedValue{Ordinal: 4, Value: it.version}, driver.NamedValue{Ordinal: 5, Value: it.lease})
		}
		if _, err := stmt.ExecContext(context.WithoutCancel(w.ctx), args); err != nil {
			return fmt.Errorf("write %s to the index: %w", r.key, err)
		}
	}
	if err := w.exec("INSERT INTO meta(k, v) VALUES('indexed', ?2) ON CONFLICT(k) DO UPDATE SET v = excluded.v WHERE ?1 < ?2", from, to); err != nil {
		return fmt.Errorf("write the index up to revision %d: %w", to, err)
	}
	return nil
}

// forget removes, in a transaction, rows that nobody can ask for once revision to
// is the oldest: those changed again by then, and deletions before. What is
// before from has been looked at.
func (w *writer) forget(from, to int64) error {
	for _, step := range []string{
		"DELETE FROM log WHERE rev IN (SELECT prev FROM log WHERE rev > ?1 AND rev <= ?2 AND prev > 0)",
		// That at the oldest revision itself is still watched for. It goes with the next step.
		"DELETE FROM log WHERE rev >= ?1 AND rev < ?2 AND deleted = 1",
		"INSERT INTO meta(k, v) VALUES('compacted', ?2) ON CONFLICT(k) DO UPDATE SET v = excluded.v WHERE ?1 <= ?2",
	} {
		if err := w.exec(step, from, to); err != nil {
			return fmt.Errorf("forget revisions up to %d: %w", to, err)
		}
	}
	return nil
}
