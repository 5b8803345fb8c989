package engine

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// The tables. A revision's row is written once and never changed; the value comes
// last, so that what is before it is read without it. prev is the revision of the
// key before this change, 0 if it did not exist.
//
// cur has the keys as they were at one revision, so that a start need not read all
// of the log: it goes on from there. A key that has changed after that may have an
// older row in cur, or none. No read of a running store looks at it.
//
// meta has the revision below which rows may be missing, as "compacted", and that
// of cur, as "indexed".
const schema = `
CREATE TABLE IF NOT EXISTS log(
	rev INTEGER PRIMARY KEY,
	name TEXT NOT NULL,
	prev INTEGER NOT NULL,
	created INTEGER NOT NULL,
	version INTEGER NOT NULL,
	lease INTEGER NOT NULL,
	deleted INTEGER NOT NULL,
	value BLOB);
CREATE TABLE IF NOT EXISTS cur(
	name TEXT PRIMARY KEY,
	rev INTEGER NOT NULL,
	created INTEGER NOT NULL,
	version INTEGER NOT NULL,
	lease INTEGER NOT NULL,
	deleted INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta(k TEXT PRIMARY KEY, v) WITHOUT ROWID;
`

func prepare(ctx context.Context, db *sql.DB, seed func() ([]Entry, error)) error {
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return fmt.Errorf("make the store's tables: %w", err)
	}
	if err := takeOver(ctx, db); err != nil {
		return err
	}
	return Fill(ctx, db, "log", `INSERT INTO log(rev, name, prev, created, version, lease, deleted, value)
		SELECT next, ?1, 0, next, 1, 0, 0, ?2 FROM (SELECT COALESCE(MAX(rev), 0) + 1 AS next FROM log)`, seed, indexKeys, indexRevision)
}

// These fill an empty index from a log in which each key has one row.
const (
	indexKeys = `INSERT INTO cur(name, rev, created, version, lease, deleted)
		SELECT name, rev, created, version, lease, 0 FROM log WHERE deleted = 0 ORDER BY name`
	indexRevision = `INSERT INTO meta(k, v) SELECT 'indexed', COALESCE(MAX(rev), 0) FROM log`
)

// Fill writes the seed into a table that has never been used, in one transaction
// and so with one wait for the disk. insert makes an entry of a key and a value;
// other statements follow. Without a seed it does nothing.
func Fill(ctx context.Context, db *sql.DB, table, insert string, seed func() ([]Entry, error), then ...string) error {
	if seed == nil {
		return nil
	}
	var rows int
	if err := db.QueryRowContext(ctx, "SELECT COUNT(*) FROM (SELECT 1 FROM "+table+" LIMIT 1)").Scan(&rows); err != nil {
		return fmt.Errorf("look for entries: %w", err)
	}
	if rows > 0 {
		return nil
	}
	entries, err := seed()
	if err != nil {
		return fmt.Errorf("make the first entries: %w", err)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("write the first entries: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	stmt, err := tx.PrepareContext(ctx, insert)
	if err != nil {
		return fmt.Errorf("write the first entries: %w", err)
	}
	defer stmt.Close()
	for _, e := range entries {
		if _, err := stmt.ExecContext(ctx, e.Key, e.Value); err != nil {
			return fmt.Errorf("write %s: %w", e.Key, err)
		}
	}
	for _, statement := range then {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("write the first entries: %w", err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("write the first entries: %w", err)
	}
	return nil
}

// takeOver fills an empty store with what kine's driver has left in the same
// file: every living key at its revision. History ends there, so that clients who
// watch from before are told to list anew. It happens in one transaction.
func takeOver(ctx context.Context, db *sql.DB) error {
	var theirs, ours int
	err := db.QueryRowContext(ctx, `SELECT (SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'kine'),
		(SELECT COUNT(*) FROM (SELECT 1 FROM log LIMIT 1))`).Scan(&theirs, &ours)
	if err != nil {
		return fmt.Errorf("look for a store of kine's: %w", err)
	}
	if theirs == 0 {
		return nil
	}
	if ours > 0 {
		return errors.New("the file has tables of both drivers in use: restore a backup, or drop the table kine if it is the older one")
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("take over kine's store: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	for _, step := range []string{
		// kine's own bookkeeping, and the numbers that it fills gaps with, stay behind.
		`INSERT INTO log(rev, name, prev, created, version, lease, deleted, value)
			SELECT id, name, 0, CASE WHEN created = 1 THEN id ELSE create_revision END, 1, lease, 0, value FROM kine AS k
			WHERE id = (SELECT MAX(id) FROM kine WHERE name = k.name) AND deleted = 0
			AND name != 'compact_rev_key' AND name NOT LIKE 'gap-%'`,
		// The last revision has a row, be it that of a key that is gone.
		`INSERT OR IGNORE INTO log(rev, name, prev, created, version, lease, deleted, value)
			SELECT id, name, 0, 0, 0, 0, 1, NULL FROM kine WHERE id = (SELECT MAX(id) FROM kine)`,
		`INSERT INTO meta(k, v) SELECT 'compacted', COALESCE(MAX(id), 0) FROM kine`,
		indexKeys,
		indexRevision,
		`DROP TABLE kine`,
	} {
		if _, err := tx.ExecContext(ctx, step); err != nil {
			return fmt.Errorf("take over kine's store: %w", err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("take over kine's store: %w", err)
	}
	return nil
}

// load reads which keys there are.
func (e *Engine) load(ctx context.Context) error {
	err := e.db.QueryRowContext(ctx, `SELECT COALESCE((SELECT v FROM meta WHERE k = 'compacted'), 0),
		COALESCE((SELECT v FROM meta WHERE k = 'indexed'), 0), COALESCE((SELECT MAX(rev) FROM log), 0)`).
		Scan(&e.compacted, &e.indexed, &e.rev)
	if err != nil {
		return fmt.Errorf("read the store's revision: %w", err)
	}
	e.ring.first = e.rev + 1
	for _, query := range []string{
		"SELECT rev, name, created, version, lease, deleted FROM cur WHERE rev <= ? ORDER BY name",
		"SELECT rev, name, created, version, lease, deleted FROM log WHERE rev > ? ORDER BY rev",
	} {
		if err := e.loadKeys(ctx, query); err != nil {
			return fmt.Errorf("read the store's keys: %w", err)
		}
	}
	e.keys.Ascend(func(it item) bool {
		e.lease.add(it)
		return true
	})
	return nil
}

func (e *Engine) loadKeys(ctx context.Context, query string) error {
	rows, err := e.db.QueryContext(ctx, query, e.indexed)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var it item
		var deleted bool
		if err := rows.Scan(&it.rev, &it.key, &it.created, &it.version, &it.lease, &deleted); err != nil {
			return err
		}
		if it.rev > e.indexed {
			e.unindexed = append(e.unindexed, revised{it.key, it.rev})
		}
		if deleted {
			e.keys.Delete(it)
		} else {
			e.keys.ReplaceOrInsert(it)
		}
	}
	return rows.Err()
}
