package edge

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/knarr-dev/knarr/pkg/edge/sealed"
)

// slack is how many bytes of the file may be of no use before it is rewritten,
// beside as many as are of use.
const slack = 128 << 10

var errNoFile = errors.New("the file could not be begun anew; start again")

// write brings to disk what has changed. It is the worker's, which alone changes
// the index: so it holds no lock while it waits for the disk.
func (s *Store) write() error {
	err := s.writeChanges()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil && !s.failing:
		s.log.Warn("what this node keeps for when no server can be reached can't be written; trying again", "every", s.lim.retry, "err", err)
	case err == nil && s.failing:
		s.log.Info("what this node keeps for when no server can be reached is written again")
	}
	s.failing, s.wrote = err != nil, time.Now()
	if err == nil {
		s.due = time.Time{}
	}
	return err
}

func (s *Store) writeChanges() error {
	x := s.x
	if len(x.dirty)+len(x.gone)+len(x.dirtySel)+len(x.goneSel) == 0 {
		return nil
	}
	if s.file == nil {
		return errNoFile
	}
	x.contact = s.contact()
	if s.file.Broken() || s.file.Size() > slack+2*x.liveBytes {
		return s.rewrite()
	}
	var w writer
	w.byte(recChanges)
	w.head(x.node, x.contact)
	for n := range x.goneSel {
		w.noSelection(n)
	}
	for n := range x.dirtySel {
		if sel := x.numbers[n]; sel != nil && sel.complete {
			w.selection(sel)
		}
	}
	for id := range x.gone {
		w.gone(id)
	}
	var objects []*object
	for id, whole := range x.dirty {
		o := x.objects[id]
		if whole {
			objects = append(objects, o)
			continue
		}
		w.byte(entMeta)
		w.meta(o)
	}
	records := [][]byte{w}
	heads := make([]int, len(objects))
	for i, o := range objects {
		var rec []byte
		rec, heads[i] = objectRecord(o, o.value)
		records = append(records, rec)
	}
	before := s.file.Size()
	refs, err := s.file.Append(records)
	if err != nil {
		return err
	}
	s.batches.Add(1)
	s.bytes.Add(s.file.Size() - before)
	s.size.Store(s.file.Size())
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, o := range objects {
		x.liveBytes -= o.ref.Cost()
		x.written(o, refs[i+1], heads[i])
	}
	x.clean()
	return nil
}

func (s *Store) contact() time.Time {
	if s.link == nil {
		return time.Time{}
	}
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	return s.link.contact
}

// objectRecord also tells where in the record the content begins.
func objectRecord(o *object, value []byte) (rec []byte, head int) {
	w := make(writer, 0, len(value)+256)
	w.byte(recObject)
	w.meta(o)
	return append(w, value...), len(w)
}

// written says where the object's content is.
func (x *index) written(o *object, ref sealed.Ref, head int) {
	x.liveBytes += ref.Cost()
	if o.value != nil {
		o.length = len(o.value)
		x.pending -= int64(len(o.value))
		o.value = nil
	}
	o.ref, o.head = ref, head
}

// clean says that the file tells all.
func (x *index) clean() {
	for n := range x.dirtySel {
		if sel := x.numbers[n]; sel != nil {
			sel.stored = sel.complete
		}
	}
	clear(x.dirty)
	clear(x.gone)
	clear(x.dirtySel)
	clear(x.goneSel)
}

// value is the content of the object. Hold mu, or be the worker.
func (s *Store) value(o *object) ([]byte, error) {
	if o.value != nil {
		return o.value, nil
	}
	if s.file == nil {
		return nil, errNoFile
	}
	rec, err := s.file.Read(o.ref)
	if err != nil {
		return nil, err
	}
	if o.head+o.length != len(rec) {
		return nil, fmt.Errorf("read %v: %w", o.id, sealed.ErrDamaged)
	}
	return rec[o.head:], nil
}

// object is the content as an object. Hold mu, or be the worker.
func (s *Store) object(o *object) (runtime.Object, error) {
	value, err := s.value(o)
	if err != nil {
		return nil, err
	}
	return decode(value)
}

// rewrite makes a new file of what is kept.
func (s *Store) rewrite() error {
	type place struct {
		ref  sealed.Ref
		head int
	}
	x := s.x
	places := make(map[*object]place, len(x.objects))
	var lost []*object
	file, err := s.file.Rewrite(func(add func([]byte, func(sealed.Ref)) error) error {
		var w writer
		w.byte(recChanges)
		w.head(x.node, x.contact)
		for _, sel := range x.selections {
			if sel.complete {
				w.selection(sel)
			}
		}
		if err := add(w, nil); err != nil {
			return err
		}
		for _, o := range x.objects {
			value, err := s.value(o)
			if err != nil {
				s.log.Warn("an object that this node keeps can't be read, and is dropped", "object", o.id, "err", err)
				lost = append(lost, o)
				continue
			}
			rec, head := objectRecord(o, value)
			if err := add(rec, func(ref sealed.Ref) { places[o] = place{ref, head} }); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.batches.Add(1)
	s.bytes.Add(file.Size())
	s.size.Store(file.Size())
	s.mu.Lock()
	s.file.Close()
	s.file = file
	x.liveBytes = 0
	for o, p := range places {
		x.written(o, p.ref, p.head)
	}
	for _, sel := range x.selections {
		sel.stored = sel.complete
	}
	x.clean()
	for _, o := range lost {
		o.ref = sealed.Ref{}
		// What is a part of a selection can't be told without it.
		for _, n := range slices.Clone(o.in) {
			x.drop(x.numbers[n])
		}
		if x.objects[o.id] == o {
			x.delete(o)
		}
	}
	s.mu.Unlock()
	if len(lost) > 0 {
		return s.writeChanges()
	}
	return nil
}

// shrink keeps to the limit: first go whole selections, the largest first, but
// never pods and what they name; then what clients asked for by name, longest ago
// first. Hold mu.
func (s *Store) shrink() urgency {
	x := s.x
	over := func() bool { return x.liveBytes+x.pending > s.cfg.MaxBytes }
	if !over() {
		return none
	}
	for sel := x.largest(); sel != nil && over(); sel = x.largest() {
		s.exclude(sel.key)
		x.drop(sel)
	}
	if !over() {
		return urgent
	}
	var single []*object
	for _, o := range x.objects {
		if len(o.in) == 0 && o.id.resource != tokenResource {
			single = append(single, o)
		}
	}
	slices.SortFunc(single, func(a, b *object) int { return a.used.Compare(b.used) })
	for _, o := range single {
		if !over() {
			break
		}
		x.delete(o)
	}
	return urgent
}

// largest is the selection that takes the most bytes of those that may go.
func (x *index) largest() *selection {
	sizes := map[uint]int64{}
	for _, o := range x.objects {
		for _, n := range o.in {
			sizes[n] += o.ref.Cost() + int64(len(o.value))
		}
	}
	var most *selection
	for n, size := range sizes {
		sel := x.numbers[n]
		if sel.resource == podResource || byName(sel.key) != "" {
			continue
		}
		if most == nil || size > sizes[most.number] {
			most = sel
		}
	}
	return most
}
