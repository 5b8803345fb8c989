package edge

import (
	"encoding/json"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// work is the one goroutine that changes the index and the file: what clients
// read comes in the order in which they have read it.
func (s *Store) work() {
	defer close(s.done)
	timer := time.NewTimer(s.lim.settled)
	defer timer.Stop()
	for {
		now := time.Now()
		if !s.due.IsZero() && !now.Before(s.due) {
			if err := s.write(); err != nil {
				s.due = time.Now().Add(s.lim.retry)
			}
			continue
		}
		j, ok, over := s.jobs.pop()
		switch {
		case ok:
			s.schedule(j.do())
			continue
		case over:
			return
		}
		if !now.Before(s.sweepAt) {
			s.sweepAt = now.Add(s.lim.settled)
			s.schedule(s.sweep(now))
			continue
		}
		next := s.sweepAt
		if !s.due.IsZero() && s.due.Before(next) {
			next = s.due
		}
		timer.Reset(next.Sub(now))
		select {
		case <-timer.C:
		case <-s.jobs.wake:
		}
	}
}

// schedule sees to that a change is written in time.
func (s *Store) schedule(u urgency) {
	var wait time.Duration
	switch u {
	case none:
		return
	case lazy:
		wait = s.lim.lazy
	case soon:
		wait = s.lim.soon
	case urgent:
		wait = s.lim.urgent
	}
	if s.failing {
		wait = max(wait, s.lim.retry)
	}
	at := time.Now().Add(wait)
	if next := s.wrote.Add(s.lim.apart); at.Before(next) {
		at = next
	}
	if s.due.IsZero() || at.Before(s.due) {
		s.due = at
	}
}

// push hands an answer that a client has read to the worker.
func (s *Store) push(age uint64, q question, data []byte) {
	s.later(age, len(data), func() urgency { return s.learn(q, data) })
}

// later has the worker do something unless everything is forgotten by then.
func (s *Store) later(age uint64, size int, do func() urgency) {
	s.jobs.push(job{size, func() urgency {
		if s.age.Load() != age {
			return none
		}
		return do()
	}})
}

// learn takes in the answer to anything but a watch.
func (s *Store) learn(q question, data []byte) urgency {
	if q.verb == list {
		return s.learnList(q, data)
	}
	obj, err := decode(data)
	if err != nil {
		return none
	}
	var c content
	if r, ok := obj.(*authenticationv1.TokenRequest); ok && q.verb == token {
		if r.Status.Token == "" {
			return none
		}
		c, err = prepareToken(q.id, r)
	} else {
		c, err = prepare(obj, q)
		if q.verb == create {
			q.id.namespace, q.id.name = c.id.namespace, c.id.name
		}
	}
	if err != nil || c.id != q.id {
		return none
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.x.objects[c.id]; !ok && c.id.resource == podResource {
		// A pod that is in no list is not this node's any more.
		return none
	}
	return max(s.x.put(c, nil, false, time.Now()), s.shrink())
}

// forgetObject says that a server told that there is no such object.
func (s *Store) forgetObject(q question) {
	s.later(s.age.Load(), 0, func() urgency {
		s.mu.Lock()
		defer s.mu.Unlock()
		o, ok := s.x.objects[q.id]
		if !ok || len(o.in) > 0 {
			return none // watches tell, in their order
		}
		s.x.delete(o)
		return worth(o.id.resource)
	})
}

// page is a list that comes in pieces.
type page struct {
	next string // what the next piece is asked for with
	keep map[objectID]bool
}

func (s *Store) learnList(q question, data []byte) urgency {
	token := q.query.Get("continue")
	p := s.pages[q.selection]
	delete(s.pages, q.selection)
	if token == "" {
		p = &page{keep: map[objectID]bool{}}
	}
	if p == nil || p.next != token || s.isExcluded(q) {
		return none
	}
	obj, err := decode(data)
	if err != nil {
		return s.forgetSelection(q)
	}
	kind, ok := itemKind(obj.GetObjectKind().GroupVersionKind())
	m, err := meta.ListAccessor(obj)
	if err != nil || !ok {
		return s.forgetSelection(q)
	}
	items, err := meta.ExtractList(obj)
	if err != nil {
		return s.forgetSelection(q)
	}
	contents := make([]content, len(items))
	for i, item := range items {
		if contents[i], err = prepare(item, q); err != nil {
			return s.forgetSelection(q)
		}
		p.keep[contents[i].id] = true
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	now, need := time.Now(), none
	sel := s.x.selection(q)
	sel.used = now
	for _, c := range contents {
		need = max(need, s.x.put(c, sel, true, now))
	}
	if p.next = m.GetContinue(); p.next != "" {
		s.pages[q.selection] = p
		return max(need, s.shrink())
	}
	need = max(need, s.x.settle(sel, kind, m.GetResourceVersion(), p.keep))
	return max(need, s.shrink())
}

// forgetSelection drops what can't be told whole.
func (s *Store) forgetSelection(q question) urgency {
	s.mu.Lock()
	defer s.mu.Unlock()
	sel, ok := s.x.selections[q.selection]
	if !ok {
		return none
	}
	s.x.drop(sel)
	return worth(q.id.resource)
}

// tooBig says that an answer was longer than what may be kept.
func (s *Store) tooBig(q question, age uint64) {
	if q.selection == "" {
		return
	}
	s.later(age, 0, func() urgency {
		s.exclude(q.selection)
		return s.forgetSelection(q)
	})
}

// exclude has a selection not be kept until the next start.
func (s *Store) exclude(selection string) {
	s.watchMu.Lock()
	defer s.watchMu.Unlock()
	if !s.excluded[selection] {
		s.excluded[selection] = true
		s.log.Warn("too much to be kept for when no server can be reached; it will be missing then", "what", selection, "limit", s.cfg.MaxBytes)
	}
}

func (s *Store) isExcluded(q question) bool {
	s.watchMu.Lock()
	defer s.watchMu.Unlock()
	return s.excluded[q.selection]
}

// stream is what is read of one watch.
type stream struct {
	store  *Store
	q      question
	asJSON bool
	age    uint64
	frames frames

	failed bool // the reader's
	// The worker's: over is set once nothing more is taken in, first holds the
	// objects before the bookmark that ends them.
	over  bool
	first map[objectID]bool
}

// watching returns what takes in a watch.
func (s *Store) watching(q question, asJSON bool) sink {
	s.watchMu.Lock()
	s.watched[q.selection]++
	s.watchMu.Unlock()
	w := &stream{store: s, q: q, asJSON: asJSON, age: s.age.Load(), frames: newFrames(asJSON)}
	if isTrue(q.query.Get("sendInitialEvents")) {
		w.first = map[objectID]bool{}
	}
	return w
}

func (w *stream) write(p []byte) {
	w.store.link.met()
	if w.failed {
		return
	}
	err := w.frames.write(p, func(frame []byte) {
		w.store.later(w.age, len(frame), func() urgency { return w.learn(frame) })
	})
	if err != nil {
		w.failed = true
		w.store.later(w.age, 0, w.abandon)
	}
}

func (w *stream) end(bool) {
	s := w.store
	s.watchMu.Lock()
	if s.watched[w.q.selection]--; s.watched[w.q.selection] == 0 {
		delete(s.watched, w.q.selection)
	}
	s.watchMu.Unlock()
	s.later(w.age, 0, func() urgency {
		s.mu.Lock()
		defer s.mu.Unlock()
		if sel, ok := s.x.selections[w.q.selection]; ok {
			sel.used = time.Now()
		}
		return none
	})
}

// abandon takes nothing more in, and drops what can't be followed.
func (w *stream) abandon() urgency {
	if w.over {
		return none
	}
	w.over = true
	return w.store.forgetSelection(w.q)
}

// learn takes in one event.
func (w *stream) learn(frame []byte) urgency {
	if w.over || w.store.isExcluded(w.q) {
		return none
	}
	var e metav1.WatchEvent
	var err error
	if w.asJSON {
		err = json.Unmarshal(frame, &e)
	} else {
		err = e.Unmarshal(frame)
	}
	if err != nil {
		return w.abandon()
	}
	if e.Type == "ERROR" {
		w.over = true // the client begins anew
		return none
	}
	obj, err := decode(e.Object.Raw)
	if err != nil {
		return w.abandon()
	}
	if e.Type == "BOOKMARK" {
		return w.bookmark(obj)
	}
	c, err := prepare(obj, w.q)
	if err != nil {
		return w.abandon()
	}
	s := w.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.x.selections[w.q.selection]; !ok && w.first == nil {
		return none // the list was not seen
	}
	sel := s.x.selection(w.q)
	if e.Type == "DELETED" {
		delete(w.first, c.id)
		return w.deleted(sel, c)
	}
	if w.first != nil {
		w.first[c.id] = true
	} else {
		sel.rv = c.rv
	}
	// The first objects are a list.
	need := s.x.put(c, sel, w.first != nil, time.Now())
	return max(need, s.shrink())
}

// deleted is for those that hold the store's mu.
func (w *stream) deleted(sel *selection, c content) urgency {
	sel.rv = c.rv
	o, ok := w.store.x.objects[c.id]
	if !ok {
		return none
	}
	return w.store.x.leave(o, sel)
}

func (w *stream) bookmark(obj runtime.Object) urgency {
	m, err := meta.Accessor(obj)
	if err != nil {
		return w.abandon()
	}
	kind, err := kindOf(obj, w.q.gv)
	if err != nil {
		return w.abandon()
	}
	s := w.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.first == nil {
		if sel, ok := s.x.selections[w.q.selection]; ok {
			sel.rv = m.GetResourceVersion()
		}
		return none
	}
	if m.GetAnnotations()[metav1.InitialEventsAnnotationKey] != "true" {
		return none
	}
	sel := s.x.selection(w.q)
	sel.used = time.Now()
	need := s.x.settle(sel, kind, m.GetResourceVersion(), w.first)
	w.first = nil
	return max(need, s.shrink())
}
