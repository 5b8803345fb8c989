package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"
)

// limits are how long things are waited for.
type limits struct {
	// first is how long a request may go without an answer before any server
	// has answered; after that the store answers.
	first time.Duration
	// patience is the same once a server has answered, when others may just be
	// slow: then a probe decides.
	patience time.Duration
	// verdict is how long the first probe may decide; probe how long any may
	// take.
	verdict, probe time.Duration
	// again and cap are the first and the longest pause between two probes.
	again, cap time.Duration
	// urgent, soon and lazy are how long changes wait for others to be written
	// with them; apart is between any two writes; retry is the pause after one
	// failed.
	urgent, soon, lazy, apart, retry time.Duration
	// settled is how long after the start, or after a server came back, clients
	// are given to ask for what they need before anything is thought unused;
	// unused is when a selection is that no client has asked for since.
	settled, unused time.Duration
}

func defaultLimits() limits {
	return limits{
		first: 2 * time.Second, patience: 10 * time.Second,
		verdict: 2 * time.Second, probe: 5 * time.Second,
		again: 250 * time.Millisecond, cap: 5 * time.Second,
		urgent: 2 * time.Second, soon: 30 * time.Second, lazy: 10 * time.Minute, apart: 10 * time.Second, retry: time.Minute,
		settled: 10 * time.Minute, unused: 24 * time.Hour,
	}
}

type state int

const (
	unknown state = iota
	online
	offline
)

// way is how a client reaches the API server.
type way struct {
	via  *transport
	base string // https://host:port
}

// link knows whether a server can be reached. All requests tell it how they
// went; in doubt, and while none can be reached, it probes by itself.
type link struct {
	lim limits
	log *slog.Logger
	ctx context.Context
	end context.CancelFunc
	wg  sync.WaitGroup

	mu      sync.Mutex
	state   state
	since   time.Time // of the state
	contact time.Time
	err     error         // why no server could be reached last
	changed chan struct{} // closed when offline begins or ends
	// verdict is closed once the doubt that there is, is resolved; nil without.
	verdict chan struct{}
	probing bool
	kick    chan struct{}
	ways    []way // by which to probe: those of the last clients that failed
	guards  map[*guard]struct{}
}

func newLink(lim limits, log *slog.Logger) *link {
	l := &link{
		lim: lim, log: log, since: time.Now(),
		changed: make(chan struct{}), kick: make(chan struct{}, 1), guards: map[*guard]struct{}{},
	}
	l.ctx, l.end = context.WithCancel(context.Background())
	return l
}

func (l *link) close() {
	l.end()
	l.wg.Wait()
}

// offline tells whether no server can be reached, and gives a channel that is
// closed when this changes.
func (l *link) offline() (bool, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state == offline, l.changed
}

// met says that a server has answered.
func (l *link) met() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.contact = time.Now()
	l.set(online)
}

// failed says that a request has, and waits until it is decided whether any
// server can be reached, or ctx ends.
func (l *link) failed(ctx context.Context, w way, err error) {
	select {
	case <-l.doubt(w, err):
	case <-ctx.Done():
	}
}

// doubt makes sure that it is found out whether a server can be reached, and
// returns a channel that is closed then.
func (l *link) doubt(w way, err error) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	if !slices.Contains(l.ways, w) {
		l.ways = append([]way{w}, l.ways[:min(len(l.ways), 1)]...)
	}
	switch {
	case l.state == offline || l.ctx.Err() != nil:
		decided := make(chan struct{})
		close(decided)
		l.start()
		return decided
	case l.state == unknown:
		// The request was the probe.
		decided := make(chan struct{})
		close(decided)
		l.set(offline)
		return decided
	case l.verdict == nil:
		l.verdict = make(chan struct{})
		l.start()
	}
	return l.verdict
}

// set is for those that hold mu.
func (l *link) set(to state) {
	if l.verdict != nil {
		close(l.verdict)
		l.verdict = nil
	}
	from := l.state
	if from == to {
		return
	}
	l.state = to
	if to == offline {
		l.log.Warn("no server can be reached; answering this node's parts from what they last read", "err", l.err)
		for g := range l.guards {
			g.cut()
		}
		l.start()
	}
	if from == offline {
		l.log.Info("a server can be reached again", "after", time.Since(l.since).Round(time.Second))
		l.err = nil
	}
	l.since = time.Now()
	if from == offline || to == offline {
		close(l.changed)
		l.changed = make(chan struct{})
	}
}

// start has the probes begin; for those that hold mu.
func (l *link) start() {
	if l.probing || l.ctx.Err() != nil {
		return
	}
	l.probing = true
	l.wg.Go(l.probe)
}

// hurry has the next probe happen now.
func (l *link) hurry() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// probe asks until a server answers.
func (l *link) probe() {
	pause := l.lim.again
	for n := 0; ; n++ {
		err := l.try(n)
		l.mu.Lock()
		if err == nil {
			l.contact = time.Now()
			l.set(online)
		}
		if err != nil && (l.state == offline || l.verdict != nil) && l.ctx.Err() == nil {
			l.err = err
			l.set(offline)
		}
		if l.state != offline || l.ctx.Err() != nil {
			l.probing = false
			if l.verdict != nil { // closed: there will be none
				close(l.verdict)
				l.verdict = nil
			}
			l.mu.Unlock()
			return
		}
		changed := l.changed
		l.mu.Unlock()

		t := time.NewTimer(pause + time.Duration(rand.Int64N(int64(pause)/4+1)))
		select {
		case <-t.C:
			pause = min(2*pause, l.lim.cap)
		case <-l.kick:
			pause = l.lim.again
		case <-changed:
		case <-l.ctx.Done():
		}
		t.Stop()
	}
}

var errStatus = errors.New("the server is not ready")

// try is one probe. If it takes long the doubt is resolved meanwhile.
func (l *link) try(n int) error {
	l.mu.Lock()
	if l.state == online && l.verdict == nil {
		l.mu.Unlock()
		return nil // another request was answered
	}
	w := l.ways[n%len(l.ways)]
	l.mu.Unlock()

	ctx, cancel := context.WithTimeout(l.ctx, l.lim.probe)
	defer cancel()
	slow := time.AfterFunc(l.lim.verdict, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.verdict != nil {
			l.set(offline)
		}
	})
	defer slow.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.base+"/readyz", nil)
	if err != nil {
		return fmt.Errorf("ask whether a server is ready: %w", err)
	}
	resp, err := w.via.inner.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ask whether a server is ready: %w", err)
	}
	defer resp.Body.Close()
	// Read to its end, the connection can be used again.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode >= http.StatusInternalServerError {
		return fmt.Errorf("%w: %s", errStatus, resp.Status)
	}
	return nil
}

// guard watches over a request that the store could answer instead.
type guard struct {
	link   *link
	w      way
	cancel context.CancelFunc
	timer  *time.Timer
	isCut  bool // guarded by link.mu
}

var errSlow = errors.New("no answer came in time")

// watchOver has cancel called when the request, under way now, is not worth to be
// waited for. Call done when it has ended.
func (l *link) watchOver(w way, cancel context.CancelFunc) *guard {
	g := &guard{link: l, w: w, cancel: cancel}
	l.mu.Lock()
	defer l.mu.Unlock()
	wait := l.lim.patience
	switch l.state {
	case unknown:
		wait = l.lim.first
	case offline:
		g.cut()
	}
	l.guards[g] = struct{}{}
	g.timer = time.AfterFunc(wait, g.slow)
	return g
}

// cut is for those that hold link.mu.
func (g *guard) cut() {
	g.isCut = true
	g.cancel()
}

func (g *guard) slow() {
	<-g.link.doubt(g.w, errSlow)
	g.link.mu.Lock()
	defer g.link.mu.Unlock()
	if _, ok := g.link.guards[g]; ok && !g.isCut {
		g.timer.Reset(g.link.lim.patience)
	}
}

// done tells whether the request was ended by the guard.
func (g *guard) done() bool {
	g.link.mu.Lock()
	defer g.link.mu.Unlock()
	g.timer.Stop()
	delete(g.link.guards, g)
	return g.isCut
}
