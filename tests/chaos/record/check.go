package record

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
)

// mostProblems bounds what Check tells: one fault can make thousands.
const mostProblems = 20

// Check tells what cannot have happened in a store that keeps its promises.
// Every watch must have come to the last revision before, and Final been called.
func (h *History) Check() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &check{History: h, events: map[int64]Event{}}
	c.watches()
	c.operations()
	c.order()
	c.state()
	return c.problems
}

type check struct {
	*History
	events   map[int64]Event // all that watches told
	revs     []int64         // of events, sorted
	known    []span          // revisions of which every event is known
	done     []placed        // operations that took effect
	problems []string
}

// span is the revisions after from, up to and with to.
type span struct{ from, to int64 }

// placed is an operation and the revision at which it took effect.
type placed struct {
	*Op
	at int64
}

func (c *check) fail(format string, args ...any) {
	if len(c.problems) < mostProblems {
		c.problems = append(c.problems, fmt.Sprintf(format, args...))
	}
}

// watches puts together what they told, and looks for differences.
func (c *check) watches() {
	for _, s := range c.segments {
		last := s.from
		for _, e := range s.events {
			if e.Rev <= last {
				c.fail("watch %s tells revision %d of %s after %d: doubled or out of order", s.watch, e.Rev, e.Key, last)
			}
			last = max(last, e.Rev)
			if other, ok := c.events[e.Rev]; ok && other != e {
				c.fail("watch %s tells %+v, another %+v", s.watch, e, other)
			}
			c.events[e.Rev] = e
		}
		// One that was told nothing may be the last, from which on all is known.
		c.known = append(c.known, span{s.from, last})
	}
	c.revs = slices.Sorted(maps.Keys(c.events))
	for _, s := range c.segments {
		told := make(map[int64]bool, len(s.events))
		for _, e := range s.events {
			told[e.Rev] = true
		}
		first, _ := slices.BinarySearch(c.revs, s.from+1)
		for _, rev := range c.revs[first:] {
			if rev > s.last() {
				break
			}
			if !told[rev] {
				c.fail("watch %s, from %d to %d, lost %+v", s.watch, s.from, s.last(), c.events[rev])
			}
		}
	}
	slices.SortFunc(c.known, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	c.known = merged(c.known)
	if n := len(c.known); n > 0 {
		// All watches have come to the last operation: what follows is not ours.
		c.known[n-1].to = math.MaxInt64
	}
}

// merged joins spans that touch; they are sorted by where they begin.
func merged(spans []span) []span {
	var out []span
	for _, s := range spans {
		if n := len(out); n > 0 && s.from <= out[n-1].to {
			out[n-1].to = max(out[n-1].to, s.to)
			continue
		}
		out = append(out, s)
	}
	return out
}

// isKnown tells whether an event at that revision would have been told.
func (c *check) isKnown(rev int64) bool {
	return slices.ContainsFunc(c.known, func(s span) bool { return s.from < rev && rev <= s.to })
}

// isWhole tells whether all revisions between two are known.
func (c *check) isWhole(after, to int64) bool {
	return after >= to || slices.ContainsFunc(c.known, func(s span) bool { return s.from <= after && to <= s.to })
}

type identity struct {
	delete     bool
	key, value string
}

// operations compares what was asked for with what took effect.
func (c *check) operations() {
	ops := make(map[identity]*Op, len(c.ops))
	for _, o := range c.ops {
		// A deletion without an answer may be asked for again, and refused
		// because it had happened: the event is the first one's then.
		id := identity{o.Kind == Delete, o.Key, o.Value}
		if other := ops[id]; other == nil || other.outcome == refused || o.outcome == acknowledged {
			ops[id] = o
		}
	}
	at := make(map[*Op]int64, len(c.events))
	for _, rev := range c.revs {
		e := c.events[rev]
		o := ops[identity{e.Delete, e.Key, e.Value}]
		switch {
		case o == nil:
			c.fail("phantom: nobody asked for %+v", e)
			continue
		case o.outcome == refused:
			c.fail("refused, and yet it happened: %+v", e)
		case at[o] != 0:
			c.fail("happened twice, at revision %d and %d: %+v", at[o], rev, e)
		case o.outcome == acknowledged && o.rev != 0 && o.rev != rev:
			c.fail("acknowledged at revision %d, and told at %d: %+v", o.rev, rev, e)
		}
		at[o] = rev
		c.done = append(c.done, placed{o, rev})
	}
	for _, o := range c.ops {
		if o.outcome != acknowledged || at[o] != 0 {
			continue
		}
		// Without its revision it can only be missed where nothing is unknown.
		if c.isKnown(o.rev) || o.rev == 0 && len(c.known) == 1 {
			c.fail("lost: %s of %s to %s, acknowledged at revision %d", o.Kind, o.Key, o.Value, o.rev)
		}
	}
}

// order finds operations that took effect before others which had been
// acknowledged when they began.
func (c *check) order() {
	var latest placed
	for _, p := range c.done {
		if p.outcome == acknowledged && latest.Op != nil && p.ended < latest.began {
			c.fail("%s at revision %d was asked for after %s was acknowledged at %d", latest.Value, latest.at, p.Value, p.at)
		}
		if latest.Op == nil || p.began > latest.began {
			latest = p
		}
	}
}

// state compares the last list with what the events add up to.
func (c *check) state() {
	last := map[string]Event{}
	for _, rev := range c.revs {
		e := c.events[rev]
		last[e.Key] = e
	}
	there := map[string]Event{}
	for _, e := range c.final {
		there[e.Key] = e
		want, ok := last[e.Key]
		switch {
		case ok && (want.Rev > e.Rev || want.Rev == e.Rev && (want.Delete || want.Value != e.Value)):
			c.fail("the list has %+v, the last event was %+v", e, want)
		case (!ok || want.Rev < e.Rev) && c.isKnown(e.Rev):
			c.fail("the list has %+v, of which no watch told", e)
		}
	}
	for key, want := range last {
		if _, ok := there[key]; !ok && !want.Delete && c.isWhole(want.Rev, c.finalRev) {
			c.fail("lost from the list: %+v", want)
		}
	}
	for _, o := range c.ops {
		if o.outcome == acknowledged && o.rev > c.finalRev {
			c.fail("revision %d was acknowledged, the list is of %d", o.rev, c.finalRev)
		}
	}
}
