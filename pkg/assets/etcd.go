package assets

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	"github.com/knarr-dev/knarr/pkg/datastore"
)

// etcdVersion is what the store's API is that of.
const etcdVersion = "3.6.0"

// etcdFlags are those of etcd that mean something here. The others are taken and
// have no effect: they set how members of a cluster find each other, what etcd's own
// files are like, and what it logs.
type etcdFlags struct {
	clientURLs string
	dataDir    string
	noSync     bool
	version    bool
	help       bool
}

func parseEtcd(args []string) (etcdFlags, *pflag.FlagSet, error) {
	var f etcdFlags
	fs := pflag.NewFlagSet("etcd", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetOutput(io.Discard)
	fs.StringVar(&f.clientURLs, "listen-client-urls", "http://localhost:2379", "addresses to listen on, http://host:port, separated by commas")
	fs.StringVar(&f.dataDir, "data-dir", "default.etcd", "folder of the store")
	fs.BoolVar(&f.noSync, "unsafe-no-fsync", false, "leave it to the system when writes reach the disk")
	fs.BoolVar(&f.version, "version", false, "print the version of the API and end")
	fs.BoolVarP(&f.help, "help", "h", false, "print this and end")
	for _, name := range ignoredEtcdFlags() {
		fs.String(name, "", "no effect")
		fs.Lookup(name).NoOptDefVal = "true"
	}
	// etcd takes long flags behind one dash, too.
	long := make([]string, len(args))
	for i, a := range args {
		long[i] = a
		if name, _, _ := strings.Cut(strings.TrimPrefix(a, "-"), "="); len(name) > 1 && fs.Lookup(name) != nil {
			long[i] = "-" + a
		}
	}
	if err := fs.Parse(joined(fs, long)); err != nil {
		return f, fs, fmt.Errorf("etcd: %w; this is Knarr's store under the name of etcd, and \"etcd --help\" tells what it knows", err)
	}
	if fs.NArg() > 0 {
		return f, fs, fmt.Errorf("etcd: unexpected argument %q", fs.Arg(0))
	}
	return f, fs, nil
}

// joined writes "--flag value" as "--flag=value" for flags without an effect, of which
// nobody here knows whether they want a value.
func joined(fs *pflag.FlagSet, args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		f := fs.Lookup(strings.TrimPrefix(args[i], "--"))
		if f != nil && f.NoOptDefVal == "true" && f.Value.Type() == "string" && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			out = append(out, args[i]+"="+args[i+1])
			i++
			continue
		}
		out = append(out, args[i])
	}
	return out
}

func ignoredEtcdFlags() []string {
	return []string{
		"name", "advertise-client-urls", "listen-peer-urls", "initial-advertise-peer-urls", "initial-cluster",
		"initial-cluster-state", "initial-cluster-token", "listen-metrics-urls", "metrics",
		"wal-dir", "snapshot-count", "heartbeat-interval", "election-timeout", "quota-backend-bytes",
		"auto-compaction-mode", "auto-compaction-retention", "max-txn-ops", "max-request-bytes", "max-snapshots", "max-wals",
		"log-level", "log-format", "log-outputs", "logger", "enable-pprof", "enable-v2", "strict-reconfig-check",
		"watch-progress-notify-interval", "experimental-watch-progress-notify-interval",
		"initial-corrupt-check", "experimental-initial-corrupt-check", "compact-hash-check-enabled", "force-new-cluster",
		"pre-vote", "cors", "host-whitelist", "feature-gates", "backend-batch-interval", "backend-batch-limit", "backend-bbolt-freelist-type",
	}
}

// Etcd serves Knarr's store as etcd does, gRPC and HTTP at one port, until ctx ends.
// It has no TLS, no users and no other members.
func Etcd(ctx context.Context, args []string, out io.Writer) error {
	f, fs, err := parseEtcd(args)
	if err != nil {
		return err
	}
	switch {
	case f.help:
		fmt.Fprintf(out, "Knarr's store, as an etcd of one member that speaks plain HTTP.\n\nUsage:\n  etcd [flags]\n\nFlags:\n%s", fs.FlagUsages())
		return nil
	case f.version:
		fmt.Fprintf(out, "etcd Version: %s\n", etcdVersion)
		return nil
	}
	var addrs []string
	for text := range strings.SplitSeq(f.clientURLs, ",") {
		u, err := url.Parse(strings.TrimSpace(text))
		if err != nil || u.Scheme != "http" || u.Port() == "" {
			return fmt.Errorf("etcd: --listen-client-urls=%s: %q is not of the form http://host:port; TLS is not spoken here", f.clientURLs, text)
		}
		addrs = append(addrs, u.Host)
	}
	synchronous := "full"
	if f.noSync {
		synchronous = "normal"
	}
	store, err := datastore.Open(ctx, datastore.Config{Path: filepath.Join(f.dataDir, "state.db"), Synchronous: synchronous})
	if err != nil {
		return err
	}
	defer store.Close()
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}()
	for _, a := range addrs {
		lis, err := new(net.ListenConfig).Listen(ctx, "tcp", a)
		if err != nil {
			return fmt.Errorf("etcd: listen on %s (--listen-client-urls): %w", a, err)
		}
		listeners = append(listeners, lis)
	}
	return serve(ctx, store, listeners)
}

// serve answers at all listeners until ctx ends or the store fails.
func serve(ctx context.Context, store *datastore.Store, listeners []net.Listener) error {
	// Ends watches before the store closes, which would wait for them.
	g := grpc.NewServer()
	defer g.Stop()
	store.Register(g)
	h := &http.Server{Handler: health(store), ReadHeaderTimeout: 10 * time.Second}
	defer h.Close()
	failed := make(chan error, 2*len(listeners))
	for _, lis := range listeners {
		s := newSplit(lis)
		defer s.Close()
		go func() { failed <- g.Serve(s.grpc) }()
		go func() { failed <- h.Serve(s.http) }()
		go s.run()
	}
	select {
	case <-ctx.Done():
		return nil
	case <-store.Failed():
		return store.Err()
	case err := <-failed:
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("etcd: serve: %w", err)
	}
}

// health answers what is asked over HTTP: is it well, and what is it.
func health(store *datastore.Store) http.Handler {
	mux := http.NewServeMux()
	for _, path := range []string{"/health", "/livez", "/readyz"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			if err := store.Err(); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				fmt.Fprintf(w, `{"health":"false","reason":%q}`+"\n", err)
				return
			}
			fmt.Fprintln(w, `{"health":"true","reason":""}`)
		})
	}
	mux.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"etcdserver":%q,"etcdcluster":%q}`+"\n", etcdVersion, etcdVersion)
	})
	return mux
}

var errClosed = errors.New("the listener is closed")
