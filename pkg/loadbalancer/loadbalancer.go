// Package loadbalancer brings an agent's connections to an API server that
// answers, whichever that is.
//
// It keeps to one server. When a dial of it fails or takes long, the next one is
// tried; connections to a server that was found dead or that left the cluster
// are closed, so that their clients come again and get another one. Only running
// connections are lost.
//
// What it notices is TCP: a server that refuses, that is unreachable, or that
// stays silent for about 15 seconds where it owes an acknowledgement (package
// dial). One whose kernel goes on answering while its process hangs looks
// healthy from here: nothing at this level tells a hung server from one that has
// nothing to say. Clients have to notice that by themselves (client-go pings
// silent HTTP/2 connections).
package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/dial"
)

const (
	// attemptTimeout bounds one attempt to reach one server: three SYNs fit.
	attemptTimeout = 5 * time.Second
	// patience is how long an attempt may take before the next server is tried
	// as well, and how long a dial waits for one of the dead ones to come back.
	patience = time.Second

	firstPause = 100 * time.Millisecond
	// waitedPause is the longest pause between two attempts at a dead server
	// while something waits for it, quietPause the longest when nothing does.
	waitedPause = time.Second
	quietPause  = 30 * time.Second
)

// ErrNoServer is in the error of a dial when no API server answered.
var ErrNoServer = errors.New("no API server answers")

// Config is what a LoadBalancer needs to know.
type Config struct {
	// Listen is the loopback address and port to listen on; port 0 takes any
	// that is free. The zero value listens nowhere: there is DialContext only.
	Listen netip.AddrPort
	// Listener is used in place of Listen when given. Run closes it, so Run can
	// be called once only.
	Listener net.Listener
	// Servers are those of --server, host:port. They count after those learned
	// from the cluster, in this order.
	Servers []string
	// File remembers the learned servers over restarts; empty: nothing does.
	File string
	// Dial connects to a server. Default: that of dial.Dialer.
	Dial dial.Func
	// Log must not be nil.
	Log *slog.Logger
}

// LoadBalancer is made by New. All its methods may be called at any time, also
// before Run and by any goroutine.
type LoadBalancer struct {
	cfg  Config
	log  *slog.Logger
	seed maphash.Seed // of the order of the learned servers: each agent has its own

	saving sync.Mutex // held while File is written

	mu      sync.Mutex
	servers []*server // in the order of preference
	current *server   // the one that the latest dial got
	changed chan struct{}
	addr    net.Addr
}

var _ component.Component = (*LoadBalancer)(nil)

// New checks the configuration and reads File. One that is missing or damaged
// is as good as none.
func New(cfg Config) (*LoadBalancer, error) {
	if cfg.Listen.IsValid() && !cfg.Listen.Addr().IsLoopback() {
		return nil, fmt.Errorf("listen on %s for API clients: it is no loopback address, so that others could use this node's way to the servers", cfg.Listen)
	}
	if cfg.Dial == nil {
		cfg.Dial = dial.Dialer().DialContext
	}
	l := &LoadBalancer{cfg: cfg, log: cfg.Log, seed: maphash.MakeSeed(), changed: make(chan struct{})}
	for i, addr := range cfg.Servers {
		if err := checkServer(addr); err != nil {
			return nil, fmt.Errorf("server %q: %w (give host:port, such as 10.0.0.1:6443)", addr, err)
		}
		if l.find(addr) == nil {
			l.servers = append(l.servers, &server{addr: addr, given: i, conns: make(map[*conn]struct{})})
		}
	}
	learned, err := remembered(cfg.File)
	if err != nil {
		l.log.Debug("the servers of last time are not known", "err", err)
	}
	l.arrange(learned)
	if len(l.servers) == 0 {
		return nil, errors.New("no API server is known; name one by --server")
	}
	return l, nil
}

// Name implements component.Component.
func (l *LoadBalancer) Name() string { return "loadbalancer" }

// Needs implements component.Component.
func (l *LoadBalancer) Needs() []string { return nil }

// SetServers replaces the servers learned from the cluster: host:port of the
// endpoints of the Service default/kubernetes. Connections to one that is no
// more among them are closed. What is not host:port is left out; a list without
// any is ignored, since a cluster without servers can't have told so.
func (l *LoadBalancer) SetServers(addrs []string) {
	learned := sound(addrs)
	if len(learned) == 0 {
		l.log.Debug("the cluster names no API server; the known ones stay", "named", addrs)
		return
	}
	l.saving.Lock()
	defer l.saving.Unlock()
	if !l.learn(learned) {
		return
	}
	if err := remember(l.cfg.File, learned); err != nil {
		l.log.Warn("the API servers can't be remembered; after a restart those of --server are asked first", "err", err)
	}
}

// learn tells whether anything is new.
func (l *LoadBalancer) learn(learned []string) bool {
	l.mu.Lock()
	cut, changed := l.arrange(learned)
	if changed {
		l.broadcast()
	}
	l.mu.Unlock()
	if changed {
		l.log.Info("the cluster has these API servers", "servers", learned, "cut", len(cut))
	}
	for _, c := range cut {
		c.cut(errors.New("the cluster no longer has it"))
	}
	return changed
}

// DialContext connects to the server that the proxy would take now; network and
// address are not looked at. It is for clients in this process.
//
// When no server answers it fails within a second, or within some more where
// attempts have to time out: with [ErrNoServer].
func (l *LoadBalancer) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	c, err := l.connect(ctx)
	if err != nil {
		return nil, err // not c, a nil that is no nil interface
	}
	return c, nil
}

func (l *LoadBalancer) connect(ctx context.Context) (*conn, error) {
	over := time.NewTimer(patience)
	defer over.Stop()
	for waited := false; ; {
		try, wait, changed := l.next()
		if len(try) > 0 {
			c, err := l.first(ctx, try)
			if err == nil {
				return c, nil
			}
			if ctx.Err() != nil {
				return nil, fmt.Errorf("dial an API server: %w", err)
			}
			// An attempt may have taken all patience; then waiting is over.
			select {
			case <-over.C:
				waited = true
			default:
			}
		}
		if waited {
			return nil, l.noServer()
		}
		var again <-chan time.Time
		if wait >= 0 {
			again = time.After(wait)
		}
		select {
		case <-changed:
		case <-again:
		case <-over.C:
			return nil, l.noServer()
		case <-ctx.Done():
			return nil, fmt.Errorf("dial an API server: %w", context.Cause(ctx))
		}
	}
}

// first connects to the first of the servers that answers.
func (l *LoadBalancer) first(ctx context.Context, try []*server) (*conn, error) {
	var attempts []dial.Attempt
	for _, s := range try {
		attempts = append(attempts, func(ctx context.Context) (net.Conn, error) {
			if !l.claim(s) {
				return nil, errTaken
			}
			c, err := l.ask(ctx, s)
			if err != nil {
				return nil, err
			}
			return c, nil
		})
	}
	won, i, err := dial.First(ctx, patience, attempts...)
	if err != nil {
		return nil, err
	}
	l.use(try[i])
	return won.(*conn), nil
}

var errTaken = errors.New("another attempt is under way")

// claim counts an attempt, unless the server is dead and others find out already
// whether it is back.
func (l *LoadBalancer) claim(s *server) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.state == StateUnreachable && s.trying > 0 {
		return false
	}
	s.trying++
	return true
}

// attempt dials one server, and notes what comes of it.
func (l *LoadBalancer) attempt(ctx context.Context, s *server) (*conn, error) {
	l.mu.Lock()
	s.trying++
	l.mu.Unlock()
	return l.ask(ctx, s)
}

// ask is attempt for one that is counted.
func (l *LoadBalancer) ask(ctx context.Context, s *server) (*conn, error) {
	began := time.Now()
	own, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	raw, err := l.cfg.Dial(own, "tcp", s.addr)
	switch {
	case err == nil:
		return l.succeeded(s, raw)
	case isOver(ctx): // given up: that tells nothing about the server
		l.mu.Lock()
		s.trying--
		l.broadcast()
		l.mu.Unlock()
	default:
		l.failed(s, began, err)
	}
	return nil, fmt.Errorf("dial API server %s: %w", s.addr, err)
}

// isOver tells whether ctx has ended or does so at this moment: the network looks
// at its deadline by a timer of its own, which may be the first.
func isOver(ctx context.Context) bool {
	end, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(end)
}

// Await returns as soon as one server accepts a connection, or with an error
// when ctx ends first. It asks all of them at least once a second, in packets of
// some bytes, so that it may be used for hours.
func (l *LoadBalancer) Await(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var attempts sync.WaitGroup
	defer attempts.Wait()
	defer cancel()

	found := make(chan struct{}, 1)
	pause := firstPause / 2
	for {
		for _, s := range l.all() {
			// A SYN that got lost is repeated after 1, 2, 4 … seconds only, so
			// the attempts overlap.
			attempts.Go(func() {
				if c, err := l.attempt(ctx, s); err == nil {
					c.Close()
					select {
					case found <- struct{}{}:
					default:
					}
				}
			})
		}
		select {
		case <-found:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait for an API server: %w (%w)", context.Cause(ctx), l.noServer())
		case <-time.After(pause):
		}
		pause = min(2*pause, waitedPause)
	}
}

// noServer is the error that tells what each server's last one was.
func (l *LoadBalancer) noServer() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	for _, s := range l.servers {
		if s.lastError != "" {
			all = append(all, s.addr+": "+s.lastError)
		}
	}
	if len(all) == 0 {
		return ErrNoServer
	}
	return fmt.Errorf("%w: %s", ErrNoServer, strings.Join(all, "; "))
}
