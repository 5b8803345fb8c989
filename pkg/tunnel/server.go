package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// ServerConfig is what a Server needs to know.
type ServerConfig struct {
	// NodeName tells the node whose kubelet a request is from. An error answers
	// it with 403. The requests have passed the API server's authentication, so
	// it looks at the user in the request's context.
	NodeName func(*http.Request) (string, error)
	// KeepAlive is how long a tunnel may be silent before it is asked for a sign
	// of life. Default: DefaultKeepAlive.
	KeepAlive time.Duration
	// Log must not be nil.
	Log *slog.Logger
}

// Server keeps the tunnels of agents, the newest of each node. It serves [Path];
// the handler returns once a tunnel stands. Make it with NewServer.
type Server struct {
	cfg            ServerConfig
	upgradeTimeout time.Duration // of the answer to an agent's request

	mu      sync.Mutex
	tunnels map[string]*tunnel // by node; nil once closed
	work    sync.WaitGroup
}

var _ http.Handler = (*Server)(nil)

// tunnel is the server's end of a node's tunnel.
type tunnel struct {
	*link
	client client
	node   Node
}

// client is what clientHeader says: a process, and how it names this server.
type client struct{ process, by string }

// Node is a node with a tunnel.
type Node struct {
	Name string `json:"name" yaml:"name"`
	// Since is when its tunnel was made.
	Since time.Time `json:"since" yaml:"since"`
	// From is the address that the tunnel comes from: that of the node, or of
	// what translates addresses before it.
	From netip.AddrPort `json:"from" yaml:"from"`
}

// NewServer makes a Server. Close ends it.
func NewServer(cfg ServerConfig) *Server {
	cfg.KeepAlive = cmp.Or(cfg.KeepAlive, DefaultKeepAlive)
	return &Server{cfg: cfg, upgradeTimeout: 10 * time.Second, tunnels: make(map[string]*tunnel)}
}

// ServeHTTP takes a tunnel, or answers 403 (no node's user), 405, 409 (the same
// agent has a tunnel already, by another address of this server), 426 (no
// request for a tunnel) or 503 (this server is stopping).
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "tunnels are asked for by GET", http.StatusMethodNotAllowed)
		return
	}
	if r.ProtoMajor != 1 || !hasToken(r.Header, "Connection", "Upgrade") || !hasToken(r.Header, "Upgrade", Protocol) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", Protocol)
		http.Error(w, "agents ask here for "+Protocol+" over HTTP/1.1", http.StatusUpgradeRequired)
		return
	}
	node, err := s.cfg.NodeName(r)
	if err != nil {
		http.Error(w, "no tunnel for this user: "+err.Error(), http.StatusForbidden)
		return
	}
	if s.stopped() {
		http.Error(w, errStopping.Error(), http.StatusServiceUnavailable)
		return
	}
	var c client
	c.process, c.by, _ = strings.Cut(r.Header.Get(clientHeader), " ")
	if other := s.other(node, c); other != "" {
		http.Error(w, "this agent has a tunnel to this server, as "+oneLine(other), http.StatusConflict)
		return
	}
	t, err := s.upgrade(w)
	if err != nil {
		s.cfg.Log.Debug("a tunnel did not come about", "node", node, "from", r.RemoteAddr, "err", err)
		return
	}
	from, _ := netip.ParseAddrPort(r.RemoteAddr)
	t.client, t.node = c, Node{Name: node, Since: time.Now().UTC().Truncate(time.Millisecond), From: from}
	s.admit(t)
}

func (s *Server) upgrade(w http.ResponseWriter) (*tunnel, error) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		err = fmt.Errorf("take the connection over from HTTP: %w", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(s.upgradeTimeout))
	_, err = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+Protocol+"\r\n\r\n")
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("answer an agent: %w", err)
	}
	conn.SetDeadline(time.Time{}) // the HTTP server may have left one, too
	l, err := newLink(conn, begun(rw.Reader, conn), true, s.cfg.KeepAlive, s.cfg.Log)
	if err != nil {
		return nil, err
	}
	return &tunnel{link: l}, nil
}

// admit puts the tunnel in the place of the node's older one.
func (s *Server) admit(t *tunnel) {
	s.mu.Lock()
	if s.tunnels == nil {
		s.mu.Unlock()
		t.fail(errStopping)
		t.watched.Wait()
		return
	}
	older := s.tunnels[t.node.Name]
	s.tunnels[t.node.Name] = t
	s.work.Go(func() { s.guard(t) })
	s.mu.Unlock()
	if older != nil {
		older.fail(errors.New("a newer tunnel of the node took its place"))
	}
	s.cfg.Log.Debug("node has a tunnel", "node", t.node.Name, "from", t.node.From)
}

var errStopping = errors.New("the server is stopping")

// guard ends a tunnel in which the agent opens a stream, and forgets the tunnel
// when it has ended.
func (s *Server) guard(t *tunnel) {
	if _, err := t.session.AcceptStream(); err == nil {
		s.cfg.Log.Warn("an agent opened a stream in its tunnel, which only the server may; the tunnel is closed",
			"node", t.node.Name, "from", t.node.From)
		t.fail(errors.New("the agent opened a stream"))
	}
	<-t.session.CloseChan()
	s.mu.Lock()
	if s.tunnels[t.node.Name] == t {
		delete(s.tunnels, t.node.Name)
	}
	s.mu.Unlock()
	t.watched.Wait()
	s.cfg.Log.Debug("a tunnel of a node ended", "node", t.node.Name, "from", t.node.From, "err", t.err())
}

// other names the address by which the same process keeps a tunnel already;
// empty when it keeps none.
func (s *Server) other(node string, c client) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tunnels[node]
	if t == nil || t.session.IsClosed() || c.process == "" || t.client.process != c.process || t.client.by == c.by {
		return ""
	}
	return t.client.by
}

func (s *Server) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tunnels == nil
}

func (s *Server) tunnel(node string) *tunnel {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tunnels[node]
	if t == nil || t.session.IsClosed() {
		return nil
	}
	return t
}

// Connected tells whether the node has a tunnel. One whose agent vanished counts
// for up to 25 seconds.
func (s *Server) Connected(node string) bool { return s.tunnel(node) != nil }

// Nodes are the nodes with a tunnel, by name.
func (s *Server) Nodes() []Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	nodes := make([]Node, 0, len(s.tunnels))
	for _, t := range s.tunnels {
		if !t.session.IsClosed() {
			nodes = append(nodes, t.node)
		}
	}
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	return nodes
}

// Dial connects to addr, a TCP address as the node sees it, through the node's
// tunnel. It gives up when ctx ends, and after 15 seconds.
//
// Its error is [ErrNotConnected] without a tunnel, [ErrRefused] where the agent
// does not let the server, and otherwise says what the agent met. The
// connection's deadlines work; CloseWrite (method of the connection) and the
// target's end of data end one direction; when the tunnel ends, all its
// connections fail at once with [ErrCut].
func (s *Server) Dial(ctx context.Context, node string, addr netip.AddrPort) (net.Conn, error) {
	t := s.tunnel(node)
	if t == nil {
		return nil, fmt.Errorf("dial %s through the tunnel of node %s: %w", addr, node, ErrNotConnected)
	}
	c, err := t.open(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s through the tunnel of node %s: %w", addr, node, err)
	}
	return c, nil
}

// Drop ends the tunnel of a node that does not belong to the cluster any more.
func (s *Server) Drop(node string) {
	if t := s.tunnel(node); t != nil {
		t.fail(errors.New("the node does not belong to the cluster any more"))
	}
}

// Close ends all tunnels and takes no more. It may be called twice.
func (s *Server) Close() error {
	s.mu.Lock()
	all := s.tunnels
	s.tunnels = nil
	s.mu.Unlock()
	for _, t := range all {
		t.fail(errStopping)
	}
	s.work.Wait()
	return nil
}

// hasToken looks for a token in a header that is a list (RFC 9110, section 5.6.1).
func hasToken(h http.Header, name, token string) bool {
	for _, line := range h.Values(name) {
		for part := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}
