package edge

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/knarr-dev/knarr/pkg/edge/sealed"
)

// index is what the store knows of what it keeps; the contents are in the file.
type index struct {
	node    string
	contact time.Time

	objects    map[objectID]*object
	selections map[string]*selection
	numbers    map[uint]*selection
	last       uint // the highest number that a selection has had

	// What the file does not say yet: objects whose content or whose entry
	// alone has changed, what went, and selections.
	dirty     map[objectID]bool // true: the content too
	gone      map[objectID]bool
	dirtySel  map[uint]bool
	goneSel   map[uint]bool
	liveBytes int64 // what the records of objects take in the file
	pending   int64 // bytes of contents that are not in the file yet
	podsGone  bool  // a pod went since the last sweep
}

// object is one that is kept. One that is in no selection was asked for by name.
type object struct {
	id          objectID
	rv          string
	uid         types.UID
	pod         types.UID
	full, vital digest
	in          []uint // numbers of selections

	// value is the content if the file does not have it yet; it is at head of
	// the record at ref if it does.
	value        []byte
	ref          sealed.Ref
	head, length int
	used         time.Time // when a server last told of it
}

// selection is a set of objects that clients list and watch: those at a path
// that fit some selectors.
type selection struct {
	number   uint
	key      string
	resource string
	kind     schema.GroupVersionKind // of the objects
	rv       string                  // at which the objects were such
	// complete is set once all its objects are known, and never before it is
	// written to the file.
	complete bool
	stored   bool
	used     time.Time // when a client asked for it last
}

func newIndex() *index {
	return &index{
		objects: map[objectID]*object{}, selections: map[string]*selection{}, numbers: map[uint]*selection{},
		dirty: map[objectID]bool{}, gone: map[objectID]bool{}, dirtySel: map[uint]bool{}, goneSel: map[uint]bool{},
	}
}

// load and the three below follow the file.
func (x *index) load(o *object) {
	if old, ok := x.objects[o.id]; ok {
		x.liveBytes -= old.ref.Cost()
	}
	x.objects[o.id] = o
	x.liveBytes += o.ref.Cost()
}

func (x *index) unload(id objectID) {
	if o, ok := x.objects[id]; ok {
		x.liveBytes -= o.ref.Cost()
		delete(x.objects, id)
	}
}

func (x *index) loadSelection(s *selection) {
	s.complete, s.stored = true, true
	x.selections[s.key], x.numbers[s.number] = s, s
	x.last = max(x.last, s.number)
}

func (x *index) unloadSelection(n uint) {
	if s, ok := x.numbers[n]; ok {
		delete(x.selections, s.key)
		delete(x.numbers, n)
	}
}

// loaded is called once the whole file is read: it drops what only belonged to
// selections that were never complete, or are gone.
func (x *index) loaded(now time.Time) {
	for id, o := range x.objects {
		o.used = now
		in := slices.DeleteFunc(slices.Clone(o.in), func(n uint) bool { return x.numbers[n] == nil })
		if len(in) == len(o.in) {
			continue
		}
		// Numbers are not used again, also after the next start.
		x.last = max(x.last, slices.Max(o.in))
		o.in = in
		x.touch(id)
		if len(in) == 0 {
			x.delete(o)
		}
	}
	for _, s := range x.selections {
		s.used = now
	}
}

// urgency is how soon a change has to be on disk.
type urgency int

const (
	none urgency = iota
	lazy
	soon
	urgent
)

// worth is how urgent a change of an object of the resource is.
func worth(resource string) urgency {
	switch resource {
	case endpointSliceResource, nodeResource:
		return soon
	}
	return urgent
}

// put takes an object as a server told it, as a part of s unless that is nil.
// Trust is set if it replaces also what looks newer: by a list, which is the
// truth also after a datastore was set back.
func (x *index) put(c content, s *selection, trust bool, now time.Time) urgency {
	o, ok := x.objects[c.id]
	if !ok {
		o = &object{id: c.id, rv: c.rv, uid: c.uid, pod: c.pod, full: c.full, vital: c.vital}
		x.objects[c.id] = o
		delete(x.gone, c.id)
		x.setValue(o, c.value)
		x.join(o, s)
		o.used = now
		return worth(c.id.resource)
	}
	o.used = now
	need := none
	if x.join(o, s) {
		need = worth(c.id.resource)
	}
	if !trust && older(c.rv, o.rv) {
		return need
	}
	o.rv = c.rv
	if c.full == o.full && c.uid == o.uid {
		return need
	}
	if c.vital != o.vital || c.uid != o.uid {
		need = max(need, worth(c.id.resource))
	}
	o.uid, o.pod, o.full, o.vital = c.uid, c.pod, c.full, c.vital
	x.setValue(o, c.value)
	return max(need, lazy)
}

func (x *index) setValue(o *object, value []byte) {
	x.pending += int64(len(value) - len(o.value))
	o.value = value
	x.dirty[o.id] = true
}

// touch has an object's record written, without its content unless that has
// changed as well.
func (x *index) touch(id objectID) {
	if _, noted := x.dirty[id]; !noted {
		x.dirty[id] = false
	}
}

// join makes the object a part of s and tells whether it was none.
func (x *index) join(o *object, s *selection) bool {
	if s == nil || slices.Contains(o.in, s.number) {
		return false
	}
	o.in = append(o.in, s.number)
	x.touch(o.id)
	if s.complete {
		x.dirtySel[s.number] = true
	}
	return true
}

// leave ends that the object is a part of s. One that is a part of nothing goes.
func (x *index) leave(o *object, s *selection) urgency {
	i := slices.Index(o.in, s.number)
	if i < 0 {
		return none
	}
	o.in = slices.Delete(o.in, i, i+1)
	if len(o.in) == 0 {
		x.delete(o)
	} else {
		x.touch(o.id)
	}
	if s.complete {
		x.dirtySel[s.number] = true
	}
	return worth(o.id.resource)
}

func (x *index) delete(o *object) {
	delete(x.objects, o.id)
	delete(x.dirty, o.id)
	x.pending -= int64(len(o.value))
	if o.ref != (sealed.Ref{}) {
		x.gone[o.id] = true
		x.liveBytes -= o.ref.Cost()
	}
	if o.id.resource == podResource {
		x.podsGone = true
	}
}

// selection returns the one with the key, which it makes if there is none.
func (x *index) selection(q question) *selection {
	s, ok := x.selections[q.selection]
	if !ok {
		x.last++
		s = &selection{number: x.last, key: q.selection, resource: q.id.resource}
		x.selections[s.key], x.numbers[s.number] = s, s
	}
	return s
}

// settle says that s is exactly the objects in keep.
func (x *index) settle(s *selection, kind schema.GroupVersionKind, rv string, keep map[objectID]bool) urgency {
	need := none
	if !s.complete || s.kind != kind {
		s.complete, s.kind = true, kind
		x.dirtySel[s.number] = true
		need = worth(s.resource)
	}
	s.rv = rv
	for id, o := range x.objects {
		if !keep[id] {
			need = max(need, x.leave(o, s))
		}
	}
	return need
}

// drop forgets a selection and what was a part of it alone.
func (x *index) drop(s *selection) {
	for _, o := range x.objects {
		x.leave(o, s)
	}
	delete(x.selections, s.key)
	delete(x.numbers, s.number)
	delete(x.dirtySel, s.number)
	if s.stored {
		x.goneSel[s.number] = true
	}
}

// members are the objects of s, in the order in which the API server lists them.
func (x *index) members(s *selection) []*object {
	var m []*object
	for _, o := range x.objects {
		if slices.Contains(o.in, s.number) {
			m = append(m, o)
		}
	}
	slices.SortFunc(m, func(a, b *object) int { return compareID(a.id, b.id) })
	return m
}

// version is the resourceVersion at which s is told to clients.
func (x *index) version(s *selection, members []*object) string {
	rv := s.rv
	for _, o := range members {
		if older(rv, o.rv) {
			rv = o.rv
		}
	}
	return rv
}

func compareID(a, b objectID) int {
	return cmp.Or(cmp.Compare(a.resource, b.resource), cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
}

// older tells whether a resourceVersion is of an earlier time: they are numbers
// that grow (KEP-5504).
func older(a, b string) bool {
	x, err1 := strconv.ParseUint(a, 10, 64)
	y, err2 := strconv.ParseUint(b, 10, 64)
	return err1 == nil && err2 == nil && x < y
}
