package engine

import (
	"container/heap"
	"slices"
	"sync"
	"time"
)

// leases are the keys that end by themselves. kine's API makes a lease's number
// its seconds, so that each key has its own; they begin anew when the store is
// opened, as etcd's do with a new leader.
type leases struct {
	mu   sync.Mutex
	heap expiries
	due  chan struct{} // full if the first one may have changed
}

type expiry struct {
	at  time.Time
	ttl time.Duration
	key string
	rev int64
}

// late is when an expiry is waited for no longer. A lease lasts at least as long
// as it was asked for; that it may last a little longer lets many end in one
// write, as events do that were made in one minute.
func (x expiry) late() time.Time { return x.at.Add(min(x.ttl/20, time.Minute)) }

type expiries []expiry

func (h expiries) Len() int           { return len(h) }
func (h expiries) Less(i, j int) bool { return h[i].late().Before(h[j].late()) }
func (h expiries) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *expiries) Push(x any)        { *h = append(*h, x.(expiry)) }
func (h *expiries) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}

func (l *leases) add(it item) {
	if it.lease <= 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	ttl := time.Duration(it.lease) * time.Second
	heap.Push(&l.heap, expiry{time.Now().Add(ttl), ttl, it.key, it.rev})
	if l.heap[0].rev == it.rev {
		select {
		case l.due <- struct{}{}:
		default:
		}
	}
}

// next takes those that are over once one of them is late, and tells when the
// next one will be.
func (l *leases) next(now time.Time) (over []expiry, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.heap) > 0 && !l.heap[0].late().After(now) {
		// In the order of being late, those that are over may have others between.
		l.heap = slices.DeleteFunc(l.heap, func(x expiry) bool {
			if x.at.After(now) {
				return false
			}
			over = append(over, x)
			return true
		})
		heap.Init(&l.heap)
	}
	if len(l.heap) == 0 {
		return over, time.Hour
	}
	return over, l.heap[0].late().Sub(now)
}

// expire deletes keys whose lease is over, unless they were changed since, with
// as few waits for the disk as can be.
func (e *Engine) expire() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-e.lease.due:
		case <-timer.C:
		}
		over, wait := e.lease.next(time.Now())
		for _, x := range e.deleteAll(over) {
			// Not written now: once more in a while.
			e.lease.add(item{key: x.key, rev: x.rev, lease: 10})
		}
		timer.Reset(wait)
	}
}

// deleteAll returns those that could not be deleted.
func (e *Engine) deleteAll(over []expiry) (left []expiry) {
	answers := make([]chan result, len(over))
	for i, x := range over {
		c := &change{kind: remove, key: x.key, was: x.rev, answer: make(chan result, 1)}
		if err := e.queue.put(c, e.cfg.QueueBytes); err == nil {
			answers[i] = c.answer
		}
	}
	for i, answer := range answers {
		if answer == nil {
			left = append(left, over[i])
		} else if r := <-answer; r.err != nil {
			left = append(left, over[i])
		}
	}
	return left
}
