package datastore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/mattn/go-sqlite3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// guard notices that a store in use cannot be used any more: its file was
// removed, replaced or damaged, or the disk failed. What is written then may be
// lost, so that the store must be closed; opening it again tells how to go on.
//
// While the disk fails the store stays open, and answers reads as long as it can.
type guard struct {
	once   sync.Once
	failed chan struct{}
	err    error // read it after failed

	doubt      sync.Once
	distrusted chan struct{} // nothing more may be written
	reason     error         // read it after distrusted
	misread    atomic.Int64  // rows that could not be read

	writing sync.RWMutex // held for reading by each write
	gone    bool         // no write may begin
}

// errGone answers writes to a file that has no name any more.
var errGone = status.Error(codes.Unavailable, "the store's file was removed or replaced")

// enter begins a write.
func (g *guard) enter() error {
	g.writing.RLock()
	if g.gone {
		g.writing.RUnlock()
		return errGone
	}
	return nil
}

// leave ends one.
func (g *guard) leave() { g.writing.RUnlock() }

// stop waits for writes under way; no other begins.
func (g *guard) stop() {
	g.writing.Lock()
	g.gone = true
	g.writing.Unlock()
}

func newGuard() *guard {
	return &guard{failed: make(chan struct{}), distrusted: make(chan struct{})}
}

// errDistrusted answers writes after the disk has failed.
var errDistrusted = status.Error(codes.Internal, "the store's disk failed; nothing more is written until it takes writes again")

// trusted is an error once the disk has failed.
func (g *guard) trusted() error {
	select {
	case <-g.distrusted:
		return errDistrusted
	default:
		return nil
	}
}

func (g *guard) fail(err error) {
	g.once.Do(func() {
		g.err = err
		close(g.failed)
	})
}

// note looks at the error of a request, and returns it.
func (g *guard) note(err error) error {
	var e sqlite3.Error
	if !errors.As(err, &e) {
		return err
	}
	switch {
	case e.Code == sqlite3.ErrCorrupt, e.Code == sqlite3.ErrNotADB:
		g.fail(err)
	case e.ExtendedCode == sqlite3.ErrIoErrFstat && e.SystemErrno == unix.ENOENT:
		// The file was removed while it was opened once more; see watchFile.
	case e.Code == sqlite3.ErrIoErr && (e.SystemErrno != unix.ENOSPC || e.ExtendedCode == sqlite3.ErrIoErrFsync):
		// A full disk refuses a write and forgets none, unless it has promised room
		// that it does not have.
		g.distrust(err)
	}
	return err
}

// distrust has nothing more written.
func (g *guard) distrust(err error) {
	g.doubt.Do(func() {
		g.reason = err
		close(g.distrusted)
	})
}

// written is the answer to a write: kine says of one that it could not make that
// something else was there, or that all was well.
func (g *guard) written(err error) error {
	if err == nil {
		return g.trusted()
	}
	return g.note(err)
}

// read is the answer to a request that began when the guard had counted so many
// unread rows: kine leaves them out.
func (g *guard) read(ctx context.Context, misread int64, err error) error {
	switch {
	case err != nil:
		return g.note(err)
	case ctx.Err() != nil:
		return ctx.Err()
	case g.misread.Load() != misread:
		return errMisread
	}
	return nil
}

// errMisread answers reads that may have missed something.
var errMisread = status.Error(codes.Internal, "the store could not read all of its file: is its disk failing?")

// Failed is closed when the store cannot be used any more; Err tells why. The
// caller closes it.
func (s *Store) Failed() <-chan struct{} { return s.guard.failed }

// Err is why the store failed, or nil.
func (s *Store) Err() error {
	select {
	case <-s.guard.failed:
		return openError(s.path, s.guard.err)
	default:
		return nil
	}
}

// rescue saves what is still open of a store whose file is gone.
func (s *Store) rescue() {
	s.guard.stop()
	to := rescued(s.path)
	err := os.MkdirAll(filepath.Dir(to), 0o700)
	if err == nil {
		// Of an attempt that failed; what was saved before keeps the store closed.
		err = os.RemoveAll(to)
	}
	if err == nil {
		s.keeping.Lock()
		_, err = s.kept.ExecContext(s.ctx, "VACUUM INTO ?", to)
		s.keeping.Unlock()
	}
	if err != nil {
		s.guard.fail(fmt.Errorf("its file was removed or replaced while it was in use, and it could not be saved: %w", err))
		return
	}
	if err := os.Chmod(to, 0o600); err != nil {
		slog.Warn("protect rescued datastore", "path", to, "err", err)
	}
	s.guard.fail(advice("its file was removed or replaced while it was in use; all that was in it is saved as " + to))
}

// checkLarge checks what was too large to be checked before.
func (s *Store) checkLarge(ctx context.Context) {
	info, err := os.Stat(s.path)
	if err != nil || info.Size() <= checkedAtOnce {
		return
	}
	s.wg.Go(func() {
		db, err := readOnly(s.path)
		if err != nil {
			return
		}
		defer db.Close()
		if err := check(ctx, db); err != nil && ctx.Err() == nil {
			s.guard.fail(err)
		}
	})
}
