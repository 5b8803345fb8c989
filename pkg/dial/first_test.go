package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// way is an attempt that ends after a time, in an error or a connection.
type way struct {
	takes time.Duration
	err   error
}

// attempts makes them and counts the begun ones.
func attempts(ways []way, begun *atomic.Int32) []Attempt {
	var all []Attempt
	for _, w := range ways {
		all = append(all, func(ctx context.Context) (net.Conn, error) {
			begun.Add(1)
			select {
			case <-time.After(w.takes):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			if w.err != nil {
				return nil, w.err
			}
			c, _ := net.Pipe()
			return c, nil
		})
	}
	return all
}

func TestFirstTakesWhatConnectsFirst(t *testing.T) {
	refused := errors.New("refused")
	const pause = 300 * time.Millisecond
	for name, c := range map[string]struct {
		ways  []way
		want  int
		after time.Duration
		begun int32
	}{
		"the first is quick":                        {[]way{{10 * time.Millisecond, nil}, {0, nil}}, 0, 10 * time.Millisecond, 1},
		"the next begins at once when one failed":   {[]way{{10 * time.Millisecond, refused}, {5 * time.Millisecond, nil}}, 1, 15 * time.Millisecond, 2},
		"the next begins after the pause":           {[]way{{time.Hour, nil}, {10 * time.Millisecond, nil}, {0, nil}}, 1, pause + 10*time.Millisecond, 2},
		"the slow first may still win":              {[]way{{pause + 5*time.Millisecond, nil}, {time.Second, nil}}, 0, pause + 5*time.Millisecond, 2},
		"the third begins a pause after the second": {[]way{{time.Hour, nil}, {time.Hour, nil}, {0, nil}}, 2, 2 * pause, 3},
		"all have begun and one is waited for":      {[]way{{0, refused}, {time.Hour, nil}}, 1, time.Hour, 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			var begun atomic.Int32
			start := time.Now()
			conn, i, err := First(t.Context(), pause, attempts(c.ways, &begun)...)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			conn.Close()
			if took := time.Since(start); i != c.want || took != c.after || begun.Load() != c.begun {
				t.Errorf("%s: attempt %d won after %s with %d begun, want %d after %s with %d", name, i, took, begun.Load(), c.want, c.after, c.begun)
			}
		})
	}
}

func TestFirstClosesWhatTheOthersConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		stubborn := func(context.Context) (net.Conn, error) {
			time.Sleep(time.Second) // does not look at its context
			return ours, nil
		}
		var begun atomic.Int32
		conn, i, err := First(t.Context(), time.Millisecond, stubborn, attempts([]way{{0, nil}}, &begun)[0])
		if err != nil || i != 1 {
			t.Fatalf("attempt %d, %v", i, err)
		}
		defer conn.Close()
		if _, err := theirs.Read(make([]byte, 1)); err == nil {
			t.Error("the loser's connection sends data")
		}
	})
}

func TestFirstTellsEveryError(t *testing.T) {
	a, b := errors.New("no route"), errors.New("refused")
	var begun atomic.Int32
	_, i, err := First(t.Context(), time.Hour, attempts([]way{{0, a}, {0, b}}, &begun)...)
	if i != -1 || !errors.Is(err, a) || !errors.Is(err, b) || err.Error() != "no route; refused" {
		t.Errorf("attempt %d: %v", i, err)
	}
	if _, _, err := First(t.Context(), time.Hour); err == nil {
		t.Error("nothing to dial is no error")
	}
}

func TestFirstEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := errors.New("refused")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var begun atomic.Int32
		start := time.Now()
		_, _, err := First(ctx, time.Hour, attempts([]way{{0, refused}, {time.Hour, nil}}, &begun)...)
		if took := time.Since(start); took != time.Second {
			t.Errorf("it took %s", took)
		}
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, refused) {
			t.Errorf("the error is %v", err)
		}
	})
}

func ExampleErrors() {
	fmt.Println(Errors{errors.New("directly: refused"), errors.New("through the tunnel: no route")})
	// Output: directly: refused; through the tunnel: no route
}
