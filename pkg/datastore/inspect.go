package datastore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
)

// Inspector reads a store's file, of either driver, beside whoever writes to it.
// All it tells is as it was when it was opened.
type Inspector struct {
	// Driver is who keeps the file.
	Driver string

	db        *sql.DB
	tx        *sql.Tx
	path      string
	table     string
	rev       string // the column with the revision
	compacted int64
}

// Inspect opens a store's file to read it. The caller closes it.
func Inspect(ctx context.Context, path string) (*Inspector, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open datastore: there is none at %s: give --data-dir as the server gets it", path)
	case err != nil:
		return nil, fmt.Errorf("open datastore: %w", err)
	case info.Size() == 0:
		return nil, fmt.Errorf("open datastore %s: it is empty", path)
	}
	db, err := readOnly(path)
	if err != nil {
		return nil, fmt.Errorf("open datastore %s: %w", path, err)
	}
	i := &Inspector{db: db, path: path}
	if err := i.begin(ctx); err != nil {
		db.Close()
		return nil, fmt.Errorf("read datastore %s: %w", path, err)
	}
	return i, nil
}

func (i *Inspector) begin(ctx context.Context) error {
	var err error
	if i.tx, err = i.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true}); err != nil {
		return err
	}
	ours, theirs, err := whose(ctx, i.tx)
	switch {
	case err != nil:
		return err
	case ours && !theirs:
		i.Driver, i.table, i.rev = "sqlite", "log", "rev"
		return i.tx.QueryRowContext(ctx, "SELECT COALESCE((SELECT v FROM meta WHERE k = 'compacted'), 0)").Scan(&i.compacted)
	case theirs:
		i.Driver, i.table, i.rev = "kine-sqlite", "kine", "id"
		return i.tx.QueryRowContext(ctx, "SELECT COALESCE((SELECT MAX(prev_revision) FROM kine WHERE name = 'compact_rev_key'), 0)").Scan(&i.compacted)
	}
	return errors.New("it has the tables of neither driver: is it Knarr's?")
}

// Close ends the reading.
func (i *Inspector) Close() {
	_ = i.tx.Rollback() // of nothing
	_ = i.db.Close()
}

// Row is a revision of a key.
type Row struct {
	Key      string
	Revision int64
	// Size is the value's, in bytes.
	Size    int64
	Deleted bool
}

// settle makes the row the last one of its key.
func (r Row) settle(living map[string]Row) {
	if living[r.Key] = r; r.Deleted {
		delete(living, r.Key)
	}
}

// Each calls yield for every revision in the file, oldest first.
func (i *Inspector) Each(ctx context.Context, yield func(Row) error) error {
	err := i.each(ctx, "SELECT "+i.rev+", name, deleted, COALESCE(length(value), 0) FROM "+i.table+" ORDER BY "+i.rev, func(r *sql.Rows) error {
		var row Row
		if err := r.Scan(&row.Revision, &row.Key, &row.Deleted, &row.Size); err != nil {
			return err
		}
		if i.table == "kine" && (row.Key == "compact_rev_key" || strings.HasPrefix(row.Key, "gap-")) {
			return nil // its own bookkeeping
		}
		return yield(row)
	})
	if err != nil {
		return fmt.Errorf("read datastore %s: %w", i.path, err)
	}
	return nil
}

func (i *Inspector) each(ctx context.Context, query string, yield func(*sql.Rows) error) error {
	rows, err := i.tx.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := yield(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// Living returns the last revision of each key that exists.
func (i *Inspector) Living(ctx context.Context) (map[string]Row, error) {
	living := map[string]Row{}
	return living, i.Each(ctx, func(r Row) error {
		r.settle(living)
		return nil
	})
}

// Value returns that of a revision.
func (i *Inspector) Value(ctx context.Context, revision int64) ([]byte, error) {
	var value []byte
	if err := i.tx.QueryRowContext(ctx, "SELECT value FROM "+i.table+" WHERE "+i.rev+" = ?", revision).Scan(&value); err != nil {
		return nil, fmt.Errorf("read revision %d of datastore %s: %w", revision, i.path, err)
	}
	return value, nil
}

// Stats are the sizes of a store.
type Stats struct {
	Path   string `json:"path"`
	Driver string `json:"driver"`
	// FileBytes and LogBytes are those of the file and of its write-ahead log,
	// which has its room whether it needs it or not.
	FileBytes int64 `json:"fileBytes"`
	LogBytes  int64 `json:"logBytes"`
	// FreeBytes are those in the file that new data will take.
	FreeBytes int64 `json:"freeBytes"`
	Revision  int64 `json:"revision"`
	Compacted int64 `json:"compacted"`
	// Keys exist, and their values have KeyBytes.
	Keys     int64 `json:"keys"`
	KeyBytes int64 `json:"keyBytes"`
	// Revisions are kept, of keys that exist or did, and have RevisionBytes.
	Revisions     int64 `json:"revisions"`
	RevisionBytes int64 `json:"revisionBytes"`
	// Resources are by the part of the key that names them.
	Resources map[string]ResourceStats `json:"resources"`
}

// ResourceStats are the sizes of the keys of one resource.
type ResourceStats struct {
	Keys      int64 `json:"keys"`
	KeyBytes  int64 `json:"keyBytes"`
	Revisions int64 `json:"revisions"`
}

// Stats counts what is in the store, which reads all of it.
func (i *Inspector) Stats(ctx context.Context) (Stats, error) {
	s := Stats{Path: i.path, Driver: i.Driver, Compacted: i.compacted, Resources: map[string]ResourceStats{}}
	for path, size := range map[string]*int64{i.path: &s.FileBytes, i.path + "-wal": &s.LogBytes} {
		if info, err := os.Stat(path); err == nil {
			*size = info.Size()
		}
	}
	if err := i.tx.QueryRowContext(ctx, "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size").Scan(&s.FreeBytes); err != nil {
		return s, fmt.Errorf("read datastore %s: %w", i.path, err)
	}
	living := map[string]Row{}
	err := i.Each(ctx, func(r Row) error {
		r.settle(living)
		of := s.Resources[resourceOf(r.Key)]
		of.Revisions++
		s.Resources[resourceOf(r.Key)] = of
		s.Revision = r.Revision
		s.Revisions++
		s.RevisionBytes += r.Size
		return nil
	})
	for key, r := range living {
		of := s.Resources[resourceOf(key)]
		of.Keys++
		of.KeyBytes += r.Size
		s.Resources[resourceOf(key)] = of
		s.Keys++
		s.KeyBytes += r.Size
	}
	return s, err
}

// resourceOf returns the part of a key that names its resource: that after
// /registry, and the next one where a group stands before it.
func resourceOf(key string) string {
	parts := strings.SplitN(strings.TrimPrefix(key, "/registry/"), "/", 3)
	if len(parts) > 1 && strings.Contains(parts[0], ".") {
		return parts[1] + "." + parts[0]
	}
	return parts[0]
}

// Glance looks at the structure of all pages, as a start does, and returns the last
// revision. It keeps nothing in memory.
func (i *Inspector) Glance(ctx context.Context) (revision int64, err error) {
	if err := check(ctx, i.tx); err != nil {
		return 0, fmt.Errorf("datastore %s: %w", i.path, err)
	}
	if err := i.tx.QueryRowContext(ctx, "SELECT COALESCE(MAX("+i.rev+"), 0) FROM "+i.table).Scan(&revision); err != nil {
		return 0, fmt.Errorf("read datastore %s: %w", i.path, err)
	}
	return revision, nil
}

// Check looks for damage: at SQLite's structures, and at whether our engine's
// tables agree. It returns a line for each fault, a hundred at most.
func (i *Inspector) Check(ctx context.Context) ([]string, error) {
	var faults []string
	err := i.each(ctx, "PRAGMA integrity_check(100)", func(r *sql.Rows) error {
		var line string
		if err := r.Scan(&line); err != nil {
			return err
		}
		if line != "ok" {
			faults = append(faults, line)
		}
		return nil
	})
	if err == nil && len(faults) == 0 && i.table == "log" {
		faults, err = i.checkEngine(ctx)
	}
	if err != nil {
		return faults, fmt.Errorf("check datastore %s: %w", i.path, err)
	}
	return faults[:min(len(faults), 100)], nil
}

func (i *Inspector) checkEngine(ctx context.Context) ([]string, error) {
	var indexed int64
	if err := i.tx.QueryRowContext(ctx, "SELECT COALESCE((SELECT v FROM meta WHERE k = 'indexed'), 0)").Scan(&indexed); err != nil {
		return nil, err
	}
	var faults []string
	found := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	living := map[string]int64{}
	later := map[string]bool{} // changed since the index, so that it may have what it wants
	last := i.compacted
	err := i.each(ctx, "SELECT rev, name, prev, deleted FROM log ORDER BY rev", func(r *sql.Rows) error {
		var rev, prev int64
		var name string
		var deleted bool
		if err := r.Scan(&rev, &name, &prev, &deleted); err != nil {
			return err
		}
		if rev > i.compacted {
			if rev != last+1 {
				found("revisions %d to %d are missing", last+1, rev-1)
			}
			last = rev
			if was := living[name]; prev != was {
				found("revision %d of %s follows %d, and says it follows %d", rev, name, was, prev)
			}
		}
		living[name] = rev
		if deleted {
			delete(living, name)
		}
		if rev > indexed {
			later[name] = true
		}
		return nil
	})
	if err != nil || indexed == 0 {
		return faults, err
	}
	err = i.each(ctx, "SELECT name, rev FROM cur", func(r *sql.Rows) error {
		var name string
		var rev int64
		if err := r.Scan(&name, &rev); err != nil {
			return err
		}
		if living[name] != rev && !later[name] {
			found("the index has %s at revision %d, and the log at %d", name, rev, living[name])
		}
		delete(living, name)
		return nil
	})
	for name, rev := range living {
		if !later[name] {
			found("the index lacks %s, which the log has at revision %d", name, rev)
		}
	}
	return faults, err
}

// Compact forgets the history of a store that nobody has open, and gives the room
// back to the file system. It needs room for a copy meanwhile.
func Compact(ctx context.Context, path string) error {
	i, err := Inspect(ctx, path)
	if err != nil {
		return err
	}
	i.Close()
	s, err := Open(ctx, Config{Path: path, Driver: i.Driver, CompactEvery: -1})
	if err != nil {
		return err
	}
	defer s.Close()
	rev, err := s.api.history.revision(ctx)
	if err == nil && rev > i.compacted {
		_, err = s.backend.Compact(ctx, rev)
	}
	if err != nil {
		return fmt.Errorf("compact datastore %s: %w", path, err)
	}
	s.keeping.Lock()
	_, err = s.kept.ExecContext(ctx, "VACUUM")
	s.keeping.Unlock()
	if err == nil {
		err = s.emptyLog(ctx)
	}
	if err != nil {
		return fmt.Errorf("give the room of datastore %s back: %w", path, err)
	}
	return nil
}

// emptyLog waits for those who read for a moment, as kine's driver does now and
// then.
func (s *Store) emptyLog(ctx context.Context) error {
	for deadline := time.Now().Add(readersWait); ; {
		left, err := s.checkpoint(ctx, "TRUNCATE")
		if err != nil || left == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("another process reads it: end that, and try again")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond): // SQLite tells nobody when a reader ends
		}
	}
}

// readersWait bounds the wait for those who read.
const readersWait = 10 * time.Second
