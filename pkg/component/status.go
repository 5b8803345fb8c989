package component

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// State is where a component stands in its life.
type State string

const (
	// StateWaiting: something it needs has not been ready yet.
	StateWaiting State = "waiting"
	// StateStarting: Run was called and has not closed ready yet.
	StateStarting State = "starting"
	// StateReady: others may rely on it.
	StateReady State = "ready"
	// StateRetrying: it failed and will be started again.
	StateRetrying State = "failed-retrying"
	// StateFailed: it failed for good, or did not stop in time.
	StateFailed State = "failed"
	// StateStopping: it was asked to stop and has not returned yet.
	StateStopping State = "stopping"
	// StateStopped: it returned when asked, or was never started.
	StateStopped State = "stopped"
)

// Duration is a time.Duration that is text ("1.25s") in JSON and YAML.
type Duration struct{ time.Duration }

// MarshalText writes the duration as time.Duration's String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (d *Duration) UnmarshalText(text []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(text))
	return err
}

// Status is what a group knows about one of its components.
type Status struct {
	Name  string `json:"name" yaml:"name"`
	Class Class  `json:"class" yaml:"class"`
	State State  `json:"state" yaml:"state"`
	// StartedAt is when Run was last called; zero before.
	StartedAt time.Time `json:"startedAt,omitzero" yaml:"startedAt,omitempty"`
	// ReadyAfter is the time from the group's start to the component's first
	// readiness; zero before.
	ReadyAfter Duration `json:"readyAfter,omitzero" yaml:"readyAfter,omitempty"`
	// Since is when State was entered.
	Since time.Time `json:"since,omitzero" yaml:"since,omitempty"`
	// WaitsFor names what a waiting component still needs.
	WaitsFor []string `json:"waitsFor,omitempty" yaml:"waitsFor,omitempty"`
	// LastError outlives the failure: a component that is ready again keeps it.
	LastError string `json:"lastError,omitempty" yaml:"lastError,omitempty"`
	// Restarts counts the calls of Run after the first.
	Restarts int `json:"restarts" yaml:"restarts"`
}

// Status returns every component's state, in the order of NewGroup's arguments.
func (g *Group) Status() []Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]Status, len(g.members))
	for i, m := range g.members {
		s := m.status
		s.StartedAt, s.Since = wallTime(s.StartedAt), wallTime(s.Since)
		if s.State == StateWaiting {
			for _, n := range m.needs {
				if !closed(n.ready) {
					s.WaitsFor = append(s.WaitsFor, n.status.Name)
				}
			}
		}
		all[i] = s
	}
	return all
}

// StartedAt is when Run was called; zero before.
func (g *Group) StartedAt() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return wallTime(g.began)
}

// Changed returns a channel that is closed at the next change of any status.
// Get it before Status, so that no change is missed in between.
func (g *Group) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

// update enters a state; err, when given, becomes the last error.
func (g *Group) update(m *member, to State, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.enter(m, to, err)
}

// enter is update for callers that hold g.mu.
func (g *Group) enter(m *member, to State, err error) {
	s, now := &m.status, time.Now()
	if to == StateStarting {
		if !s.StartedAt.IsZero() {
			s.Restarts++
		}
		s.StartedAt = now
	}
	s.State, s.Since = to, now
	if err != nil {
		s.LastError = err.Error()
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *Group) tellReady(m *member) time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	g.enter(m, StateReady, nil)
	if closed(m.ready) {
		g.log.Info("component is ready again", "component", m.status.Name)
		return now
	}
	m.status.ReadyAfter.Duration = now.Sub(g.began)
	g.log.Debug("component is ready", "component", m.status.Name, "after", m.status.ReadyAfter.Duration)
	close(m.ready)
	if m.Class != Optional {
		if g.unready--; g.unready == 0 {
			close(g.allReady)
		}
	}
	return now
}

// tellRetry warns of a new error; one that repeats would fill a small disk.
func (g *Group) tellRetry(m *member, err error, pause time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	say := g.log.Warn
	if m.status.LastError == err.Error() {
		say = g.log.Debug
	}
	g.enter(m, StateRetrying, err)
	say("component failed, will be started again", "component", m.status.Name, "in", pause, "err", err)
}

func (g *Group) tellStopping(m *member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// One that failed for good may not have left its goroutine yet.
	if !closed(m.done) && m.status.State != StateFailed {
		g.enter(m, StateStopping, nil)
	}
}

// tellStopped warns of the error of a component that was at work. One that was
// stopped in its start has done what it was asked to, however it says so.
func (g *Group) tellStopped(m *member, err error, atWork bool) {
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	g.update(m, StateStopped, err)
	if err == nil {
		return
	}
	say := g.log.Warn
	if !atWork {
		say = g.log.Debug
	}
	say("component stopped with an error", "component", m.status.Name, "err", err)
}

// stateOf also gives a channel that is closed at the next change of any status.
func (g *Group) stateOf(m *member) (State, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return m.status.State, g.changed
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// wallTime drops what status readers can't use: the monotonic clock, the zone
// of this process, and digits below the millisecond.
func wallTime(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC().Truncate(time.Millisecond)
}

// String is the class as it stands in a status: critical, retried or optional.
func (c Class) String() string {
	switch c {
	case Critical:
		return "critical"
	case Retried:
		return "retried"
	case Optional:
		return "optional"
	}
	return fmt.Sprintf("class %d", int(c))
}

// MarshalText writes the class by its name.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads a class by its name.
func (c *Class) UnmarshalText(text []byte) error {
	for _, known := range []Class{Critical, Retried, Optional} {
		if known.String() == string(text) {
			*c = known
			return nil
		}
	}
	return fmt.Errorf("unknown component class %q (want critical, retried or optional)", text)
}
