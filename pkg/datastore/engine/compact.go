package engine

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

// forgottenAtOnce is how many revisions one transaction forgets: a few
// milliseconds, which everybody waits who writes.
const forgottenAtOnce = 500

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
		step := min(revision, done+forgottenAtOnce)
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

// indexedAtOnce is how many revisions a commit brings the index on, once it is too
// far behind. A key that changes often is written to it once for all its changes
// in between.
const indexedAtOnce = 500

// indexes brings cur, in a transaction, from one revision to a later one. It has
// to come before what is forgotten up to there, which may be a deletion.
func indexes(ctx context.Context, tx *sql.Tx, from, to int64) error {
	for _, step := range []string{
		`INSERT INTO cur(name, rev, created, version, lease, deleted)
			SELECT name, rev, created, version, lease, deleted FROM log WHERE rev > ?1 AND rev <= ?2 ORDER BY rev
			ON CONFLICT(name) DO UPDATE SET rev = excluded.rev, created = excluded.created, version = excluded.version,
			lease = excluded.lease, deleted = excluded.deleted`,
		"DELETE FROM cur WHERE deleted = 1 AND name IN (SELECT name FROM log WHERE rev > ?1 AND rev <= ?2 AND deleted = 1)",
		"INSERT INTO meta(k, v) VALUES('indexed', ?2) ON CONFLICT(k) DO UPDATE SET v = excluded.v WHERE ?1 < ?2",
	} {
		if _, err := tx.ExecContext(ctx, step, from, to); err != nil {
			return fmt.Errorf("write the index up to revision %d: %w", to, err)
		}
	}
	return nil
}

// forget removes, in a transaction, rows that nobody can ask for once revision to
// is the oldest: those changed again by then, and deletions before. What is
// before from has been looked at.
func forget(ctx context.Context, tx *sql.Tx, from, to int64) error {
	for _, step := range []string{
		"DELETE FROM log WHERE rev IN (SELECT prev FROM log WHERE rev > ?1 AND rev <= ?2 AND prev > 0)",
		// That at the oldest revision itself is still watched for. It goes with the next step.
		"DELETE FROM log WHERE rev >= ?1 AND rev < ?2 AND deleted = 1",
		"INSERT INTO meta(k, v) VALUES('compacted', ?2) ON CONFLICT(k) DO UPDATE SET v = excluded.v WHERE ?1 <= ?2",
	} {
		if _, err := tx.ExecContext(ctx, step, from, to); err != nil {
			return fmt.Errorf("forget revisions up to %d: %w", to, err)
		}
	}
	return nil
}
