package datastore

import (
	"context"
	"database/sql"
	"fmt"
)

// fill writes the seed into a store that has never been used, in one
// transaction and so with one wait for the disk. It must run before the
// backend starts to follow the table.
func fill(ctx context.Context, db *sql.DB, seed func() ([]KeyValue, error)) error {
	var rows int
	if err := db.QueryRowContext(ctx, "SELECT COUNT(*) FROM (SELECT 1 FROM kine LIMIT 1)").Scan(&rows); err != nil {
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
	// A row as kine's driver writes it for a key that is created.
	stmt, err := tx.PrepareContext(ctx, `INSERT INTO kine(name, created, deleted, create_revision, prev_revision, lease, value, old_value)
		VALUES(?, 1, 0, 0, 0, 0, ?, NULL)`)
	if err != nil {
		return fmt.Errorf("write the first entries: %w", err)
	}
	defer stmt.Close()
	for _, e := range entries {
		if _, err := stmt.ExecContext(ctx, e.Key, e.Value); err != nil {
			return fmt.Errorf("write %s: %w", e.Key, err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("write the first entries: %w", err)
	}
	return nil
}
