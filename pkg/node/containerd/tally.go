package containerd

import (
	"sync"

	"github.com/containerd/containerd/v2/core/transfer"
)

// tally adds up how far the parts of an image have come.
type tally struct {
	tell func(done, total int64)

	mu    sync.Mutex
	parts map[string]progress
}

type progress struct{ done, total int64 }

// option has a transfer's progress told to the tally beside whoever hears it.
func (t *tally) option(c *transfer.Config) {
	next := c.Progress
	if next == nil {
		return // then containerd keeps no account
	}
	c.Progress = func(p transfer.Progress) {
		next(p)
		t.note(p)
	}
}

func (t *tally) note(p transfer.Progress) {
	if p.Desc == nil || p.Total <= 0 {
		return // a step, not a part
	}
	t.mu.Lock()
	now := progress{p.Progress, p.Total}
	if p.Event == "extracting" || p.Event == "extracted" {
		now.done = p.Total // it has come
	}
	t.parts[p.Name] = now
	var sum progress
	for _, part := range t.parts {
		sum.done += part.done
		sum.total += part.total
	}
	t.mu.Unlock()
	t.tell(sum.done, sum.total)
}
