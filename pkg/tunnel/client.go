package tunnel

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/dial"
)

const (
	// The pauses between attempts grow from the first to the longest; half of
	// each is chance, so that the agents of a server that was restarted don't
	// all come at once.
	firstPause   = 500 * time.Millisecond
	longestPause = 10 * time.Second
	// idlePause is the pause after an answer that won't soon be another one: the
	// credential is denied, or the server is reached by another address already.
	idlePause = time.Minute
	// steadyAfter is how long a tunnel must have stood for its end to count as
	// the first failure.
	steadyAfter = time.Minute
	// maxAnswer bounds what is read of an answer that is not 101, in bytes.
	maxAnswer = 1 << 10
)

// DeniedError is an API server's answer 401 or 403: the node's credential is not
// (or no more) accepted.
type DeniedError struct {
	Server string
	Status string // as in 401 Unauthorized
	Text   string // what the server said
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("the node's credential is denied: %s: %s", e.Status, e.Text)
}

func isDenied(err error) bool {
	var denied *DeniedError
	return errors.As(err, &denied)
}

// errElsewhere: the server has this agent's tunnel by another address.
var errElsewhere = errors.New("the server has a tunnel of this agent")

// ClientConfig is what a Client needs to know.
type ClientConfig struct {
	// Servers are the API servers to begin with, host:port; see SetServers.
	Servers []string
	// Dial connects to a server. Default: that of dial.Dialer.
	Dial dial.Func
	// TLS has the cluster's authority and the credential of the node. Its
	// GetClientCertificate is asked at each connection, so that a new
	// certificate needs no new Client. It must not be nil. Without a ServerName
	// the server's host is checked.
	TLS *tls.Config
	// Allow decides what the server may reach through this node: its kubelet,
	// its pods. It must not be nil.
	Allow func(netip.AddrPort) bool
	// DialTarget connects to what Allow let pass. Default: net.Dialer's.
	DialTarget dial.Func
	// KeepAlive is how long a tunnel may be silent before it is asked for a sign
	// of life. Default: DefaultKeepAlive.
	KeepAlive time.Duration
	// Log must not be nil.
	Log *slog.Logger
}

// Client keeps an agent's tunnels, one to each API server. Make it with
// NewClient; all its methods may be called at any time.
type Client struct {
	cfg     ClientConfig
	process string // names this Client, by chance

	mu      sync.Mutex
	servers []*upstream
	changed chan struct{} // closed and replaced when servers change
	ended   chan struct{} // closed and replaced when a tunnel ends
}

var _ component.Component = (*Client)(nil)

// upstream is a server to keep a tunnel to. Its status is guarded by Client.mu.
type upstream struct {
	addr   string
	again  chan struct{} // of capacity 1: see Reconnect
	status ServerStatus
}

// ServerStatus is how the tunnel to one server stands.
type ServerStatus struct {
	Server string `json:"server" yaml:"server"`
	// Connected: a tunnel stands, Since then.
	Connected bool      `json:"connected" yaml:"connected"`
	Since     time.Time `json:"since,omitzero" yaml:"since,omitempty"`
	// Denied: the server does not accept the node's credential.
	Denied bool `json:"denied,omitempty" yaml:"denied,omitempty"`
	// LastError is why there is no tunnel, or why the one before ended.
	LastError   string    `json:"lastError,omitempty" yaml:"lastError,omitempty"`
	LastErrorAt time.Time `json:"lastErrorAt,omitzero" yaml:"lastErrorAt,omitempty"`
}

// NewClient makes a Client; Run has it work.
func NewClient(cfg ClientConfig) *Client {
	cfg.KeepAlive = cmp.Or(cfg.KeepAlive, DefaultKeepAlive)
	if cfg.Dial == nil {
		cfg.Dial = dial.Dialer().DialContext
	}
	if cfg.DialTarget == nil {
		cfg.DialTarget = new(net.Dialer).DialContext
	}
	c := &Client{cfg: cfg, process: rand.Text(), changed: make(chan struct{}), ended: make(chan struct{})}
	c.SetServers(cfg.Servers)
	return c
}

// Name implements component.Component.
func (c *Client) Name() string { return "tunnel" }

// Needs implements component.Component.
func (c *Client) Needs() []string { return nil }

// SetServers has the Client keep tunnels to these servers, host:port, and no
// others. It may name one server by several addresses: only one tunnel is kept
// then, which costs a request a minute. An empty list is ignored, since a cluster
// without servers can't have told so.
func (c *Client) SetServers(addrs []string) {
	if len(addrs) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var servers []*upstream
	for _, addr := range addrs {
		same := func(u *upstream) bool { return u.addr == addr }
		if slices.ContainsFunc(servers, same) {
			continue
		}
		u := &upstream{addr: addr, again: make(chan struct{}, 1), status: ServerStatus{Server: addr}}
		if i := slices.IndexFunc(c.servers, same); i >= 0 {
			u = c.servers[i]
		}
		servers = append(servers, u)
	}
	c.servers = servers
	close(c.changed)
	c.changed = make(chan struct{})
}

// Reconnect replaces all tunnels by new ones, for a new credential. What is open
// in them fails.
func (c *Client) Reconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, u := range c.servers {
		select {
		case u.again <- struct{}{}:
		default:
		}
	}
}

// Status tells of each server, in the order of SetServers.
func (c *Client) Status() []ServerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]ServerStatus, len(c.servers))
	for i, u := range c.servers {
		all[i] = u.status
	}
	return all
}

// Run keeps the tunnels until ctx ends, and closes them then. It closes ready at
// once: nothing on a node needs a tunnel.
func (c *Client) Run(ctx context.Context, ready chan<- struct{}) error {
	close(ready)
	var work sync.WaitGroup
	defer work.Wait()
	keeping := make(map[*upstream]context.CancelFunc)
	for {
		c.mu.Lock()
		servers, changed := c.servers, c.changed
		c.mu.Unlock()
		for u, stop := range keeping {
			if !slices.Contains(servers, u) {
				stop()
				delete(keeping, u)
			}
		}
		for _, u := range servers {
			if keeping[u] == nil {
				own, stop := context.WithCancel(ctx)
				keeping[u] = stop
				work.Go(func() {
					defer stop()
					c.keep(own, u)
				})
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// keep has a tunnel to u stand until ctx ends.
func (c *Client) keep(ctx context.Context, u *upstream) {
	for failures := 0; ; {
		ended := c.whenEnded()
		stood, err := c.tunnel(ctx, u)
		if ctx.Err() != nil {
			c.note(u, nil)
			return
		}
		c.note(u, err)
		if stood >= steadyAfter {
			failures = 0
		}
		failures++
		longest := longestPause
		if errors.Is(err, errElsewhere) {
			longest = idlePause
		} else {
			ended = nil
		}
		pause := min(firstPause<<min(failures-1, 16), longest)
		if isDenied(err) {
			pause, failures = idlePause, 0
		}
		c.cfg.Log.Debug("no tunnel to an API server", "server", u.addr, "err", err, "next", pause)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause/2 + mathrand.N(pause/2)):
		case <-u.again:
			failures = 0
		case <-ended: // the other tunnel to the same server, perhaps
			failures = 0
		}
	}
}

func (c *Client) whenEnded() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// tunnel makes a tunnel and serves it until it ends, and tells how long it stood.
func (c *Client) tunnel(ctx context.Context, u *upstream) (stood time.Duration, err error) {
	// A wish from before this attempt is fulfilled by it.
	select {
	case <-u.again:
	default:
	}
	l, err := c.connect(ctx, u.addr)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	c.mu.Lock()
	u.status.Connected, u.status.Denied, u.status.Since = true, false, began.UTC().Truncate(time.Millisecond)
	c.mu.Unlock()
	c.cfg.Log.Info("tunnel to API server", "server", u.addr)

	defer context.AfterFunc(ctx, func() { l.fail(errors.New("the agent is stopping")) })()
	l.watched.Go(func() {
		select {
		case <-u.again:
			l.fail(errors.New("the agent connects again"))
		case <-l.session.CloseChan():
		}
	})
	err = c.serve(ctx, l)
	l.watched.Wait()
	c.mu.Lock()
	close(c.ended)
	c.ended = make(chan struct{})
	c.mu.Unlock()
	return time.Since(began), err
}

// note takes down why there is no tunnel; nil: none is wanted any more.
func (c *Client) note(u *upstream, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := u.status
	u.status.Connected, u.status.Since = false, time.Time{}
	if err == nil {
		return
	}
	u.status.Denied = isDenied(err)
	u.status.LastError, u.status.LastErrorAt = err.Error(), time.Now().UTC().Truncate(time.Millisecond)
	if was.Connected || u.status.Denied && !was.Denied {
		c.cfg.Log.Warn("no tunnel to an API server; it is tried again", "server", u.addr, "err", err)
	}
}
