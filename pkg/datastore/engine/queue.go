package engine

import (
	"sync"

	"github.com/k3s-io/kine/pkg/server"
)

// A change is one of these.
const (
	create = iota
	update
	remove
	compact
)

// change is what one client wants to have written.
type change struct {
	kind   int
	key    string
	value  []byte
	was    int64 // the revision that the key is to have
	lease  int64
	answer chan result // has room for one
}

// result answers a change.
type result struct {
	rev  int64
	done bool
	kv   *server.KeyValue
	at   item // what was deleted, or what the client was wrong about
	err  error
}

func (c *change) size() int { return len(c.key) + len(c.value) + 64 }

// queue is what waits for the writer.
type queue struct {
	mu      sync.Mutex
	waiting []*change
	bytes   int
	closed  bool
	filled  chan struct{} // full if something may wait
}

func newQueue() queue { return queue{filled: make(chan struct{}, 1)} }

// put fails when more than limit bytes wait already.
func (q *queue) put(c *change, limit int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return ErrClosed
	case q.bytes+c.size() > limit:
		return ErrBusy
	}
	q.waiting = append(q.waiting, c)
	q.bytes += c.size()
	select {
	case q.filled <- struct{}{}:
	default:
	}
	return nil
}

// take returns what waits, oldest first, up to about so many bytes.
func (q *queue) take(bytes int) []*change {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, sum := 0, 0
	for n < len(q.waiting) && sum < bytes {
		sum += q.waiting[n].size()
		n++
	}
	taken := q.waiting[:n:n]
	q.waiting, q.bytes = q.waiting[n:], q.bytes-sum
	if len(q.waiting) > 0 {
		select {
		case q.filled <- struct{}{}:
		default:
		}
	}
	return taken
}

// close answers what waits, and all that comes.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, c := range q.waiting {
		c.answer <- result{err: ErrClosed}
	}
	q.waiting = nil
}
