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
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/generic"
	"github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/server"
)

// idleConns is how many connections are kept: kine needs up to fifteen.
const idleConns = 20

// etcdVersion is the etcd release whose API the store answers with.
const etcdVersion = "3.6.0"

// Config says where the store is and how safe each write is made.
type Config struct {
	// Path is the SQLite file; its folder is created with mode 0700.
	Path string
	// Synchronous is full (default: an acknowledged write survives power loss) or
	// normal (it survives the end of the process, but not that of the machine).
	Synchronous string
	// CompactEvery is how often old revisions are forgotten, but for the last
	// thousand. Default 5 minutes.
	CompactEvery time.Duration
	// Seed returns what a new store has in it from birth. It is not called when
	// the store exists.
	Seed func() ([]KeyValue, error)
}

// KeyValue is an entry of the store.
type KeyValue struct {
	Key   string
	Value []byte
}

// Store is an open datastore.
type Store struct {
	ctx     context.Context // done when the store closes
	cancel  context.CancelFunc
	api     *bridge
	backend server.Backend
	db      *sql.DB
	path    string
	guard   *guard
	kept    *sql.Conn      // holds the file open, whatever becomes of its name
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
	if err := os.MkdirAll(filepath.Dir(cfg.Path), 0o700); err != nil {
		return nil, fmt.Errorf("create folder of datastore: %w", err)
	}
	if err := reread(cfg.Path); err != nil {
		return nil, openError(cfg.Path, err)
	}
	if err := probe(ctx, cfg.Path); err != nil {
		return nil, openError(cfg.Path, err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &Store{ctx: ctx, cancel: cancel, path: cfg.Path, guard: newGuard()}
	how := settings(cfg, synchronous)
	// With litestream's settings kine makes no checkpoints of its own.
	var dialect *generic.Generic
	s.backend, dialect, err = sqlite.NewVariant(ctx, &s.wg, "litestream", how)
	watched := newConnector(how.DataSourceName, s.guard)
	if err == nil {
		s.db = sql.OpenDB(watched)
		s.kept, err = s.db.Conn(ctx)
	}
	if err == nil {
		// kine's own connections go once ours have the file open: the last one to
		// close it would make a checkpoint.
		err = dialect.DB.Close()
		s.db.SetMaxIdleConns(idleConns)
		dialect.DB = s.db
		s.extendLog(watched, roomAtOnce)
	}
	if err == nil && cfg.Seed != nil {
		err = fill(ctx, s.db, cfg.Seed)
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

	s.api = newBridge(s.backend, s.db, s.guard)
	s.checkLarge(ctx)
	s.wg.Go(func() { s.keepLog(watched) })
	s.wg.Go(s.mend)
	return s, nil
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
			_ = os.WriteFile(cleanly(s.path), nil, 0o600) // see reread
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
}
