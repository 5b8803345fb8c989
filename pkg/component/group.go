package component

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"runtime/pprof"
	"sync"
	"time"
)

const (
	defaultStopTimeout = 10 * time.Second

	// A failed attempt of a heavy component costs a slow board seconds of CPU,
	// so the pauses grow fast; their limit is what a user waits at most after
	// having mended the cause.
	firstPause   = 100 * time.Millisecond
	longestPause = 10 * time.Second
	// steadyAfter is how long a component must have been ready before its next
	// failure counts as a new one.
	steadyAfter = time.Minute
)

// Group runs components. Make it with NewGroup; all its methods may be called
// by any goroutine.
type Group struct {
	log      *slog.Logger
	members  []*member
	byName   map[string]*member
	allReady chan struct{}

	mu      sync.Mutex
	began   time.Time     // zero until Run is called
	unready int           // critical and retried components not ready so far
	changed chan struct{} // closed and replaced when a status changes
}

type member struct {
	Spec
	needs     []*member // must be ready before it starts
	upon      []*member // what it relies on to its end: needs, and what says so itself
	stopAfter []*member // those that rely on it; for a last one, all others
	cancel    context.CancelFunc
	ready     chan struct{} // closed at first readiness
	done      chan struct{} // closed when Run has returned and won't be called again
	released  chan struct{} // closed when what it needs may be stopped

	// Guarded by Group.mu.
	status Status
	fail   context.CancelCauseFunc // ends the attempt under way; nil before the first
}

// ErrInjected is what a component has failed by that was made to; see Group.Fail.
var ErrInjected = errors.New("the failure was asked for")

// Fail has a component that is ready end now, as if it had failed by itself: tests
// see by it what that does to the others. The component is told by the end of its
// context, as by a stop, and its group treats it by its class.
func (g *Group) Fail(name string) error {
	m := g.byName[name]
	if m == nil {
		return fmt.Errorf("have component %s fail: there is none of that name", name)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.status.State != StateReady {
		return fmt.Errorf("have component %s fail: it is %s, not %s", name, m.status.State, StateReady)
	}
	m.fail(ErrInjected)
	return nil
}

// Run starts each component once what it needs has been ready, and blocks until
// ctx ends or a critical component fails. Then it stops them, each once all that
// need it have returned, and waits for each no longer than its StopTimeout.
//
// The error names the first critical component that failed and every component
// that did not stop in time; it is nil when ctx ended and all of them stopped.
// What a component returns after it was stopped is logged only. Run can be
// called once.
func (g *Group) Run(ctx context.Context) error {
	if !g.begin() {
		return errors.New("run components: this group has been run before; make a new one")
	}
	stopping, beginStop := context.WithCancel(ctx)
	defer beginStop()

	failures := make(chan error, len(g.members))
	for _, m := range g.members {
		var own context.Context
		// The order of the stop is the group's, so the end of ctx must not reach
		// the components by itself.
		own, m.cancel = context.WithCancel(context.WithoutCancel(ctx))
		go func() {
			defer close(m.done)
			if err := g.supervise(own, stopping, m); err != nil {
				failures <- err
			}
		}()
	}

	var first error
	select {
	case first = <-failures:
	case <-ctx.Done():
		select {
		case first = <-failures:
		default:
		}
	}
	beginStop()
	return errors.Join(first, g.stop())
}

// Ready returns a channel that is closed when the component has been ready for
// the first time. For a name that is not in the group it returns nil.
func (g *Group) Ready(name string) <-chan struct{} {
	m := g.byName[name]
	if m == nil {
		return nil
	}
	return m.ready
}

// AllReady returns a channel that is closed when every critical and retried
// component has been ready. Optional ones are not waited for.
func (g *Group) AllReady() <-chan struct{} { return g.allReady }

func (g *Group) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.began.IsZero() {
		return false
	}
	g.began = time.Now()
	for _, m := range g.members {
		m.status.Since = g.began
	}
	return true
}

// supervise takes m through its life. The error is that of a critical component
// which failed before the stop began.
func (g *Group) supervise(ctx, stopping context.Context, m *member) error {
	if !waitForNeeds(stopping, m) {
		g.update(m, StateStopped, nil)
		return nil
	}
	pause := firstPause
	for {
		readyFor, err := g.attempt(ctx, m)
		if stopping.Err() != nil {
			g.tellStopped(m, err, readyFor > 0)
			return nil
		}
		if err == nil {
			err = errors.New("returned although it was not asked to stop")
		}
		switch m.Class {
		case Critical:
			g.update(m, StateFailed, err)
			g.log.Error("component failed", "component", m.status.Name, "err", err)
			return fmt.Errorf("component %s failed: %w", m.status.Name, err)
		case Optional:
			g.update(m, StateFailed, err)
			g.log.Warn("optional component failed, going on without it", "component", m.status.Name, "err", err)
			return nil
		}
		if readyFor >= steadyAfter {
			pause = firstPause
		}
		g.tellRetry(m, err, pause)
		select {
		case <-stopping.Done():
			g.update(m, StateStopped, nil)
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, longestPause)
	}
}

// waitForNeeds tells whether m may start: false when the stop began first.
func waitForNeeds(stopping context.Context, m *member) bool {
	for _, n := range m.needs {
		select {
		case <-n.ready:
		case <-stopping.Done():
			return false
		}
	}
	return stopping.Err() == nil
}

// Label is the profiler's label of every goroutine of a component: its name.
const Label = "component"

// attempt calls Run once and returns how long the component was ready.
func (g *Group) attempt(ctx context.Context, m *member) (time.Duration, error) {
	ready, result := make(chan struct{}), make(chan error, 1)
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	g.mu.Lock()
	m.fail = fail
	g.enter(m, StateStarting, nil)
	g.mu.Unlock()
	go func() {
		// Holds when Run ends its goroutine by runtime.Goexit.
		err := errors.New("ended its goroutine without returning")
		defer func() {
			if v := recover(); v != nil {
				err = fmt.Errorf("panic: %v", v)
				g.log.Error("component panicked", "component", m.status.Name, "panic", v, "stack", string(debug.Stack()))
			}
			result <- err
		}()
		// Whatever it starts has the label, too.
		pprof.Do(ctx, pprof.Labels(Label, m.status.Name), func(ctx context.Context) { err = m.Run(ctx, ready) })
	}()

	select {
	case <-ready:
	case err := <-result:
		select {
		case <-ready: // closed just before Run returned: it counts
			g.tellReady(m)
		default:
		}
		return 0, err
	}
	since := g.tellReady(m)
	err := <-result
	if errors.Is(context.Cause(ctx), ErrInjected) {
		err = ErrInjected
	}
	return time.Since(since), err
}

// stop cancels every component, what is needed by others after those, and last
// what was marked so.
func (g *Group) stop() error {
	overdue := make([]error, len(g.members))
	var wg sync.WaitGroup
	for i, m := range g.members {
		wg.Go(func() {
			defer close(m.released)
			for _, n := range m.stopAfter {
				<-n.released
			}
			if m.FinishStart {
				g.awaitStarted(m)
			}
			g.tellStopping(m)
			m.cancel()
			timer := time.NewTimer(m.StopTimeout)
			defer timer.Stop()
			select {
			case <-m.done:
			case <-timer.C:
				overdue[i] = fmt.Errorf("component %s did not stop within %v and was left behind", m.status.Name, m.StopTimeout)
				g.update(m, StateFailed, fmt.Errorf("did not stop within %v", m.StopTimeout))
				g.log.Warn("component did not stop in time, going on without it", "component", m.status.Name, "timeout", m.StopTimeout)
			}
		})
	}
	wg.Wait()
	return errors.Join(overdue...)
}

// awaitStarted returns once m is not starting, or half of its time is over.
func (g *Group) awaitStarted(m *member) {
	limit := time.NewTimer(m.StopTimeout / 2)
	defer limit.Stop()
	for {
		state, changed := g.stateOf(m)
		if state != StateStarting {
			return
		}
		select {
		case <-changed:
		case <-limit.C:
			return
		}
	}
}
