// Package datastore keeps the cluster's objects: one SQLite file behind an etcd
// API that is spoken in memory, with no socket.
package datastore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/server"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/test/bufconn"
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
}

// Store is an open datastore.
type Store struct {
	lis     *bufconn.Listener
	srv     *grpc.Server
	backend server.Backend
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	served  chan error
	once    sync.Once
}

// Open opens the file, creates it if it is missing, and serves it. It fails
// when the file is not a SQLite database or cannot be read and written.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	dsn, err := dsn(cfg)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(cfg.Path), 0o700); err != nil {
		return nil, fmt.Errorf("create folder of datastore: %w", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &Store{cancel: cancel, served: make(chan error, 1)}
	_, s.backend, err = sqlite.New(ctx, &s.wg, &drivers.Config{
		DataSourceName:   dsn,
		CompactInterval:  5 * time.Minute,
		CompactTimeout:   5 * time.Second,
		CompactMinRetain: 1000,
		CompactBatchSize: 1000,
		PollBatchSize:    500,
	})
	if err == nil {
		err = s.backend.Start(ctx)
	}
	if err != nil {
		cancel()
		s.wg.Wait()
		return nil, fmt.Errorf("open datastore %s: %w (put the file aside and restore a backup, or free the disk)", cfg.Path, err)
	}
	// The folder is already closed to others; the file is too, should it be copied.
	if err := os.Chmod(cfg.Path, 0o600); err != nil {
		cancel()
		s.wg.Wait()
		return nil, fmt.Errorf("protect datastore %s: %w", cfg.Path, err)
	}

	s.lis = bufconn.Listen(256 << 10)
	s.srv = grpc.NewServer(
		grpc.MaxRecvMsgSize(16<<20),
		grpc.MaxSendMsgSize(1<<31-1),
		// One small buffer each way for the apiserver's seventy connections.
		grpc.ReadBufferSize(4<<10), grpc.WriteBufferSize(4<<10),
		grpc.SharedWriteBuffer(true),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	server.New(s.backend, "http", 5*time.Second, etcdVersion).Register(s.srv)
	go func() { s.served <- s.srv.Serve(s.lis) }()
	return s, nil
}

func dsn(cfg Config) (string, error) {
	sync := "FULL"
	switch cfg.Synchronous {
	case "", "full":
	case "normal":
		sync = "NORMAL"
	default:
		return "", fmt.Errorf("datastore: synchronous is %q; it must be full or normal", cfg.Synchronous)
	}
	if cfg.Path == "" {
		return "", errors.New("datastore: no path given")
	}
	// A vacuum at start would take a minute on a large store, and buys nothing.
	return "file:" + (&url.URL{Path: cfg.Path}).EscapedPath() +
		"?_journal_mode=WAL&_busy_timeout=30000&_txlock=immediate&_stmt_cache_size=20" +
		"&_synchronous=" + sync + "&_kine_disable_startup_vacuum=true", nil
}

// Dial connects to the store; it fits the apiserver's egress dialer. The
// address is ignored.
func (s *Store) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	return s.lis.DialContext(ctx)
}

// Err tells why serving ended, should it end before Close.
func (s *Store) Err() <-chan error { return s.served }

// Close ends every stream, waits for writes under way and closes the file. It
// may be called twice.
func (s *Store) Close() {
	s.once.Do(func() {
		s.srv.Stop()
		s.cancel()
		s.wg.Wait()
	})
}
