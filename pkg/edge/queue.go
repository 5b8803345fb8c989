package edge

import "sync"

// maxQueued is how many bytes may wait for the worker. Beyond them, clients read
// as slowly as the worker does.
const maxQueued = 8 << 20

// job is one thing for the worker to do; size is what it holds in memory.
type job struct {
	size int
	do   func() urgency
}

// queue holds jobs in their order.
type queue struct {
	mu     sync.Mutex
	space  *sync.Cond
	jobs   []job
	size   int
	closed bool
	wake   chan struct{}
}

func newQueue() *queue {
	q := &queue{wake: make(chan struct{}, 1)}
	q.space = sync.NewCond(&q.mu)
	return q
}

// push returns false if the queue is closed.
func (q *queue) push(j job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.size > maxQueued && !q.closed {
		q.space.Wait()
	}
	if q.closed {
		return false
	}
	q.jobs = append(q.jobs, j)
	q.size += j.size
	q.signal()
	return true
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// pop returns false if there is nothing to do; over then tells whether there
// never will be.
func (q *queue) pop() (j job, ok, over bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.jobs) == 0 {
		return job{}, false, q.closed
	}
	j, q.jobs[0] = q.jobs[0], job{}
	if q.jobs = q.jobs[1:]; len(q.jobs) == 0 {
		q.jobs = nil
	}
	q.size -= j.size
	q.space.Broadcast()
	return j, true, false
}

// close lets no more in; what is in is still done.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.space.Broadcast()
	q.signal()
}
