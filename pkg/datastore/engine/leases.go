package engine

import (
	"container/heap"
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
	key string
	rev int64
}

type expiries []expiry

func (h expiries) Len() int           { return len(h) }
func (h expiries) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
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
	heap.Push(&l.heap, expiry{time.Now().Add(time.Duration(it.lease) * time.Second), it.key, it.rev})
	if l.heap[0].rev == it.rev {
		select {
		case l.due <- struct{}{}:
		default:
		}
	}
}

// next takes those that are over, and tells when the next one will be.
func (l *leases) next(now time.Time) (over []expiry, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.heap) > 0 && !l.heap[0].at.After(now) {
		over = append(over, heap.Pop(&l.heap).(expiry))
	}
	if len(l.heap) == 0 {
		return over, time.Hour
	}
	return over, l.heap[0].at.Sub(now)
}

// expire deletes keys whose lease is over, unless they were changed since.
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
		for _, x := range over {
			if _, _, _, err := e.Delete(e.ctx, x.key, x.rev); err != nil && e.ctx.Err() == nil {
				// Not written now: once more in a while.
				e.lease.add(item{key: x.key, rev: x.rev, lease: 10})
			}
		}
		timer.Reset(wait)
	}
}
