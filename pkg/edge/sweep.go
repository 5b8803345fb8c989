package edge

import (
	"reflect"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
)

// maxSingles is how many objects are kept that clients ask for by name.
const maxSingles = 1000

// sweep drops what nobody needs any more and no server will tell is gone, since
// nobody asks for it: Secrets, ConfigMaps, claims, volumes and tokens of pods that
// went, and selections of an earlier version of a client.
//
// What a pod needs is what it mentions: any string in it that is the name of a
// kept object of its namespace counts. So nothing that a pod names in a field of
// Kubernetes to come is dropped.
func (s *Store) sweep(now time.Time) urgency {
	s.link.mu.Lock()
	ready := s.link.state == online && now.Sub(s.link.since) >= s.lim.settled
	s.link.mu.Unlock()
	if !ready {
		return none
	}
	b := &broom{store: s, now: now, named: map[string]map[string]bool{}, pods: map[types.UID]bool{}}
	for _, sel := range s.x.selections {
		if !s.isWatched(sel.key) {
			b.look(sel)
		}
	}
	if s.x.podsGone || !s.swept { // else all that was needed still is
		if err := b.mark(); err != nil {
			s.log.Warn("what this node keeps can't be cleared up", "err", err)
			return none
		}
		s.swept = true
		s.forgetPods(b.pods)
	} else {
		b.again = false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sel := range b.selections {
		s.x.drop(sel)
	}
	for _, o := range b.objects {
		if s.x.objects[o.id] == o {
			s.x.delete(o)
		}
	}
	s.x.podsGone = b.again
	if len(b.selections)+len(b.objects) == 0 {
		return none
	}
	return lazy
}

func (s *Store) isWatched(selection string) bool {
	s.watchMu.Lock()
	defer s.watchMu.Unlock()
	return s.watched[selection] > 0
}

// broom is what one sweep finds.
type broom struct {
	store *Store
	now   time.Time
	// named are the strings that pods and what they need mention, by namespace;
	// those of objects outside of namespaces are under "".
	named map[string]map[string]bool
	pods  map[types.UID]bool
	// doubtful are selections of one name each, and perhaps nobody's.
	doubtful []*selection

	selections []*selection // to go
	objects    []*object    // to go
	again      bool         // for something it was too early to tell
}

// look judges a selection that nobody watches.
func (b *broom) look(sel *selection) {
	idle := b.now.Sub(sel.used)
	switch {
	case byName(sel.key) != "" && namespaceOf(sel.key) != "":
		if idle < b.store.lim.settled {
			b.again = true
			return
		}
		b.doubtful = append(b.doubtful, sel)
	case idle >= b.store.lim.unused && sel.resource != podResource:
		b.selections = append(b.selections, sel)
	}
}

// namespaceOf is the namespace that a selection is limited to by its path.
func namespaceOf(selection string) string {
	path, _, _ := strings.Cut(selection, "?")
	parts := strings.Split(path, "/")
	for i, p := range parts {
		if p == "namespaces" && i+2 < len(parts) {
			return parts[i+1]
		}
	}
	return ""
}

// mark finds out what pods need, and from that what nobody does.
func (b *broom) mark() error {
	var open []*object // whether they are needed is not known yet
	singles := 0
	for id, o := range b.store.x.objects {
		switch {
		case id.resource == podResource:
			b.pods[o.uid] = true
			if err := b.mention(o); err != nil {
				return err
			}
		case len(o.in) > 0 || id.resource == tokenResource:
		case b.now.Sub(o.used) < b.store.lim.settled:
			b.again = true
			if err := b.mention(o); err != nil {
				return err
			}
		case id.namespace != "" || id.resource == pvResource || id.resource == volumeAttachmentResource:
			open = append(open, o)
		default:
			singles++
		}
	}
	for found := true; found; {
		found = false
		rest := open[:0:0]
		for _, o := range open {
			needed, err := b.needs(o)
			if err != nil {
				return err
			}
			if !needed {
				rest = append(rest, o)
				continue
			}
			found = true
			singles++
			if err := b.mention(o); err != nil {
				return err
			}
		}
		open = rest
	}
	b.objects = append(b.objects, open...)
	for _, sel := range b.doubtful {
		if ns := namespaceOf(sel.key); !b.isNamed(ns, byName(sel.key)) {
			b.selections = append(b.selections, sel)
		}
	}
	for _, o := range b.store.x.objects {
		if o.id.resource != tokenResource || o.pod == "" || b.pods[o.pod] {
			continue
		}
		if b.now.Sub(o.used) < b.store.lim.settled {
			b.again = true
			continue
		}
		b.objects = append(b.objects, o)
	}
	b.limit(singles - maxSingles)
	return nil
}

// limit drops some of what clients asked for by name, if there is too much.
func (b *broom) limit(excess int) {
	for _, o := range b.store.x.objects {
		if excess <= 0 {
			return
		}
		if len(o.in) == 0 && o.id.resource != tokenResource && o.id.namespace == "" && b.now.Sub(o.used) >= b.store.lim.settled {
			b.objects = append(b.objects, o)
			excess--
		}
	}
}

func (b *broom) isNamed(namespace, name string) bool {
	return b.named[namespace][name] || b.named[""][name]
}

func (b *broom) needs(o *object) (bool, error) {
	switch o.id.resource {
	case volumeAttachmentResource:
		// It names the volume, and nothing names it.
		obj, err := b.store.object(o)
		if err != nil {
			return false, err
		}
		va, ok := obj.(*storagev1.VolumeAttachment)
		return ok && va.Spec.Source.PersistentVolumeName != nil && b.isNamedAnywhere(*va.Spec.Source.PersistentVolumeName), nil
	case pvResource:
		return b.isNamedAnywhere(o.id.name), nil
	}
	return b.isNamed(o.id.namespace, o.id.name), nil
}

func (b *broom) isNamedAnywhere(name string) bool {
	for _, names := range b.named {
		if names[name] {
			return true
		}
	}
	return false
}

// mention collects the strings in the object.
func (b *broom) mention(o *object) error {
	obj, err := b.store.object(o)
	if err != nil {
		return err
	}
	names := b.named[o.id.namespace]
	if names == nil {
		names = map[string]bool{}
		b.named[o.id.namespace] = names
	}
	eachString(reflect.ValueOf(obj), func(text string) { names[text] = true })
	if pod, ok := obj.(*corev1.Pod); ok {
		for _, v := range pod.Spec.Volumes {
			if v.Ephemeral != nil {
				names[pod.Name+"-"+v.Name] = true
			}
		}
	}
	return nil
}

// maxName is the length of the longest name that an object can have.
const maxName = 253

func eachString(v reflect.Value, f func(string)) {
	switch v.Kind() {
	case reflect.String:
		if n := v.Len(); n > 0 && n <= maxName {
			f(v.String())
		}
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			eachString(v.Elem(), f)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			eachString(v.Field(i), f)
		}
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		for i := range v.Len() {
			eachString(v.Index(i), f)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			eachString(it.Key(), f)
			eachString(it.Value(), f)
		}
	}
}
