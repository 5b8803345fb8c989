package component

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestComponentStopsAfterThoseThatRelyOnItWithoutWaitingForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &record{}
		g := newGroup(t,
			Spec{Component: r.steady("server", time.Second), StopsAfter: []string{"answering"}},
			Spec{Component: r.steady("answering", 0)},
			Spec{Component: r.steady("client", 0, "answering")},
			Spec{Component: r.steady("last", 0, "answering"), Last: true},
		)
		stop := run(t, g)
		<-g.Ready("client")
		synctest.Wait() // the server may not have been scheduled yet
		if s := statusOf(t, g, "server"); s.State != StateStarting {
			t.Errorf("the client waited for the server, which is %s", s.State)
		}
		<-g.AllReady()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		order := []string{"stop client", "stop last", "stop answering", "stop server"}
		for i := 1; i < len(order); i++ {
			if r.index(t, order[i-1]) > r.index(t, order[i]) {
				t.Errorf("%q came after %q: %q", order[i-1], order[i], r.events)
			}
		}
	})
}

func TestStopLetsAStartEndWhereItMust(t *testing.T) {
	for name, c := range map[string]struct {
		delay, want time.Duration
		finish      bool
	}{
		"it may be disturbed":          {delay: 2 * time.Second, want: time.Second},
		"it ends its start":            {delay: 2 * time.Second, finish: true, want: 2 * time.Second},
		"its start takes far too long": {delay: time.Hour, finish: true, want: 6 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := &record{}
			g := newGroup(t, Spec{Component: r.steady("apiserver", c.delay), FinishStart: c.finish, StopTimeout: 10 * time.Second})
			start := time.Now()
			stop := run(t, g)
			time.Sleep(time.Second)
			if err := stop(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(start); took != c.want {
				t.Errorf("%s: stopped after %v, want %v", name, took, c.want)
			}
		})
	}
}

func TestWhatAStartTakesIsNotMissingForTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, Spec{Component: Func("apiserver", nil, func(ctx context.Context, _ chan<- struct{}) error {
			<-ctx.Done()
			time.Sleep(8 * time.Second)
			return nil
		}), FinishStart: true, StopTimeout: 10 * time.Second})
		stop := run(t, g)
		time.Sleep(time.Second)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestOnlyAComponentAtWorkIsBlamedForItsEnd(t *testing.T) {
	for _, ready := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			g, err := NewGroup(slog.New(slog.NewTextHandler(&out, nil)), Spec{Component: Func("dns", nil, func(ctx context.Context, started chan<- struct{}) error {
				if ready {
					close(started)
				}
				<-ctx.Done()
				return errors.New("interrupted")
			})})
			if err != nil {
				t.Fatal(err)
			}
			stop := run(t, g)
			time.Sleep(time.Second)
			if err := stop(); err != nil {
				t.Error(err)
			}
			if warned := strings.Contains(out.String(), "interrupted"); warned != ready {
				t.Errorf("ready is %t, warned of its end is %t: %s", ready, warned, out.String())
			}
		})
	}
}

func TestStopGoesOnPastAComponentThatDoesNotReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r record
		release := make(chan struct{})
		stuck := Func("stuck", []string{"store"}, func(_ context.Context, ready chan<- struct{}) error {
			close(ready)
			<-release
			return nil
		})
		g := newGroup(t,
			Spec{Component: r.steady("store", 0)},
			Spec{Component: stuck, StopTimeout: 3 * time.Second},
		)
		stop := run(t, g)
		<-g.AllReady()
		asked := time.Now()
		err := stop()
		if err == nil || !strings.Contains(err.Error(), "component stuck did not stop within 3s") {
			t.Errorf("Run: %v", err)
		}
		if took := time.Since(asked); took != 3*time.Second {
			t.Errorf("stop took %v", took)
		}
		r.index(t, "stop store")
		close(release)
	})
}

func TestComponentLeftInBackoffIsNotStartedDuringStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		g := newGroup(t,
			Spec{Class: Retried, Component: Func("flaky", nil, func(context.Context, chan<- struct{}) error {
				calls++
				return errors.New("no")
			})},
			Spec{Component: Func("slow", nil, func(ctx context.Context, ready chan<- struct{}) error {
				close(ready)
				<-ctx.Done()
				time.Sleep(5 * time.Second)
				return nil
			})},
		)
		stop := run(t, g)
		synctest.Wait()
		if err := stop(); err != nil || calls != 1 {
			t.Errorf("Run: %v after %d calls", err, calls)
		}
		if s := statusOf(t, g, "flaky"); s.State != StateStopped || s.LastError != "no" {
			t.Errorf("flaky: %+v", s)
		}
	})
}

func TestLastComponentWorksUntilAllOthersHaveStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &record{}
		last := Spec{Component: r.steady("last", 0, "ground"), Last: true}
		g := newGroup(t, Spec{Component: r.steady("ground", 0)}, last, Spec{Component: r.steady("other", 0, "ground")}, Spec{Component: r.steady("lone", 0)})
		stop := run(t, g)
		<-g.AllReady()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"other", "lone"} {
			if r.index(t, "stop "+name) > r.index(t, "stop last") {
				t.Errorf("%s stopped after the last: %q", name, r.events)
			}
		}
		if r.index(t, "stop last") > r.index(t, "stop ground") {
			t.Errorf("what the last one needs stopped before it: %q", r.events)
		}
	})
}
