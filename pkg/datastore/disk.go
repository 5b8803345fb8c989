package datastore

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/mattn/go-sqlite3"
	"golang.org/x/sys/unix"
)

// A disk that fails for a moment is worse than one that fails for good. What
// ext4 could not write into blocks that were new, it forgets: the page cache has
// it, later writes and flushes of those pages succeed, and after a power cut
// zeros are read. SQLite goes on after such an error, and all that it
// acknowledges from then on may be lost. It even tells nobody of an error in a
// checkpoint that it makes by itself, and kine takes a row that could not be
// read for one that is not there.
//
// Hence every error of the disk is noticed here, below kine; after the first one
// nothing more is written (see guard). Checkpoints are made here, where their
// errors are seen, and the log is kept at the end, so that it still has what a
// checkpoint failed to bring into the file. When the disk takes writes again,
// the store is opened anew, from the disk and not from the page cache.
//
// And should a file system become read-only at that moment, ext4 says of a flush
// that it was done although new blocks, or a new size, are not on record. So the
// log is written where zeros have been flushed before.

const (
	// checkpointPages is about how many pages are written to the log until it is
	// brought into the file: SQLite's own measure.
	checkpointPages = 1000
	// pageSize is SQLite's, in bytes.
	pageSize = 4096
	// longLog is the length of a log, in pages, at which writers wait until it is
	// in the file and begins anew: otherwise it only grows while there is always
	// somebody at work. One that is as long as hugeLog gives its room back.
	longLog = 2 * checkpointPages
	hugeLog = 16 * checkpointPages
	// fewPages may be brought into the file while writers wait.
	fewPages = checkpointPages / 10
	// logRoom is the room that the log is given, in bytes: that of a long one. The
	// store waits for the first part of it.
	logRoom    = 12 << 20
	roomAtOnce = 1 << 20
	// mendInterval is between two attempts to write to a disk that has failed.
	mendInterval = time.Second
)

// connector opens connections whose errors the guard sees.
type connector struct {
	driver sqlite3.SQLiteDriver
	dsn    string
	guard  *guard
	// still is asked before a connection is opened: one to another file of that
	// name would make its log the log of that.
	still func() bool
	// tellsAll is set if commits may tell that they failed; kine ends the process
	// when it is told so.
	tellsAll bool
	// commitPages is about how many pages lead to those that a commit fills: kine
	// has many indexes.
	commitPages int

	// turn is held by the one that writes. SQLite has one writer at a time, too,
	// but others may find that a flush failed only after they have done theirs.
	turn  sync.Mutex
	bytes int           // about what was written to the log since due
	due   chan struct{} // a checkpoint
}

func newConnector(dsn string, g *guard) *connector {
	c := &connector{dsn: dsn, guard: g, still: func() bool { return true }, commitPages: 12, due: make(chan struct{}, 1)}
	c.driver.ConnectHook = func(conn *sqlite3.SQLiteConn) error {
		if err := conn.SetFileControlInt("main", sqlite3.SQLITE_FCNTL_PERSIST_WAL, 1); err != nil {
			return err
		}
		_, err := conn.Exec("PRAGMA wal_autocheckpoint = 0", nil)
		return err
	}
	return c
}

var _ driver.Connector = (*connector)(nil)

func (c *connector) Driver() driver.Driver { return &c.driver }

func (c *connector) Connect(context.Context) (driver.Conn, error) {
	if !c.still() {
		return nil, errGone
	}
	opened, err := c.driver.Open(c.dsn)
	if err != nil {
		return nil, c.guard.note(err)
	}
	return &conn{SQLiteConn: opened.(*sqlite3.SQLiteConn), connector: c}, nil
}

// written counts what goes to the log. The caller has its turn.
func (c *connector) written(bytes int) {
	if c.bytes += bytes; c.bytes < checkpointPages*pageSize {
		return
	}
	c.bytes = 0
	select {
	case c.due <- struct{}{}:
	default:
	}
}

// conn is a connection of database/sql's, used by one goroutine at a time.
type conn struct {
	*sqlite3.SQLiteConn
	*connector
	inTx  bool
	bytes int // about what the transaction has written
}

var (
	_ driver.ExecerContext      = (*conn)(nil)
	_ driver.QueryerContext     = (*conn)(nil)
	_ driver.ConnPrepareContext = (*conn)(nil)
	_ driver.ConnBeginTx        = (*conn)(nil)
)

// ExecContext writes.
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.write(args, func() (driver.Result, error) { return c.SQLiteConn.ExecContext(ctx, query, args) })
}

// write counts a row of those arguments, or those rows that exec says it changed,
// each on a page of its own.
func (c *conn) write(args []driver.NamedValue, exec func() (driver.Result, error)) (driver.Result, error) {
	if !c.inTx {
		c.turn.Lock()
		defer c.turn.Unlock()
	}
	if err := c.guard.trusted(); err != nil {
		return nil, err
	}
	r, err := exec()
	if err != nil {
		return nil, c.guard.note(err)
	}
	bytes := 100
	for _, a := range args {
		switch v := a.Value.(type) {
		case []byte:
			bytes += len(v)
		case string:
			bytes += len(v)
		}
	}
	if rows, err := r.RowsAffected(); err == nil && rows > 1 {
		bytes = int(rows) * pageSize
	}
	if c.bytes += bytes; !c.inTx {
		c.count()
	}
	return r, nil
}

// count adds what was written, with what leads to it.
func (c *conn) count() {
	c.connector.written(c.bytes + c.commitPages*pageSize)
	c.bytes = 0
}

// PrepareContext prepares a statement that reads or writes.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	s, err := c.SQLiteConn.PrepareContext(ctx, query)
	if err != nil {
		return nil, c.guard.note(err)
	}
	return &stmt{s.(*sqlite3.SQLiteStmt), c}, nil
}

type stmt struct {
	*sqlite3.SQLiteStmt
	conn *conn
}

var (
	_ driver.StmtExecContext  = (*stmt)(nil)
	_ driver.StmtQueryContext = (*stmt)(nil)
)

// ExecContext writes.
func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.conn.write(args, func() (driver.Result, error) { return s.SQLiteStmt.ExecContext(ctx, args) })
}

// QueryContext reads.
func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	r, err := s.SQLiteStmt.QueryContext(ctx, args)
	if err != nil {
		return nil, s.conn.guard.note(err)
	}
	return rows{r, s.conn.guard}, nil
}

// QueryContext reads.
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	r, err := c.SQLiteConn.QueryContext(ctx, query, args)
	if err != nil {
		return nil, c.guard.note(err)
	}
	return rows{r, c.guard}, nil
}

// BeginTx begins a transaction that writes.
func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	c.turn.Lock()
	err := c.guard.trusted()
	var began driver.Tx
	if err == nil {
		began, err = c.SQLiteConn.BeginTx(ctx, opts)
	}
	if err != nil {
		c.turn.Unlock()
		return nil, c.guard.note(err)
	}
	c.inTx = true
	return tx{began, c}, nil
}

type tx struct {
	driver.Tx
	conn *conn
}

// Commit may leave it to the guard to tell of a disk that failed.
func (t tx) Commit() error {
	defer t.end()
	err := t.conn.guard.note(t.Tx.Commit())
	if err != nil && t.conn.guard.trusted() != nil {
		_ = t.rollback() // which SQLite has done, or the file is not used any more
		if !t.conn.tellsAll {
			return nil
		}
	}
	t.conn.count()
	return err
}

// Rollback does not fail when SQLite has done it by itself, as it does when the
// disk is full; for that, too, kine would end the process.
func (t tx) Rollback() error {
	defer t.end()
	return t.rollback()
}

func (t tx) rollback() error {
	if t.conn.AutoCommit() {
		return nil
	}
	return t.conn.guard.note(t.Tx.Rollback())
}

func (t tx) end() {
	t.conn.inTx, t.conn.bytes = false, 0
	t.conn.turn.Unlock()
}

type rows struct {
	driver.Rows
	guard *guard
}

func (r rows) Next(dest []driver.Value) error {
	err := r.Rows.Next(dest)
	if errors.As(err, new(sqlite3.Error)) {
		r.guard.misread.Add(1)
	}
	return r.guard.note(err)
}

// flushLog returns once the log is on the disk with all that has been committed.
// SQLite would take fsync for that, which brings the file's time of change to the
// disk as well: for each commit that nobody else shares, a record in the file
// system's journal and another flush.
func (s *Store) flushLog() error {
	err := s.guard.trusted()
	if err == nil {
		if err = flushData(s.log); err != nil {
			s.guard.distrust(fmt.Errorf("flush its log: %w", err))
		}
	}
	return err
}

// keepLog gives the log its room, and brings it into the file each time it is due.
func (s *Store) keepLog(c *connector) {
	// The last process may not have lived until it was.
	if length, err := s.checkpoint(s.ctx, "NOOP"); err == nil && length >= checkpointPages {
		s.shortenLog(c)
	}
	s.extendLog(c, logRoom, 0)
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-c.due:
			s.shortenLog(c)
		}
	}
}

func (s *Store) shortenLog(c *connector) {
	length, err := s.checkpoint(s.ctx, "PASSIVE")
	if err == nil && length > longLog {
		// Writers are to wait for as little as can be: what came meanwhile goes first.
		for before := 0; err == nil && length-before > fewPages; {
			before = length
			length, err = s.checkpoint(s.ctx, "PASSIVE")
		}
	}
	switch {
	case err == nil && length > hugeLog:
		err = s.restartLog(c, "TRUNCATE")
		s.extendLog(c, logRoom, 0)
	case err == nil && length > longLog:
		err = s.restartLog(c, "RESTART")
	}
	if err != nil && s.ctx.Err() == nil && s.guard.trusted() == nil {
		slog.Warn("bring the datastore's log into its file", "path", s.path, "err", err)
	}
}

// restartLog has the log begin anew, unless somebody reads from it. Almost all of
// it is in the file already. SQLite would wait for a moment without a writer, of
// which there may be none for long.
func (s *Store) restartLog(c *connector, mode string) error {
	c.turn.Lock()
	defer c.turn.Unlock()
	_, err := s.checkpoint(s.ctx, mode)
	return err
}

// extendLog writes zeros behind what the log has, which SQLite takes for the rest
// of an older one. On a full disk it stays as short as it is; where there is none,
// one is made only if flag says so, as os.OpenFile's: it may have been removed
// with all of the store.
func (s *Store) extendLog(c *connector, size int64, flag int) {
	f, err := os.OpenFile(s.path+"-wal", os.O_WRONLY|flag, 0o600)
	if err != nil {
		return // SQLite will tell
	}
	defer f.Close()
	zeros := make([]byte, roomAtOnce)
	for more := true; more && err == nil && s.guard.trusted() == nil; {
		if more, err = c.extend(f, zeros, size); more {
			err = f.Sync()
		}
	}
	if err != nil && !errors.Is(err, unix.ENOSPC) {
		s.guard.distrust(fmt.Errorf("extend its log: %w", err))
	}
}

// extend makes a step, and reports whether there was one to make.
func (c *connector) extend(f *os.File, zeros []byte, size int64) (bool, error) {
	c.turn.Lock()
	defer c.turn.Unlock()
	info, err := f.Stat()
	if err != nil || info.Size() >= size {
		return false, err
	}
	_, err = f.WriteAt(zeros[:min(int64(len(zeros)), size-info.Size())], info.Size())
	return err == nil, err
}

// checkpoint reports the length of the log in pages. It begins anew with the next
// write when all of it is in the file and nobody reads from it, which RESTART and
// TRUNCATE wait for a few milliseconds.
func (s *Store) checkpoint(ctx context.Context, mode string) (int, error) {
	if err := s.guard.trusted(); err != nil {
		return 0, err // what is on the disk is safe where it is
	}
	s.keeping.Lock()
	defer s.keeping.Unlock()
	var busy bool
	var length, done int
	began := time.Now()
	if err := s.kept.QueryRowContext(ctx, "PRAGMA wal_checkpoint("+mode+")").Scan(&busy, &length, &done); err != nil {
		return 0, fmt.Errorf("checkpoint: %w", err)
	}
	if mode != "NOOP" {
		s.metrics.checkpointed(length, time.Since(began))
	}
	return length, nil
}

// mend waits until a disk that failed takes writes again. The store is opened
// anew then.
func (s *Store) mend() {
	select {
	case <-s.ctx.Done():
		return
	case <-s.guard.distrusted:
	}
	slog.Error("the disk of the datastore failed: nothing more is written until it is opened anew", "path", s.path, "err", s.guard.reason)
	for tryDisk(s.path+"-probe") != nil {
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(mendInterval): // a disk tells nobody that it works again
		}
	}
	s.guard.fail(advice(fmt.Sprintf("its disk failed (%v) and takes writes again: it is opened anew", s.guard.reason)))
}

// tryDisk writes a file through to the disk.
func tryDisk(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	_, err = f.Write(make([]byte, 4096))
	return errors.Join(err, f.Sync(), f.Close())
}

// cleanly is a file beside the store that says that it was closed in order, and
// what its files were like then. It needs no flush: it tells of the page cache,
// which goes with the machine.
func cleanly(path string) string { return path + "-closed" }

// state tells a store's files from what becomes of them when anybody writes.
func state(path string) ([]byte, error) {
	var text []byte
	for _, name := range []string{path, path + "-wal"} {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		text = fmt.Appendf(text, "%d bytes of %d\n", info.Size(), info.ModTime().UnixNano())
	}
	return text, nil
}

// reread has the store's files read from the disk, unless the last one to use
// them found the disk faultless: what it wrote after an error may be in the page
// cache alone. It tells whether nobody has written since that one closed them.
func reread(path string) (unchanged bool, err error) {
	then, _ := os.ReadFile(cleanly(path))
	if err := os.Remove(cleanly(path)); err == nil {
		now, err := state(path)
		return err == nil && bytes.Equal(now, then), nil
	}
	for _, name := range []string{path, path + "-wal"} {
		if err := forget(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("read from the disk: %w", err)
		}
	}
	return false, nil
}

func forget(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_ = f.Sync() // may tell of the past
	if err := uncache(f); err != nil {
		return err
	}
	return f.Sync()
}
