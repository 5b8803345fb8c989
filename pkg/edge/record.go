package edge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/knarr-dev/knarr/pkg/edge/sealed"
)

// Each record in the file begins with one of these.
const (
	// recChanges holds any number of the entries below.
	recChanges = 'c'
	// recObject is one object: its entry, then its content to the record's end.
	recObject = 'o'
)

// Entries of recChanges.
const (
	entHead      = 'h' // whose the store is, and when a server answered last
	entSelection = 's'
	entNoSel     = 'x'
	entMeta      = 'm' // an object's entry, whose content stays as it is
	entGone      = 'd'
)

// writer puts together a record.
type writer []byte

func (w *writer) byte(b byte)        { *w = append(*w, b) }
func (w *writer) uint(v uint64)      { *w = binary.AppendUvarint(*w, v) }
func (w *writer) string(s string)    { w.uint(uint64(len(s))); *w = append(*w, s...) }
func (w *writer) time(t time.Time)   { w.uint(uint64(max(t.Unix(), 0))) }
func (w *writer) digest(d digest)    { *w = append(*w, d[:]...) }
func (w *writer) id(id objectID)     { w.string(id.resource); w.string(id.namespace); w.string(id.name) }
func (w *writer) gone(id objectID)   { w.byte(entGone); w.id(id) }
func (w *writer) noSelection(n uint) { w.byte(entNoSel); w.uint(uint64(n)) }

func (w *writer) head(node string, contact time.Time) {
	w.byte(entHead)
	w.string(node)
	w.time(contact)
}

func (w *writer) selection(s *selection) {
	w.byte(entSelection)
	w.uint(uint64(s.number))
	w.string(s.key)
	w.string(s.resource)
	w.string(s.kind.Group)
	w.string(s.kind.Version)
	w.string(s.kind.Kind)
	w.string(s.rv)
}

func (w *writer) meta(o *object) {
	w.id(o.id)
	w.string(o.rv)
	w.string(string(o.uid))
	w.string(string(o.pod))
	w.digest(o.full)
	w.digest(o.vital)
	w.uint(uint64(len(o.in)))
	for _, n := range o.in {
		w.uint(uint64(n))
	}
}

var errShort = errors.New("a record is too short")

// reader takes a record apart. After an error it returns zeros.
type reader struct {
	b   []byte
	err error
}

func (r *reader) bytes(n uint64) []byte {
	if r.err != nil || n > uint64(len(r.b)) {
		r.err = errShort
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint() uint64 {
	if r.err != nil {
		return 0
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.err = errShort
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) string() string { return string(r.bytes(r.uint())) }

func (r *reader) time() time.Time {
	if s := r.uint(); s > 0 {
		return time.Unix(int64(s), 0)
	}
	return time.Time{}
}

func (r *reader) digest() (d digest) {
	copy(d[:], r.bytes(uint64(len(d))))
	return d
}

func (r *reader) id() objectID {
	return objectID{resource: r.string(), namespace: r.string(), name: r.string()}
}

func (r *reader) selection() *selection {
	return &selection{
		number: uint(r.uint()), key: r.string(), resource: r.string(),
		kind: schema.GroupVersionKind{Group: r.string(), Version: r.string(), Kind: r.string()},
		rv:   r.string(),
	}
}

func (r *reader) meta() *object {
	o := &object{id: r.id(), rv: r.string(), uid: types.UID(r.string()), pod: types.UID(r.string()), full: r.digest(), vital: r.digest()}
	for n := r.uint(); n > 0 && r.err == nil; n-- {
		o.in = append(o.in, uint(r.uint()))
	}
	return o
}

// replay brings a record of the file into the index.
func (x *index) replay(ref sealed.Ref, rec []byte) error {
	r := &reader{b: rec}
	switch kind := r.byte(); kind {
	case recObject:
		o := r.meta()
		o.ref, o.head, o.length = ref, len(rec)-len(r.b), len(r.b)
		if r.err == nil {
			x.load(o)
		}
	case recChanges:
		for len(r.b) > 0 && r.err == nil {
			if err := x.replayEntry(r); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("a record has the unknown kind %q", kind)
	}
	return r.err
}

func (x *index) replayEntry(r *reader) error {
	switch kind := r.byte(); kind {
	case entHead:
		x.node, x.contact = r.string(), r.time()
	case entSelection:
		if s := r.selection(); r.err == nil {
			x.loadSelection(s)
		}
	case entNoSel:
		x.unloadSelection(uint(r.uint()))
	case entMeta:
		o := r.meta()
		old, ok := x.objects[o.id]
		if r.err == nil && !ok {
			return fmt.Errorf("a record is about %v, which is not kept", o.id)
		}
		if r.err == nil {
			o.ref, o.head, o.length = old.ref, old.head, old.length
			x.load(o)
		}
	case entGone:
		if id := r.id(); r.err == nil {
			x.unload(id)
		}
	default:
		return fmt.Errorf("an entry has the unknown kind %q", kind)
	}
	return nil
}
