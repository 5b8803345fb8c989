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

// etcdVersion is the etcd release whose API the store answers with.
const etcdVersion = "3.6.0"

// Config says where the store is and how safe each write is made.
type Config struct {
	// Path is the SQLite file; its folder is created with mode 0700.
	Path string
	// Synchronous is full (default: an acknowledged write survives power loss) or
	// normal (it survives the end of the process, but not that of the machine).
	Synchronous string
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
	if err := probe(ctx, cfg.Path); err != nil {
		return nil, openError(cfg.Path, err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &Store{ctx: ctx, cancel: cancel}
	var dialect *generic.Generic
	s.backend, dialect, err = sqlite.NewVariant(ctx, &s.wg, "sqlite3", driver(cfg.Path, synchronous))
	if err == nil {
		s.db = dialect.DB
	}
	if err == nil && cfg.Seed != nil {
		err = fill(ctx, s.db, cfg.Seed)
	}
	if err == nil {
		err = s.backend.Start(ctx)
	}
	if err != nil {
		cancel()
		s.wg.Wait()
		return nil, openError(cfg.Path, err)
	}
	// The folder is already closed to others; the file is too, should it be copied.
	if err := os.Chmod(cfg.Path, 0o600); err != nil {
		cancel()
		s.wg.Wait()
		return nil, fmt.Errorf("protect datastore %s: %w", cfg.Path, err)
	}

	s.api = newBridge(s.backend, s.db)
	return s, nil
}

func openError(path string, err error) error {
	return fmt.Errorf("open datastore %s: %w; free the disk if it is full, or put the file aside and restore a backup", path, err)
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

// driver is how kine's driver is to work on a file.
func driver(path, synchronous string) *drivers.Config {
	return &drivers.Config{
		// A vacuum at start would take a minute on a large store, and buys nothing.
		DataSourceName: "file:" + (&url.URL{Path: path}).EscapedPath() +
			"?_journal_mode=WAL&_busy_timeout=30000&_txlock=immediate&_stmt_cache_size=20" +
			"&_synchronous=" + synchronous + "&_kine_disable_startup_vacuum=true",
		CompactInterval:  5 * time.Minute,
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
		// Waits for queries under way, which kine's own close does not.
		_ = s.db.Close()
	})
}
