// Package datastore keeps the cluster's objects: one SQLite file behind an etcd
// client whose requests are function calls.
package datastore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/server"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/knarr-dev/knarr/pkg/datastore/engine"
)

// A connection keeps up to 2 MiB of pages.
const (
	// kineConns is how many are kept for kine, which needs up to fifteen.
	kineConns = 20
	// engineReaders is how many read for our engine at a time, or as many as there
	// are processors. They are kept while they are used.
	engineReaders  = 4
	engineIdleTime = time.Minute
)

// etcdVersion is the etcd release whose API the store answers with.
const etcdVersion = "3.6.0"

// Config says where the store is and how safe each write is made.
type Config struct {
	// Path is the SQLite file; its folder is created with mode 0700.
	Path string
	// Synchronous is full (default: an acknowledged write survives power loss) or
	// normal (it survives the end of the process, but not that of the machine).
	Synchronous string
	// Driver is who keeps the objects in the file: sqlite (default), the engine of
	// this repository, which takes a file of kine's over, or kine-sqlite. The way
	// back is a backup.
	Driver string
	// CompactEvery is how often old revisions are forgotten, but for the last
	// thousand. Default 5 minutes; if negative, never.
	CompactEvery time.Duration
	// Metrics is where the store's metrics are registered until it closes. Default:
	// nowhere.
	Metrics prometheus.Registerer
	// Seed returns what a new store has in it from birth. It is not called when
	// the store exists.
	Seed func() ([]KeyValue, error)
}

// KeyValue is an entry of the store.
type KeyValue = engine.Entry

// Store is an open datastore.
type Store struct {
	ctx     context.Context // done when the store closes
	cancel  context.CancelFunc
	api     *bridge
	backend server.Backend
	db      *sql.DB
	path    string
	guard   *guard
	metrics *metrics
	watched *connector
	still   func() bool    // tells whether the file still has its name
	keeping sync.Mutex     // of kept: SQLite saves a store only while nothing else is asked there
	kept    *sql.Conn      // holds the file open, whatever becomes of its name
	log     *os.File       // SQLite's, to flush it; nil if nobody wants that
	wg      sync.WaitGroup // of kine
	once    sync.Once
}

// Open opens the file, and creates it if it is missing. It fails when the file is
// not a SQLite database or cannot be read and written.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	synchronous, err := synchronous(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.Driver == "" {
		cfg.Driver = "sqlite"
	}
	if cfg.Driver != "sqlite" && cfg.Driver != "kine-sqlite" {
		return nil, fmt.Errorf("datastore: driver is %q; it must be sqlite or kine-sqlite", cfg.Driver)
	}
	if err := os.MkdirAll(filepath.Dir(cfg.Path), 0o700); err != nil {
		return nil, fmt.Errorf("create folder of datastore: %w", err)
	}
	unchanged, err := reread(cfg.Path)
	if err != nil {
		return nil, openError(cfg.Path, err)
	}
	if err := probe(ctx, cfg.Path, cfg.Driver, unchanged); err != nil {
		return nil, openError(cfg.Path, err)
	}
	told, undo := newMetrics(), func() {}
	if cfg.Metrics != nil {
		if undo, err = told.register(cfg.Metrics); err != nil {
			return nil, openError(cfg.Path, err)
		}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, undo)
	s := &Store{ctx: ctx, cancel: cancel, path: cfg.Path, guard: newGuard(), metrics: told}
	var history history
	if cfg.Driver == "sqlite" {
		history, err = s.openEngine(ctx, cfg, synchronous)
	} else {
		history, err = s.openKine(ctx, cfg, synchronous)
	}
	if err == nil {
		err = s.backend.Start(ctx)
	}
	if err == nil {
		err = s.watchFile()
	}
	if err == nil {
		err = s.guard.trusted()
	}
	if err == nil {
		// The folder is already closed to others; the file is too, should it be copied.
		err = os.Chmod(cfg.Path, 0o600)
	}
	if err != nil {
		cancel()
		s.wg.Wait()
		s.closeFile()
		return nil, openError(cfg.Path, err)
	}

	s.api = newBridge(s.backend, history, s.guard)
	if !unchanged {
		s.checkLarge(ctx)
	}
	s.wg.Go(func() { s.keepLog(s.watched) })
	s.wg.Go(s.mend)
	s.wg.Go(func() { s.api.reminded.run(s.ctx) })
	return s, nil
}

// openKine opens the file with kine's driver.
func (s *Store) openKine(ctx context.Context, cfg Config, synchronous string) (history, error) {
	how := settings(cfg, synchronous)
	// With litestream's settings kine makes no checkpoints of its own.
	backend, dialect, err := sqlite.NewVariant(ctx, &s.wg, "litestream", how)
	if err != nil {
		return nil, err
	}
	s.backend = backend
	if err := s.openDB(ctx, how.DataSourceName); err != nil {
		return nil, err
	}
	// kine's own connections go once ours have the file open: the last one to
	// close it would make a checkpoint.
	if err := dialect.DB.Close(); err != nil {
		return nil, err
	}
	dialect.DB = s.db
	// A row as kine's driver writes it for a key that is created. It must be there
	// before the backend starts to follow the table.
	err = engine.Fill(ctx, s.db, "kine", `INSERT INTO kine(name, created, deleted, create_revision, prev_revision, lease, value, old_value)
		VALUES(?1, 1, 0, 0, 0, 0, ?2, NULL)`, cfg.Seed)
	if err != nil {
		return nil, err
	}
	return kineHistory{backend, s.db}, nil
}

// openEngine opens the file with our own engine.
func (s *Store) openEngine(ctx context.Context, cfg Config, synchronous string) (h history, err error) {
	// SQLite need not flush the log after a commit: flushLog does. What follows a
	// checkpoint, without which the file could be damaged, it flushes all the same.
	if err := s.openDB(ctx, settings(cfg, "NORMAL").DataSourceName); err != nil {
		return nil, err
	}
	var flush func() error
	if synchronous == "FULL" {
		flush = s.flushLog
		if s.log, err = os.OpenFile(s.path+"-wal", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			return nil, err
		}
	}
	s.watched.tellsAll, s.watched.commitPages = true, 4
	conns := 2 + max(engineReaders, runtime.GOMAXPROCS(0)) // one writes, one makes checkpoints
	s.db.SetMaxOpenConns(conns)
	s.db.SetMaxIdleConns(conns)
	s.db.SetConnMaxIdleTime(engineIdleTime)
	e, err := engine.New(ctx, s.db, engine.Config{CompactEvery: cfg.CompactEvery, Flush: flush, Seed: cfg.Seed, Metrics: s.metrics.engine})
	if err != nil {
		return nil, err
	}
	s.backend = e
	s.wg.Go(func() {
		<-s.ctx.Done()
		e.Wait()
	})
	return engineHistory{e}, nil
}

// openDB opens connections whose errors the guard sees.
func (s *Store) openDB(ctx context.Context, dsn string) error {
	s.watched = newConnector(dsn, s.guard)
	s.db = sql.OpenDB(s.watched)
	s.db.SetMaxIdleConns(kineConns)
	var err error
	if s.kept, err = s.db.Conn(ctx); err != nil {
		return err
	}
	// A checkpoint that waits for readers has all writers wait.
	if _, err := s.kept.ExecContext(ctx, "PRAGMA busy_timeout = 5"); err != nil {
		return err
	}
	// Should the file be removed or replaced, no connection opens another one.
	opened, err := os.Stat(s.path)
	if err != nil {
		return err
	}
	s.still = func() bool {
		now, err := os.Stat(s.path)
		return err == nil && os.SameFile(opened, now)
	}
	s.watched.still = s.still
	s.watched.dsn += "&mode=rw"
	s.extendLog(s.watched, roomAtOnce, os.O_CREATE)
	return nil
}

// advice is an error that says how to go on.
type advice string

func (a advice) Error() string { return string(a) }

func openError(path string, err error) error {
	if errors.As(err, new(advice)) {
		return fmt.Errorf("open datastore %s: %w", path, err)
	}
	return fmt.Errorf("open datastore %s: %w; the file is left as it is: free the disk if it is full, or else put the file and its -wal aside and restore a backup", path, err)
}

func synchronous(cfg Config) (string, error) {
	if cfg.Path == "" {
		return "", errors.New("datastore: no path given")
	}
	switch cfg.Synchronous {
	case "", "full":
		return "FULL", nil
	case "normal":
		return "NORMAL", nil
	}
	return "", fmt.Errorf("datastore: synchronous is %q; it must be full or normal", cfg.Synchronous)
}

// settings are how kine's driver is to work on a file.
func settings(cfg Config, synchronous string) *drivers.Config {
	if cfg.CompactEvery == 0 {
		cfg.CompactEvery = 5 * time.Minute
	}
	return &drivers.Config{
		// A vacuum at start would take a minute on a large store, and buys nothing.
		DataSourceName: "file:" + (&url.URL{Path: cfg.Path}).EscapedPath() +
			"?_journal_mode=WAL&_busy_timeout=30000&_txlock=immediate" +
			"&_synchronous=" + synchronous + "&_kine_disable_startup_vacuum=true",
		CompactInterval:  cfg.CompactEvery,
		CompactTimeout:   5 * time.Second,
		CompactMinRetain: 1000,
		CompactBatchSize: 1000,
		PollBatchSize:    500,
	}
}

// Close ends every watch, waits for writes under way and closes the file. It
// may be called twice.
func (s *Store) Close() {
	s.once.Do(func() {
		s.cancel()
		s.api.wait()
		s.wg.Wait()
		_, err := s.checkpoint(context.Background(), "PASSIVE")
		s.closeFile()
		if err == nil && s.Err() == nil {
			if now, err := state(s.path); err == nil {
				_ = os.WriteFile(cleanly(s.path), now, 0o600) // see reread
			}
		}
	})
}

// closeFile waits for queries under way.
func (s *Store) closeFile() {
	if s.kept != nil {
		_ = s.kept.Close()
	}
	if s.db != nil {
		_ = s.db.Close()
	}
	if s.log != nil {
		_ = s.log.Close() // after an error, flushLog has told
	}
}
