package backup

import (
	"log/slog"
	"sync"
	"testing"
	"time"
)

// clock stands still until somebody moves it.
type clock struct {
	mu    sync.Mutex
	at    time.Time
	asked chan time.Duration
	alarm chan time.Time
	wait  time.Duration
}

func newClock() *clock {
	return &clock{at: time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC), asked: make(chan time.Duration, 1), alarm: make(chan time.Time)}
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// after is time.After.
func (c *clock) after(d time.Duration) <-chan time.Time {
	c.asked <- d
	return c.alarm
}

// waits returns for how long the schedule waits, once it does.
func (c *clock) waits(t *testing.T) time.Duration {
	t.Helper()
	c.wait = <-c.asked
	return c.wait
}

// wake lets that time pass.
func (c *clock) wake() {
	c.add(c.wait)
	c.alarm <- c.now()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
