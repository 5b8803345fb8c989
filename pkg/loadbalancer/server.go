package loadbalancer

import (
	"cmp"
	"hash/maphash"
	"net"
	"slices"
	"time"
)

// State is what is known of a server.
type State string

const (
	// StateUnknown: it was not asked yet.
	StateUnknown State = "unknown"
	// StateHealthy: it accepted the latest connection.
	StateHealthy State = "healthy"
	// StateUnreachable: the latest attempt failed. It is tried again.
	StateUnreachable State = "unreachable"
)

// server is one API server. Its fields are guarded by LoadBalancer.mu.
type server struct {
	addr    string
	given   int // its place in --server; see isGiven
	learned bool
	removed bool

	state       State // "" is unknown
	failures    int   // in a row
	trying      int   // attempts under way
	checking    bool  // a check of the background is under way
	doubted     bool  // a connection died in silence
	failedAt    time.Time
	lastError   string
	lastContact time.Time
	conns       map[*conn]struct{}
}

// notGiven is the place of a server that is not in --server.
const notGiven = -1

func (s *server) isGiven() bool { return s.given != notGiven }

// tier is 0 for those the cluster has now, 1 for the last resort.
func (s *server) tier() int {
	if s.learned {
		return 0
	}
	return 1
}

// rest is how long s is left alone since it failed; its failures make it longer.
func (s *server) rest(longest time.Duration, now time.Time) time.Duration {
	pause := min(firstPause<<min(max(s.failures-1, 0), 16), longest)
	return s.failedAt.Add(pause).Sub(now)
}

// find needs mu.
func (l *LoadBalancer) find(addr string) *server {
	i := slices.IndexFunc(l.servers, func(s *server) bool { return s.addr == addr })
	if i < 0 {
		return nil
	}
	return l.servers[i]
}

// arrange takes over what was learned and puts the servers in order. It returns
// the connections to those that are no longer learned, and whether any server
// came or went. It needs mu.
func (l *LoadBalancer) arrange(learned []string) (cut []*conn, changed bool) {
	for _, addr := range learned {
		s := l.find(addr)
		if s == nil {
			s = &server{addr: addr, given: notGiven, conns: make(map[*conn]struct{})}
			l.servers = append(l.servers, s)
		}
		changed = changed || !s.learned
		s.learned = true
	}
	l.servers = slices.DeleteFunc(l.servers, func(s *server) bool {
		if s.learned && !slices.Contains(learned, s.addr) {
			changed = true
			s.learned, s.removed = false, !s.isGiven()
			for c := range s.conns {
				cut = append(cut, c)
			}
			if l.current == s {
				l.current = nil
			}
		}
		return s.removed
	})
	// By a hash of its own each agent has another order, so that a server's
	// agents spread over the others when it dies, and few move when one comes.
	hash := func(s *server) uint64 { return maphash.String(l.seed, s.addr) }
	slices.SortStableFunc(l.servers, func(a, b *server) int {
		if c := cmp.Compare(a.tier(), b.tier()); c != 0 {
			return c
		}
		if a.learned {
			return cmp.Compare(hash(a), hash(b))
		}
		return cmp.Compare(a.given, b.given)
	})
	return cut, changed
}

// all are the servers in the order of preference.
func (l *LoadBalancer) all() []*server {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.servers)
}

// next gives the servers to try now, in their order: those that are not known to
// be dead, then the dead ones that have rested. When there are none, wait is how
// long until there is one; it is negative while all are being tried, which ends
// with a change.
func (l *LoadBalancer) next() (try []*server, wait time.Duration, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	wait = -1
	var rested []*server
	for _, s := range l.servers {
		if s.state != StateUnreachable {
			try = append(try, s)
			continue
		}
		if s.trying > 0 {
			continue
		}
		if rest := s.rest(waitedPause, now); rest <= 0 {
			rested = append(rested, s)
		} else if wait < 0 || rest < wait {
			wait = rest
		}
	}
	stays := func(s *server) int {
		if s == l.current {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(try, func(a, b *server) int {
		return cmp.Or(cmp.Compare(a.tier(), b.tier()), cmp.Compare(stays(a), stays(b)))
	})
	return append(try, rested...), wait, l.changed
}

// use has the next dials begin with s.
func (l *LoadBalancer) use(s *server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != s && !s.removed {
		l.current = s
		l.log.Info("using API server", "server", s.addr)
	}
}

func (l *LoadBalancer) succeeded(s *server, raw net.Conn) (*conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.trying--
	if s.removed {
		raw.Close()
		return nil, errRemoved
	}
	if s.state != StateHealthy {
		if s.state == StateUnreachable {
			l.log.Info("API server answers again", "server", s.addr)
		}
		s.state = StateHealthy
		l.broadcast()
	}
	s.failures, s.lastContact = 0, time.Now()
	c := &conn{Conn: raw, lb: l, server: s}
	s.conns[c] = struct{}{}
	return c, nil
}

// failed notes an attempt that began at the given time. Connections that heard
// their server since then prove that it lives (it may be short of something
// that a new connection takes); the others are closed.
func (l *LoadBalancer) failed(s *server, began time.Time, err error) {
	l.mu.Lock()
	var cut []*conn
	for c := range s.conns {
		if !c.heardSince(began) {
			cut = append(cut, c)
		}
	}
	say := l.log.Debug
	if s.state != StateUnreachable {
		say = l.log.Warn
	}
	s.trying--
	if s.failures == 0 || began.After(s.failedAt) { // one of many at once counts
		s.failures++
	}
	s.state, s.failedAt, s.lastError = StateUnreachable, time.Now(), reason(err)
	removed := s.removed
	l.broadcast()
	l.mu.Unlock()

	if !removed {
		say("API server does not answer", "server", s.addr, "err", err, "cut", len(cut))
	}
	for _, c := range cut {
		c.cut(err)
	}
}

// reason is err without the address, which stands beside it already.
func reason(err error) string {
	if op, ok := err.(*net.OpError); ok && op.Op == "dial" && op.Err != nil {
		return op.Err.Error()
	}
	return err.Error()
}

// doubt has s checked: one of its connections died in silence.
func (l *LoadBalancer) doubt(s *server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.doubted = true
	l.broadcast()
}

// broadcast needs mu.
func (l *LoadBalancer) broadcast() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// checks gives the servers to check now, and how long until the next one is due,
// negative for none.
func (l *LoadBalancer) checks() (due []*server, wait time.Duration, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	wait = -1
	for _, s := range l.servers {
		if s.checking || s.trying > 0 || s.state != StateUnreachable && !s.doubted {
			continue
		}
		if rest := s.rest(quietPause, now); s.doubted || rest <= 0 {
			s.checking, s.doubted = true, false
			due = append(due, s)
		} else if wait < 0 || rest < wait {
			wait = rest
		}
	}
	return due, wait, l.changed
}

func (l *LoadBalancer) checked(s *server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.checking = false
	l.broadcast()
}

// Status is what a LoadBalancer knows.
type Status struct {
	// Listen is the address that it serves; empty before Run.
	Listen string `json:"listen,omitempty" yaml:"listen,omitempty"`
	// Current is the server that the latest dial got; empty before the first.
	Current string `json:"current,omitempty" yaml:"current,omitempty"`
	// Servers stand in the order in which they are tried.
	Servers []ServerStatus `json:"servers" yaml:"servers"`
}

// ServerStatus is what is known of one server.
type ServerStatus struct {
	Address string `json:"address" yaml:"address"`
	// Learned: the cluster has it. Otherwise it is in --server only.
	Learned bool  `json:"learned" yaml:"learned"`
	State   State `json:"state" yaml:"state"`
	// LastError outlives the failure.
	LastError   string    `json:"lastError,omitempty" yaml:"lastError,omitempty"`
	LastErrorAt time.Time `json:"lastErrorAt,omitzero" yaml:"lastErrorAt,omitempty"`
	// LastContact is when it last accepted a connection or sent anything.
	LastContact time.Time `json:"lastContact,omitzero" yaml:"lastContact,omitempty"`
	// Connections are the open ones.
	Connections int `json:"connections" yaml:"connections"`
}

// Status is for knarr status.
func (l *LoadBalancer) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := Status{Servers: make([]ServerStatus, 0, len(l.servers))}
	if l.addr != nil {
		st.Listen = l.addr.String()
	}
	if l.current != nil {
		st.Current = l.current.addr
	}
	for _, s := range l.servers {
		for c := range s.conns {
			if at := c.lastHeard(); at.After(s.lastContact) {
				s.lastContact = at
			}
		}
		st.Servers = append(st.Servers, ServerStatus{
			Address: s.addr, Learned: s.learned, State: cmp.Or(s.state, StateUnknown),
			LastError: s.lastError, LastErrorAt: wallTime(s.failedAt), LastContact: wallTime(s.lastContact),
			Connections: len(s.conns),
		})
	}
	return st
}

// wallTime drops what readers can't use: zone, monotonic clock, microseconds.
func wallTime(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC().Truncate(time.Millisecond)
}
