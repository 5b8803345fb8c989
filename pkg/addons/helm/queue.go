package helm

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// key names a HelmChart of one of the groups.
type key struct {
	group string
	types.NamespacedName
}

// queue runs what is due, each name once at a time. Unlike client-go's it does
// not wake up while nothing is.
type queue struct {
	limit int // of those that run at a time
	do    func(context.Context, key) (again time.Duration)
	wake  chan struct{} // holds a word when due or running has changed

	mu      sync.Mutex
	due     map[key]time.Time
	running map[key]bool
}

// newQueue returns one that works once run is called. do returns when the name is
// due again, or 0 for never.
func newQueue(limit int, do func(context.Context, key) time.Duration) *queue {
	return &queue{
		limit: limit, do: do, wake: make(chan struct{}, 1),
		due: map[key]time.Time{}, running: map[key]bool{},
	}
}

// add has a name done by then at the latest.
func (q *queue) add(name key, after time.Duration) {
	q.mu.Lock()
	at := time.Now().Add(after)
	if before, ok := q.due[name]; !ok || at.Before(before) {
		q.due[name] = at
	}
	q.mu.Unlock()
	q.stir()
}

func (q *queue) stir() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// run works until ctx ends, and waits for what runs.
func (q *queue) run(ctx context.Context) {
	var workers sync.WaitGroup
	defer workers.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		name, wait := q.take()
		if name != nil {
			workers.Go(func() {
				again := q.do(ctx, *name)
				q.mu.Lock()
				delete(q.running, *name)
				q.mu.Unlock()
				if again > 0 {
					q.add(*name, again)
				}
				q.stir()
			})
			continue
		}
		timer.Stop()
		if wait > 0 {
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		case <-timer.C:
		}
	}
}

// take marks a name that is due as running. Without one, it returns how long to
// wait; 0 is until something changes.
func (q *queue) take() (*key, time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.running) >= q.limit {
		return nil, 0
	}
	var next time.Duration
	for name, at := range q.due {
		if q.running[name] {
			continue
		}
		wait := time.Until(at)
		if wait <= 0 {
			delete(q.due, name)
			q.running[name] = true
			return &name, 0
		}
		if next == 0 || wait < next {
			next = wait
		}
	}
	return nil, next
}
