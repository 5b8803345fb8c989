// Package record keeps what was asked of a store, what it answered and what its
// watches told, and finds what cannot have happened: an acknowledged write that
// is gone, a change nobody asked for, an event that is missing, told twice or
// out of order.
//
// Each operation has a value of its own, so that every event belongs to one
// operation, and no two operations are under way on one key at a time.
package record

import (
	"slices"
	"sync"
)

// Kind is what an operation does to its key.
type Kind string

// The kinds of operations.
const (
	Create Kind = "create"
	Update Kind = "update"
	Delete Kind = "delete"
)

// Op is one operation. That of a deletion has the value that it deletes.
type Op struct {
	Kind       Kind
	Key, Value string

	outcome      outcome
	rev          int64 // 0: not told
	began, ended int64 // by History's own clock
}

type outcome int

const (
	// unknown: no answer came, or one that leaves it open.
	unknown outcome = iota
	acknowledged
	refused
)

// Event is what a watch tells, or the last change of a key in a list.
type Event struct {
	Rev        int64
	Delete     bool
	Key, Value string // of a deletion: the value before
}

// segment is what a watch told without a break, after revision from.
type segment struct {
	watch  string
	from   int64
	events []Event
}

// History is the record. Its methods may be called by any goroutine.
type History struct {
	mu       sync.Mutex
	clock    int64
	ops      []*Op
	segments []*segment
	open     map[string]*segment
	told     chan struct{} // closed and replaced at each event, and when a watch begins
	final    []Event
	finalRev int64
}

// New is an empty record.
func New() *History {
	return &History{open: map[string]*segment{}, told: make(chan struct{})}
}

// Begin records that an operation is about to be asked for.
func (h *History) Begin(kind Kind, key, value string) *Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	o := &Op{Kind: kind, Key: key, Value: value, began: h.clock}
	h.ops = append(h.ops, o)
	return o
}

// Acknowledge records that the operation was said to be done, at a revision or,
// where none was told, 0.
func (h *History) Acknowledge(o *Op, rev int64) { h.end(o, acknowledged, rev) }

// Refuse records an answer after which the operation must never take effect. An
// operation that is neither acknowledged nor refused may have.
func (h *History) Refuse(o *Op) { h.end(o, refused, 0) }

func (h *History) end(o *Op, as outcome, rev int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	o.outcome, o.rev, o.ended = as, rev, h.clock
}

// Watching records that a watch tells what happens after a revision. It may
// break off and go on; only when it starts anew is this called again.
func (h *History) Watching(watch string, from int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &segment{watch: watch, from: from}
	h.open[watch] = s
	h.segments = append(h.segments, s)
	h.tell()
}

// tell is called with the lock held.
func (h *History) tell() {
	close(h.told)
	h.told = make(chan struct{})
}

// Saw records an event of a watch.
func (h *History) Saw(watch string, e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.open[watch]
	s.events = append(s.events, e)
	h.tell()
}

// Seen is the revision from which a watch has to go on, and false if it has
// never begun.
func (h *History) Seen(watch string) (int64, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.open[watch]
	if s == nil {
		return 0, false
	}
	return s.last(), true
}

func (s *segment) last() int64 {
	if len(s.events) == 0 {
		return s.from
	}
	return s.events[len(s.events)-1].Rev
}

// Behind tells which watches have not come to a revision, and is closed when
// there is something new to look at.
func (h *History) Behind(rev int64) (watches []string, more <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, s := range h.open {
		if s.last() < rev {
			watches = append(watches, name)
		}
	}
	slices.Sort(watches)
	return watches, h.told
}

// Final records all keys at the end, each with its last change, and the
// revision of the list.
func (h *History) Final(entries []Event, rev int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.final, h.finalRev = entries, rev
}

// Counts tells how much there is to check: acknowledged operations, those with
// unknown outcome, and events of all watches.
func (h *History) Counts() (acked, open, events int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.ops {
		switch o.outcome {
		case acknowledged:
			acked++
		case unknown:
			open++
		}
	}
	for _, s := range h.segments {
		events += len(s.events)
	}
	return acked, open, events
}
