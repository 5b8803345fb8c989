package datastore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Change is a row of a store's table, as its driver wrote it: the revision first
// or where the driver has it. Values are int64, string, []byte or nil.
type Change []any

// ErrForgotten is told of changes that were compacted.
var ErrForgotten = errors.New("changes were forgotten meanwhile")

// Changes calls yield for each change after a revision, oldest first, and returns the
// last revision. It fails with ErrForgotten where some are not known any more.
func (i *Inspector) Changes(ctx context.Context, after int64, yield func(Change) error) (last int64, err error) {
	if i.compacted > after {
		return after, fmt.Errorf("read datastore %s after revision %d: %w", i.path, after, ErrForgotten)
	}
	rows, err := i.tx.QueryContext(ctx, "SELECT "+i.rev+", * FROM "+i.table+" WHERE "+i.rev+" > ? ORDER BY "+i.rev, after)
	if err != nil {
		return after, fmt.Errorf("read datastore %s: %w", i.path, err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return after, fmt.Errorf("read datastore %s: %w", i.path, err)
	}
	last = after
	for rows.Next() {
		change, into := make(Change, len(columns)), make([]any, len(columns))
		for n := range change {
			into[n] = &change[n]
		}
		if err := rows.Scan(into...); err != nil {
			return last, fmt.Errorf("read datastore %s: %w", i.path, err)
		}
		revision, ok := change[0].(int64)
		if !ok {
			return last, fmt.Errorf("read datastore %s: a revision is a %T", i.path, change[0])
		}
		if err := yield(change[1:]); err != nil {
			return last, err
		}
		last = revision
	}
	if err := rows.Err(); err != nil {
		return last, fmt.Errorf("read datastore %s: %w", i.path, err)
	}
	return last, nil
}

// Replay writes changes of a store of the same driver to a copy of it that nobody
// has open. next returns nil at the end. All are written, or none.
func Replay(ctx context.Context, path string, next func() (Change, error)) error {
	i, err := Inspect(ctx, path)
	if err != nil {
		return err
	}
	table := i.table
	i.Close()
	db, err := sql.Open("sqlite3", "file:"+(&url.URL{Path: path}).EscapedPath()+"?mode=rw&_txlock=immediate&_synchronous=FULL")
	if err != nil {
		return fmt.Errorf("open datastore %s: %w", path, err)
	}
	defer db.Close()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("write changes to datastore %s: %w", path, err)
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	var insert *sql.Stmt
	for {
		change, err := next()
		if err != nil {
			return err
		}
		if change == nil {
			break
		}
		if insert == nil {
			insert, err = tx.PrepareContext(ctx, "INSERT INTO "+table+" VALUES(?"+strings.Repeat(", ?", len(change)-1)+")")
			if err != nil {
				return fmt.Errorf("write changes to datastore %s: %w", path, err)
			}
			defer insert.Close()
		}
		if _, err := insert.ExecContext(ctx, change...); err != nil {
			return fmt.Errorf("write changes to datastore %s: %w", path, err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("write changes to datastore %s: %w", path, err)
	}
	return nil
}
