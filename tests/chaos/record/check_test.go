package record

import (
	"strings"
	"testing"
)

// good is a record without fault: three keys, two watches, one of which broke
// off and began anew.
func good() *History {
	h := New()
	h.Watching("a", 10)
	h.Watching("b", 10)
	tell := func(e Event) {
		h.Saw("a", e)
		if e.Rev != 13 {
			h.Saw("b", e)
		}
	}
	h.Acknowledge(h.Begin(Create, "x", "1"), 11)
	tell(Event{Rev: 11, Key: "x", Value: "1"})
	h.Begin(Update, "x", "2") // the server was killed: it may have happened
	tell(Event{Rev: 12, Key: "x", Value: "2"})
	h.Begin(Update, "x", "3") // and may not
	h.Refuse(h.Begin(Create, "x", "4"))
	h.Acknowledge(h.Begin(Create, "y", "5"), 13)
	tell(Event{Rev: 13, Key: "y", Value: "5"})
	h.Watching("b", 13)
	h.Acknowledge(h.Begin(Delete, "y", "5"), 0)
	tell(Event{Rev: 14, Key: "y", Value: "5", Delete: true})
	h.Acknowledge(h.Begin(Create, "z", "6"), 16)
	tell(Event{Rev: 16, Key: "z", Value: "6"})
	h.Final([]Event{{Rev: 12, Key: "x", Value: "2"}, {Rev: 16, Key: "z", Value: "6"}}, 16)
	return h
}

func TestAFaultlessHistoryPasses(t *testing.T) {
	if problems := good().Check(); len(problems) > 0 {
		t.Errorf("problems: %q", problems)
	}
}

func TestEachFaultIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		fault func(*History)
		want  string
	}{
		"a lost write": {func(h *History) { h.Acknowledge(h.Begin(Update, "z", "7"), 15) }, "lost: update of z"},
		"a lost deletion, whose revision was not told": {func(h *History) { h.Acknowledge(h.Begin(Delete, "z", "6"), 0) }, "lost: delete of z"},
		"a phantom":             {func(h *History) { h.Saw("a", Event{Rev: 17, Key: "z", Value: "nobody's"}) }, "phantom"},
		"a refused write":       {func(h *History) { h.Saw("a", Event{Rev: 17, Key: "x", Value: "4"}) }, "refused, and yet"},
		"a doubled event":       {func(h *History) { h.Saw("a", Event{Rev: 16, Key: "z", Value: "6"}) }, "doubled"},
		"an event out of order": {func(h *History) { h.Saw("a", Event{Rev: 12, Key: "x", Value: "2"}) }, "out of order"},
		"a write done twice":    {func(h *History) { h.Saw("a", Event{Rev: 17, Key: "z", Value: "6"}) }, "happened twice"},
		"watches that disagree": {func(h *History) { h.Watching("c", 15); h.Saw("c", Event{Rev: 16, Key: "z", Value: "other"}) }, "another"},
		"a watch that lost one": {func(h *History) { h.Watching("c", 10); h.Saw("c", Event{Rev: 12, Key: "x", Value: "2"}) }, "watch c, from 10 to 12, lost"},
		"another revision":      {func(h *History) { h.ops[0].rev = 12 }, "acknowledged at revision 12, and told at 11"},
		"writes that overtook":  {func(h *History) { h.ops[0].began, h.ops[0].ended = 90, 91; h.ops[len(h.ops)-1].ended = 80 }, "was asked for after"},
		"a key gone at the end": {func(h *History) { h.Final(h.final[:1], 16) }, "lost from the list"},
		"an old value at the end": {func(h *History) {
			h.Final([]Event{{Rev: 11, Key: "x", Value: "1"}, {Rev: 16, Key: "z", Value: "6"}}, 16)
		}, "the last event was"},
		"a revision that went back": {func(h *History) { h.Final(h.final, 15) }, "the list is of 15"},
	} {
		t.Run(name, func(t *testing.T) {
			h := good()
			c.fault(h)
			if problems := strings.Join(h.Check(), "\n"); !strings.Contains(problems, c.want) {
				t.Errorf("no %q in %q", c.want, problems)
			}
		})
	}
}

func TestADeletionThatIsAskedForAgainMayBeRefused(t *testing.T) {
	h := New()
	h.Watching("a", 10)
	h.Acknowledge(h.Begin(Create, "x", "1"), 11)
	h.Saw("a", Event{Rev: 11, Key: "x", Value: "1"})
	h.Begin(Delete, "x", "1") // no answer
	h.Saw("a", Event{Rev: 12, Key: "x", Value: "1", Delete: true})
	h.Refuse(h.Begin(Delete, "x", "1"))
	h.Final(nil, 12)
	if problems := h.Check(); len(problems) > 0 {
		t.Errorf("problems: %q", problems)
	}
}

func TestWhatNoWatchCoveredIsNotMissed(t *testing.T) {
	for name, more := range map[string]bool{"then something happens": true, "then nothing happens": false} {
		t.Run(name, func(t *testing.T) {
			h := New()
			h.Watching("a", 10)
			h.Acknowledge(h.Begin(Create, "x", "1"), 11)
			h.Saw("a", Event{Rev: 11, Key: "x", Value: "1"})
			// The watch could not go on: these two were compacted away.
			h.Acknowledge(h.Begin(Update, "x", "2"), 12)
			h.Acknowledge(h.Begin(Delete, "x", "2"), 0)
			h.Acknowledge(h.Begin(Create, "y", "3"), 14)
			h.Watching("a", 14)
			final := []Event{{Rev: 14, Key: "y", Value: "3"}}
			if more {
				h.Acknowledge(h.Begin(Create, "z", "4"), 15)
				h.Saw("a", Event{Rev: 15, Key: "z", Value: "4"})
				final = append(final, Event{Rev: 15, Key: "z", Value: "4"})
			}
			h.Final(final, final[len(final)-1].Rev)
			if problems := h.Check(); len(problems) > 0 {
				t.Errorf("problems: %q", problems)
			}
		})
	}
}

// A list can bring a watch to the revision that is waited for, with no event.
func TestWhoWaitsIsToldOfAWatchThatBeginsAnew(t *testing.T) {
	h := New()
	h.Watching("a", 1)
	behind, more := h.Behind(5)
	if len(behind) != 1 {
		t.Fatalf("behind are %v", behind)
	}
	h.Watching("a", 5)
	select {
	case <-more:
	default:
		t.Error("nothing new is told")
	}
	if behind, _ := h.Behind(5); len(behind) != 0 {
		t.Errorf("behind are %v", behind)
	}
}
