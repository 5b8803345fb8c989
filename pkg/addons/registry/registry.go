// Package registry is an image registry in this process, for images that are
// built beside the cluster: pushed to localhost:5000 on any node, and pulled from
// there by all.
//
// A server keeps the images, in files below its data dir, by the module of the
// CNCF's Distribution project. It listens on loopback, where container runtimes
// and image builders speak plain HTTP without being told to. Other nodes have the
// same address on their own loopback, and hand what is asked there on to the
// server, through its API port and by the node's own certificate.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	"github.com/distribution/distribution/v3/registry/storage"

	"github.com/knarr-dev/knarr/pkg/component"
)

const (
	// abandoned is how old the rest of an upload must be to be removed, which a
	// start does.
	abandoned = 7 * 24 * time.Hour
	// repositories is where Distribution keeps them.
	repositories = "/docker/registry/v2/repositories"
)

// Config is what the registry is told.
type Config struct {
	// Dir keeps the images. It is made when it is missing.
	Dir string
	// Listen is a loopback address with a port, such as 127.0.0.1:5000.
	Listen string
	// Shared is set if other processes of the same user serve the same folder at the
	// same address. Each of them may answer any request.
	Shared bool
	// Needs are the components to start after.
	Needs []string
	// Remote, for a node that keeps no images, returns how to hand requests on to
	// the server that does. It is called on each start.
	Remote func() (Remote, error)
	// Log defaults to slog.Default.
	Log *slog.Logger
}

// Registry serves images on loopback, as a component.
type Registry struct {
	cfg     Config
	handler *later
	store   atomic.Pointer[store] // while it runs, where the images are kept
}

var _ component.Component = (*Registry)(nil)

// New returns the component; nothing happens until Run.
func New(cfg Config) *Registry {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Registry{cfg: cfg, handler: newLater()}
}

// Name implements component.Component.
func (r *Registry) Name() string { return "registry" }

// Needs implements component.Component.
func (r *Registry) Needs() []string { return r.cfg.Needs }

// Run implements component.Component. It is ready when clients are answered.
func (r *Registry) Run(ctx context.Context, ready chan<- struct{}) error {
	l, err := r.listen(ctx)
	if err != nil {
		return fmt.Errorf("listen on %s for the registry: %w; end the program that holds the port, or choose another (--registry-address)", r.cfg.Listen, err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Requests that a stop finds are given a moment.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	h, err := r.open(life)
	if err != nil {
		return err
	}
	r.handler.set(h)
	defer r.handler.set(nil)
	srv := &http.Server{
		Handler: onlyPrograms(h), ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: log.New(io.Discard, "", 0), // clients that went away
	}
	close(ready)
	var tidying sync.WaitGroup
	tidying.Go(func() { r.tidy(ctx) })
	defer tidying.Wait()
	defer cancel()
	if err := component.ServeHTTP(ctx, srv, func() error { return srv.Serve(l) }); err != nil {
		return fmt.Errorf("serve the registry on %s: %w", r.cfg.Listen, err)
	}
	return nil
}

// Handler answers for other nodes, at the API server's port; see [Prefix]. Until
// Run is ready it says that the registry is starting.
func (r *Registry) Handler() http.Handler {
	return http.StripPrefix(strings.TrimSuffix(Prefix, "/"), r.handler)
}

// open makes what answers clients.
func (r *Registry) open(ctx context.Context) (http.Handler, error) {
	if r.cfg.Remote != nil {
		remote, err := r.cfg.Remote()
		if err != nil {
			return nil, fmt.Errorf("reach the registry of the cluster: %w", err)
		}
		return remote.handler(r.cfg.Log), nil
	}
	f, err := openFiles(r.cfg.Dir)
	if err != nil {
		return nil, err
	}
	secret := ""
	if r.cfg.Shared {
		if secret, err = f.secret(); err != nil {
			f.root.Close()
			return nil, err
		}
	}
	s := &store{files: f}
	r.store.Store(s)
	context.AfterFunc(ctx, func() {
		r.store.Store(nil)
		f.root.Close()
	})
	app, err := newApp(ctx, f, secret)
	if err != nil {
		return nil, err
	}
	return s.guard(app), nil
}

// tidy removes what uploads that nobody goes on with left behind.
func (r *Registry) tidy(ctx context.Context) {
	if r.cfg.Remote != nil {
		return
	}
	store, err := openFiles(r.cfg.Dir)
	if err != nil {
		return // as open has told
	}
	defer store.root.Close()
	if _, err := store.Stat(ctx, repositories); err != nil {
		return // nothing was ever pushed
	}
	_, errs := storage.PurgeUploads(ctx, store, time.Now().Add(-abandoned), true)
	for _, err := range errs {
		if ctx.Err() == nil {
			r.cfg.Log.Warn("remove what unfinished uploads left in the registry", "err", err)
		}
	}
}

// newApp sets Distribution up. Its constructor panics where others return an
// error. The secret signs what clients hold of uploads under way; empty is a random
// one.
func newApp(ctx context.Context, store *files, secret string) (h http.Handler, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("open the registry in %s: %v", store.root.Name(), p)
		}
	}()
	register(ctx)
	cfg := &configuration.Configuration{
		Storage: configuration.Storage{
			driverName: configuration.Parameters{rootParameter: store},
			"delete":   configuration.Parameters{"enabled": true},
			// Its own purge is a goroutine that never ends.
			"maintenance": configuration.Parameters{"uploadpurging": map[any]any{"enabled": false}},
		},
	}
	// Clients may know us by another name, or through a node.
	cfg.HTTP.RelativeURLs = true
	cfg.HTTP.Secret = secret
	// An index may come without the images for other processors, as container
	// runtimes push one that they have pulled for their own.
	cfg.Validation.Manifests.Indexes.Platforms = "none"
	return handlers.NewApp(ctx, cfg), nil
}

// onlyPrograms keeps web pages out that a browser on this machine shows: there is
// no password that would.
func onlyPrograms(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" || !isLoopback(r.Host) {
			http.Error(w, "the registry answers programs on this machine only, by the name localhost", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func isLoopback(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

var errStarting = errors.New("the registry is not running yet")
