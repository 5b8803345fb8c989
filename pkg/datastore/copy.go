package datastore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// Copy writes a store's file, as it is at one moment, to a new file: without its
// free room, and with no log beside it. Whoever writes to the store meanwhile is
// not held up; the store's log may grow until the copy is done. The copy is
// open to its owner alone.
func Copy(ctx context.Context, path, to string) error {
	i, err := Inspect(ctx, path) // tells what is no store
	if err != nil {
		return err
	}
	i.Close()
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("copy datastore: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("copy datastore: %w", err)
	}
	db, err := readOnly(path)
	if err != nil {
		return fmt.Errorf("open datastore %s: %w", path, err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "VACUUM INTO ?", to); err != nil {
		return errors.Join(fmt.Errorf("copy datastore %s to %s: %w", path, to, err), os.Remove(to))
	}
	return nil
}

// restoredKey is deleted at the revision that a restored store begins with.
const restoredKey = "knarr-restored"

// Renew prepares a copy that takes the place of a store which has gone on since:
// it forgets history and counts on from a revision that the lost one cannot have
// reached. A client who has seen more than the copy has, and asks for what came
// after, is then told to list anew; with the old count it would wait for
// revisions of the past, and miss those that are made meanwhile. etcd's
// "snapshot restore --bump-revision --mark-compacted" does the same.
func Renew(ctx context.Context, path string, by int64) error {
	if by < 1 {
		return fmt.Errorf("renew datastore %s: %d revisions cannot be left out", path, by)
	}
	if err := Compact(ctx, path); err != nil {
		return err
	}
	if err := skip(ctx, path, by); err != nil {
		return fmt.Errorf("renew datastore %s: %w", path, err)
	}
	return nil
}

// skip leaves revisions out.
func skip(ctx context.Context, path string, by int64) error {
	db, err := sql.Open("sqlite3", "file:"+(&url.URL{Path: path}).EscapedPath()+"?mode=rw&_txlock=immediate&_synchronous=FULL")
	if err != nil {
		return err
	}
	defer db.Close()
	ours, _, err := whose(ctx, db)
	if err != nil {
		return err
	}
	// A row has the last revision, until there are others. Of our engine's index
	// of keys, nothing is left to be written in steps.
	steps := []string{
		`DELETE FROM cur`,
		// Beside MAX, SQLite takes the other columns from the row that has it.
		`INSERT INTO cur(name, rev, created, version, lease, deleted)
			SELECT name, MAX(rev), created, version, lease, deleted FROM log GROUP BY name HAVING deleted = 0`,
		`INSERT INTO log(rev, name, prev, created, version, lease, deleted, value)
			SELECT MAX(rev) + ?1, ?2, 0, 0, 0, 0, 1, NULL FROM log`,
		`INSERT OR REPLACE INTO meta(k, v) SELECT k, MAX(rev) FROM log, (SELECT 'compacted' AS k UNION SELECT 'indexed') GROUP BY k`,
	}
	if !ours {
		steps = []string{
			`INSERT INTO kine(id, name, created, deleted, create_revision, prev_revision, lease, value, old_value)
				SELECT MAX(id) + ?1, ?2, 0, 1, 0, COALESCE(MAX(CASE WHEN name = ?2 THEN id END), 0), 0, NULL, NULL FROM kine`,
			`UPDATE kine SET prev_revision = (SELECT MAX(id) FROM kine) WHERE name = 'compact_rev_key'`,
		}
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	for _, step := range steps {
		// SQLite counts the arguments of each statement.
		args := []any{by, restoredKey}[:min(strings.Count(step, "?"), 2)]
		if _, err := tx.ExecContext(ctx, step, args...); err != nil {
			return err
		}
	}
	return tx.Commit()
}
