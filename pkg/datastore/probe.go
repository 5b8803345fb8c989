package datastore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// checkedAtOnce is the size of a store, in bytes, up to which its structure is
// checked before it is used: some milliseconds. Larger ones are checked while
// they are used already.
const checkedAtOnce = 64 << 20

// rescued is where a store is saved whose file goes missing: beside its folder,
// of which more may be about to go.
func rescued(path string) string {
	return filepath.Join(filepath.Dir(path)+".rescued", filepath.Base(path))
}

// probe tells at once what kine's driver would try again for five minutes, or
// would make worse: a file that is not a database, is damaged, or cannot be
// written, and one that should be there and is not. It changes nothing. Files
// that are unchanged since they were closed in order are not looked through.
func probe(ctx context.Context, path, driver string, unchanged bool) error {
	if _, err := os.Stat(rescued(path)); err == nil {
		return advice(fmt.Sprintf("its file was removed or replaced while it was in use, and was saved: to go on with it, stop Knarr, "+
			"move what else is in its folder away and `mv %s %s`; to begin with an empty cluster, move all of it away", rescued(path), path))
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return probeLog(path)
	}
	if err != nil {
		return err
	}
	if err := unix.Access(path, unix.R_OK|unix.W_OK); err != nil {
		return fmt.Errorf("read and write it: %w", err)
	}
	db, err := readOnly(path)
	if err != nil {
		return err
	}
	defer db.Close()
	var version int
	if err := db.QueryRowContext(ctx, "PRAGMA schema_version").Scan(&version); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if driver != "sqlite" {
		if err := refuseOurs(ctx, db); err != nil {
			return err
		}
	}
	if unchanged || info.Size() > checkedAtOnce {
		return nil
	}
	return check(ctx, db)
}

// refuseOurs fails if our engine has taken the file over: kine would begin an
// empty cluster beside it.
func refuseOurs(ctx context.Context, db *sql.DB) error {
	ours, _, err := whose(ctx, db)
	if err != nil {
		return err
	}
	if ours {
		return advice("it was written with --datastore-driver=sqlite: start with that again, or restore a backup from before")
	}
	return nil
}

// rower is a file that is open, or a transaction on one.
type rower interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// whose tells which drivers' tables a file has.
func whose(ctx context.Context, file rower) (ours, theirs bool, err error) {
	const has = "EXISTS(SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = "
	if err := file.QueryRowContext(ctx, "SELECT "+has+"'log'), "+has+"'kine')").Scan(&ours, &theirs); err != nil {
		return false, false, fmt.Errorf("look for whose tables it has: %w", err)
	}
	return ours, theirs, nil
}

// probeLog refuses a store of which only the log is left: SQLite would make a new
// one and remove the log.
func probeLog(path string) error {
	info, err := os.Stat(path + "-wal")
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return advice(fmt.Sprintf("it is missing or empty, and its log %s-wal is not: put it back or restore a backup; to begin with an empty cluster, move both away", path))
}

func readOnly(path string) (*sql.DB, error) {
	return sql.Open("sqlite3", "file:"+(&url.URL{Path: path}).EscapedPath()+"?mode=ro&_busy_timeout=5000")
}

// check looks at the structure of every page; a value that was changed in place
// it cannot tell from what was written.
func check(ctx context.Context, db rower) error {
	var first string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&first); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	if first != "ok" {
		return fmt.Errorf("it is damaged: %s", first)
	}
	return nil
}
