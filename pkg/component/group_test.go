package component

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// record keeps what happened, in order.
type record struct {
	mu     sync.Mutex
	events []string
}

func (r *record) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

func (r *record) index(t *testing.T, event string) int {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.events, event)
	if i < 0 {
		t.Fatalf("no %q among %q", event, r.events)
	}
	return i
}

// steady is ready after delay and works until it is stopped.
func (r *record) steady(name string, delay time.Duration, needs ...string) Component {
	return Func(name, needs, func(ctx context.Context, ready chan<- struct{}) error {
		r.add("start %s", name)
		select {
		case <-time.After(delay):
			close(ready)
			<-ctx.Done()
		case <-ctx.Done():
		}
		r.add("stop %s", name)
		return ctx.Err()
	})
}

func newGroup(t *testing.T, specs ...Spec) *Group {
	t.Helper()
	g, err := NewGroup(slog.New(slog.DiscardHandler), specs...)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// run starts the group and returns its stop, which gives Run's error.
func run(t *testing.T, g *Group) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- g.Run(ctx) }()
	return func() error {
		cancel()
		return <-result
	}
}

func statusOf(t *testing.T, g *Group, name string) Status {
	t.Helper()
	for _, s := range g.Status() {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no component %s", name)
	return Status{}
}

func TestComponentsStartOnceTheirNeedsAreReadyAndStopInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r record
		g := newGroup(t,
			Spec{Component: r.steady("proxy", time.Second, "apiserver")},
			Spec{Component: r.steady("apiserver", time.Second, "store", "pki")},
			Spec{Component: r.steady("store", 2*time.Second)},
			Spec{Component: r.steady("pki", time.Second)},
			Spec{Component: r.steady("containerd", time.Second)},
		)
		stop := run(t, g)
		<-g.AllReady()
		for name, want := range map[string]time.Duration{
			"pki": time.Second, "containerd": time.Second, "store": 2 * time.Second,
			"apiserver": 3 * time.Second, "proxy": 4 * time.Second,
		} {
			s := statusOf(t, g, name)
			if s.State != StateReady || s.ReadyAfter.Duration != want {
				t.Errorf("%s is %s after %v, want ready after %v", name, s.State, s.ReadyAfter, want)
			}
		}
		if err := stop(); err != nil {
			t.Fatalf("Run: %v", err)
		}
		order := []string{"stop proxy", "stop apiserver", "stop store"}
		for i := 1; i < len(order); i++ {
			if r.index(t, order[i-1]) > r.index(t, order[i]) {
				t.Errorf("%q came after %q: %q", order[i-1], order[i], r.events)
			}
		}
		if s := statusOf(t, g, "store"); s.State != StateStopped || s.LastError != "" {
			t.Errorf("store after the stop: %+v", s)
		}
	})
}

func TestStatusNamesWhatAComponentWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r record
		g := newGroup(t,
			Spec{Component: r.steady("pki", 0)},
			Spec{Component: r.steady("store", time.Hour)},
			Spec{Component: r.steady("apiserver", 0, "pki", "store")},
		)
		stop := run(t, g)
		synctest.Wait()
		s := statusOf(t, g, "apiserver")
		if s.State != StateWaiting || !slices.Equal(s.WaitsFor, []string{"store"}) {
			t.Errorf("apiserver: %+v", s)
		}
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if slices.Contains(r.events, "start apiserver") {
			t.Error("apiserver was started")
		}
	})
}

func TestFailedCriticalComponentStopsTheGroupAndIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r record
		cause := errors.New("port 6443 is taken")
		g := newGroup(t,
			Spec{Component: r.steady("store", 0)},
			Spec{Component: Func("apiserver", []string{"store"}, func(context.Context, chan<- struct{}) error { return cause })},
			Spec{Component: r.steady("scheduler", 0, "apiserver")},
		)
		err := g.Run(t.Context())
		if !errors.Is(err, cause) || err.Error() != "component apiserver failed: port 6443 is taken" {
			t.Errorf("Run: %v", err)
		}
		if s := statusOf(t, g, "apiserver"); s.State != StateFailed || s.LastError != cause.Error() {
			t.Errorf("apiserver: %+v", s)
		}
		if s := statusOf(t, g, "scheduler"); s.State != StateStopped || !s.StartedAt.IsZero() {
			t.Errorf("scheduler: %+v", s)
		}
		if statusOf(t, g, "store").State != StateStopped {
			t.Error("store was not stopped")
		}
	})
}

func TestReturningEarlyPanickingAndGoexitAreFailures(t *testing.T) {
	for want, end := range map[string]func(){
		"component c failed: returned although it was not asked to stop": func() {},
		"component c failed: panic: boom":                                func() { panic("boom") },
		"component c failed: ended its goroutine without returning":      runtime.Goexit,
	} {
		g := newGroup(t, Spec{Component: Func("c", nil, func(context.Context, chan<- struct{}) error {
			end()
			return nil
		})})
		if err := g.Run(t.Context()); err == nil || err.Error() != want {
			t.Errorf("Run: %v, want %s", err, want)
		}
	}
}

func TestPanicTellsItsStack(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	g, err := NewGroup(log, Spec{Component: Func("c", nil, func(context.Context, chan<- struct{}) error { panic("boom") })})
	if err != nil {
		t.Fatal(err)
	}
	_ = g.Run(t.Context())
	if !strings.Contains(out.String(), "level=ERROR") || !strings.Contains(out.String(), "TestPanicTellsItsStack") {
		t.Errorf("log: %s", out.String())
	}
}

func TestRetriedComponentComesBackWithGrowingPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var calls []time.Duration
		g := newGroup(t, Spec{Class: Retried, Component: Func("flaky", nil, func(ctx context.Context, ready chan<- struct{}) error {
			calls = append(calls, time.Since(began))
			if len(calls) <= 10 {
				return fmt.Errorf("failure %d", len(calls))
			}
			close(ready)
			<-ctx.Done()
			return nil
		})})
		stop := run(t, g)
		<-g.AllReady()
		for i := 1; i < len(calls); i++ {
			want := min(100*time.Millisecond<<(i-1), 10*time.Second)
			if got := calls[i] - calls[i-1]; got != want {
				t.Errorf("pause %d is %v, want %v", i, got, want)
			}
		}
		s := statusOf(t, g, "flaky")
		if s.State != StateReady || s.Restarts != 10 || s.LastError != "failure 10" {
			t.Errorf("status: %+v", s)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestPausesAreShortAgainAfterASteadyTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		var failed, back time.Time
		again := make(chan struct{})
		g := newGroup(t, Spec{Class: Retried, Component: Func("flaky", nil, func(ctx context.Context, ready chan<- struct{}) error {
			switch calls++; calls {
			case 1, 2, 3, 4, 5:
				return errors.New("not yet")
			case 6:
				close(ready)
				time.Sleep(steadyAfter)
				failed = time.Now()
				return errors.New("broken again")
			}
			back = time.Now()
			close(again)
			<-ctx.Done()
			return nil
		})})
		stop := run(t, g)
		<-again
		if got := back.Sub(failed); got != firstPause {
			t.Errorf("pause after a steady time is %v, want %v", got, firstPause)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestFailureOfARetriedComponentLeavesTheOthersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r record
		broken := make(chan struct{})
		g := newGroup(t,
			Spec{Class: Retried, Component: Func("apiserver", nil, func(ctx context.Context, ready chan<- struct{}) error {
				select {
				case <-broken:
					return errors.New("store is damaged")
				default:
				}
				close(ready)
				<-broken
				return errors.New("store is damaged")
			})},
			Spec{Component: r.steady("kubelet", 0, "apiserver")},
		)
		stop := run(t, g)
		<-g.AllReady()
		close(broken)
		synctest.Wait()
		if s := statusOf(t, g, "apiserver"); s.State != StateRetrying || s.LastError != "store is damaged" {
			t.Errorf("apiserver: %+v", s)
		}
		if s := statusOf(t, g, "kubelet"); s.State != StateReady || s.Restarts != 0 {
			t.Errorf("kubelet: %+v", s)
		}
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestComponentFailsWhenItIsMadeTo(t *testing.T) {
	for class, want := range map[Class]State{Retried: StateReady, Optional: StateFailed, Critical: StateFailed} {
		synctest.Test(t, func(t *testing.T) {
			r := &record{}
			g := newGroup(t, Spec{Component: r.steady("c", time.Second), Class: class}, Spec{Component: r.steady("other", 0), Class: Retried})
			stop := run(t, g)
			if err := g.Fail("c"); err == nil {
				t.Error("one that was not ready has failed")
			}
			if err := g.Fail("nobody"); err == nil {
				t.Error("one that there is not has failed")
			}
			<-g.Ready("c")
			synctest.Wait()
			if err := g.Fail("c"); err != nil {
				t.Error(err)
			}
			time.Sleep(2 * time.Second)
			if s := statusOf(t, g, "c"); s.State != want || s.LastError != ErrInjected.Error() {
				t.Errorf("a component that is %v is %s after %q", class, s.State, s.LastError)
			}
			if s := statusOf(t, g, "other"); class != Critical && (s.State != StateReady || s.Restarts != 0) {
				t.Errorf("another is %s", s.State)
			}
			if err := stop(); errors.Is(err, ErrInjected) != (class == Critical) {
				t.Errorf("a group with a component that is %v ended with %v", class, err)
			}
		})
	}
}

func TestRepeatedErrorIsWarnedOfOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		g, err := NewGroup(slog.New(slog.NewTextHandler(&out, nil)), Spec{Class: Retried, Component: Func("c", nil,
			func(context.Context, chan<- struct{}) error { return errors.New("no route") })})
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, g)
		time.Sleep(time.Minute)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if n := strings.Count(out.String(), "no route"); n != 1 {
			t.Errorf("%d lines:\n%s", n, out.String())
		}
	})
}

func TestFailedOptionalComponentDoesNotHoldUpReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r record
		g := newGroup(t,
			Spec{Class: Optional, Component: Func("metrics", nil, func(context.Context, chan<- struct{}) error { return errors.New("no") })},
			Spec{Component: r.steady("store", time.Second)},
		)
		stop := run(t, g)
		<-g.Ready("store")
		<-g.AllReady()
		if s := statusOf(t, g, "metrics"); s.State != StateFailed {
			t.Errorf("metrics: %+v", s)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestChangedTellsTheNextChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r record
		g := newGroup(t, Spec{Component: r.steady("store", time.Second)})
		stop := run(t, g)
		for {
			changed := g.Changed()
			if statusOf(t, g, "store").State == StateReady {
				break
			}
			<-changed
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestGraphErrorsNameTheComponents(t *testing.T) {
	part := func(name string, needs ...string) Spec { return Spec{Component: Func(name, needs, nil)} }
	after := func(s Spec, others ...string) Spec {
		s.StopsAfter = others
		return s
	}
	for want, specs := range map[string][]Spec{
		"component api stops after tls, which is not in the group": {after(part("api"), "tls")},
		"components need each other in a circle: a → b → a":        {after(part("a", "b"), "b"), part("b")},
		"two components are named dns":                             {part("dns"), part("dns")},
		"component dns needs apiserver, which is not in the group": {part("dns", "apiserver")},
		"components need each other in a circle: b → c → d → b":    {part("a", "b"), part("b", "c"), part("c", "d"), part("d", "b")},
		"components need each other in a circle: a → a":            {part("a", "a")},
		"component 2 of the group has no name":                     {part("a"), {}},
	} {
		if _, err := NewGroup(slog.New(slog.DiscardHandler), specs...); err == nil || err.Error() != want {
			t.Errorf("NewGroup: %v, want %s", err, want)
		}
	}
}

func TestGroupRunsOnce(t *testing.T) {
	g := newGroup(t)
	<-g.AllReady()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Run(ctx); err != nil {
		t.Error(err)
	}
	if err := g.Run(ctx); err == nil {
		t.Error("second Run gave no error")
	}
	if g.Ready("nobody") != nil {
		t.Error("Ready of an unknown name is not nil")
	}
}

func TestStatusSurvivesJSON(t *testing.T) {
	want := Status{
		Name: "dns", Class: Optional, State: StateReady, Since: time.Unix(1e9, 0).UTC(),
		ReadyAfter: Duration{1250 * time.Millisecond}, Restarts: 2,
	}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), `"class":"optional"`) || !strings.Contains(string(text), `"readyAfter":"1.25s"`) {
		t.Errorf("%s", text)
	}
	var got Status
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}
