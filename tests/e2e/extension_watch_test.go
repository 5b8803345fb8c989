package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// watching starts a watch of the namespace's ConfigMaps with the label w=yes.
func (s *space) watching(o metav1.ListOptions) watch.Interface {
	s.t.Helper()
	o.LabelSelector = "w=yes"
	w, err := s.Client.CoreV1().ConfigMaps(s.ns).Watch(s.t.Context(), o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(w.Stop)
	return w
}

// note writes a ConfigMap with the label, and returns its resourceVersion.
func (s *space) note(name, text string) string {
	s.t.Helper()
	c := kube.ConfigMap(name, "text", text)
	c.Labels = map[string]string{"w": "yes"}
	maps := s.Client.CoreV1().ConfigMaps(s.ns)
	made, err := maps.Create(s.t.Context(), c, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		made, err = maps.Update(s.t.Context(), c, metav1.UpdateOptions{})
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return made.ResourceVersion
}

// next is a watch's next event, in words: what happened, to what, its text.
func (s *space) next(w watch.Interface) (string, metav1.Object) {
	s.t.Helper()
	select {
	case e, ok := <-w.ResultChan():
		if !ok {
			return "end", nil
		}
		switch o := e.Object.(type) {
		case *corev1.ConfigMap:
			return strings.TrimSpace(fmt.Sprintf("%s %s %s", e.Type, o.Name, o.Data["text"])), o
		default:
			s.t.Fatalf("the watch told %s of %+v", e.Type, e.Object)
		}
	case <-s.t.Context().Done():
		s.t.Fatal("the watch told nothing")
	}
	return "", nil
}

func TestWatchesTellEachChangeOnceInOrderFromAnyVersion(t *testing.T) {
	s := newSpace(t)
	first := s.note("a", "1")
	live := s.watching(metav1.ListOptions{ResourceVersion: first})
	second := s.note("b", "1")
	s.note("a", "2")
	s.kubectl("label", "configmap", "a", "w=no", "--overwrite") // no longer selected
	s.kubectl("delete", "configmap", "b")
	story := []string{"ADDED b 1", "MODIFIED a 2", "DELETED a 2", "DELETED b 1"}
	for name, w := range map[string]watch.Interface{
		"that was there":          live,
		"from the same version":   s.watching(metav1.ListOptions{ResourceVersion: first}),
		"from a later version":    s.watching(metav1.ListOptions{ResourceVersion: second}),
		"from the same, streamed": s.watching(metav1.ListOptions{ResourceVersion: first, AllowWatchBookmarks: true}),
	} {
		expected := story
		if name == "from a later version" {
			expected = story[1:]
		}
		var told []string
		for len(told) < len(expected) {
			what, _ := s.next(w)
			told = append(told, what)
		}
		if !slices.Equal(told, expected) {
			t.Errorf("the watch %s told %q, want %q", name, told, expected)
		}
	}
}

// Before a watch ends it tells how far it came, so that the next one need not
// start over.
func TestWatchTellsByABookmarkWhereToGoOn(t *testing.T) {
	s := newSpace(t)
	from := s.note("a", "1")
	w := s.watching(metav1.ListOptions{ResourceVersion: from, AllowWatchBookmarks: true, TimeoutSeconds: new(int64(4))})
	// Nothing that the watch sees.
	other, err := s.Client.CoreV1().ConfigMaps(s.ns).Create(t.Context(), kube.ConfigMap("other"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var mark string
	for {
		what, o := s.next(w)
		if what == "end" {
			break
		}
		if what != "BOOKMARK" {
			t.Fatalf("the watch told %s", what)
		}
		mark = o.GetResourceVersion()
	}
	if mark == "" || mark == from {
		t.Fatalf("the last bookmark is %q, the watch began at %s; the last write was %s", mark, from, other.ResourceVersion)
	}
	s.note("a", "2")
	what, _ := s.next(s.watching(metav1.ListOptions{ResourceVersion: mark}))
	want(t, "what a watch from the bookmark tells", what, "MODIFIED a 2")
}

// One request instead of a list and a watch: informers of today start so.
func TestWatchBeginsWithAllThatIsThere(t *testing.T) {
	s := newSpace(t)
	for _, name := range []string{"a", "b", "c"} {
		s.note(name, "1")
	}
	w := s.watching(metav1.ListOptions{
		SendInitialEvents: new(true), AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
	})
	var told []string
	var mark metav1.Object
	for mark == nil {
		what, o := s.next(w)
		if what == "BOOKMARK" {
			mark = o
			continue
		}
		told = append(told, what)
	}
	slices.Sort(told)
	if !slices.Equal(told, []string{"ADDED a 1", "ADDED b 1", "ADDED c 1"}) {
		t.Errorf("the beginning is %q", told)
	}
	want(t, "the sign of the beginning's end", mark.GetAnnotations()[metav1.InitialEventsAnnotationKey], "true")
	s.note("b", "2")
	what, _ := s.next(w)
	for what == "BOOKMARK" { // may come at any time
		what, _ = s.next(w)
	}
	want(t, "what comes next", what, "MODIFIED b 2")
}

func TestPagesOfAListAreOfOneMoment(t *testing.T) {
	s := newSpace(t)
	for i := range 10 {
		s.note(fmt.Sprintf("note-%d", i), "old")
	}
	maps := s.Client.CoreV1().ConfigMaps(s.ns)
	page := func(token string, limit int64) *corev1.ConfigMapList {
		t.Helper()
		// The kind's selector would hide how many remain.
		l, err := maps.List(t.Context(), metav1.ListOptions{Limit: limit, Continue: token})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	// kube-root-ca.crt is in every namespace.
	s.kubectl("wait", "configmap/kube-root-ca.crt", "--for=create", "--timeout=60s")
	l := page("", 4)
	if l.RemainingItemCount == nil || *l.RemainingItemCount != 7 {
		t.Errorf("of eleven ConfigMaps, after a page of four, there remain %v", l.RemainingItemCount)
	}
	version, all := l.ResourceVersion, l.Items
	s.note("note-9", "new")
	s.kubectl("delete", "configmap", "note-8")
	for l.Continue != "" {
		l = page(l.Continue, 3)
		want(t, "the version of a page", l.ResourceVersion, version)
		all = append(all, l.Items...)
	}
	var names []string
	for _, c := range all[1:] {
		names = append(names, c.Name+" "+c.Data["text"])
	}
	want(t, "what the pages tell", strings.Join(names, ","), "note-0 old,note-1 old,note-2 old,note-3 old,note-4 old,note-5 old,note-6 old,note-7 old,note-8 old,note-9 old")
}

func TestListsSayHowFreshTheyAre(t *testing.T) {
	s := newSpace(t)
	old := s.note("a", "1")
	s.note("a", "2")
	maps := s.Client.CoreV1().ConfigMaps(s.ns)
	text := func(o metav1.ListOptions) string {
		t.Helper()
		o.LabelSelector = "w=yes"
		l, err := maps.List(t.Context(), o)
		if err != nil || len(l.Items) != 1 {
			t.Fatalf("list %+v: %v, %v", o, l, err)
		}
		return l.Items[0].Data["text"]
	}
	want(t, "what is there now", text(metav1.ListOptions{}), "2")
	want(t, "what was there then", text(metav1.ListOptions{ResourceVersion: old, ResourceVersionMatch: metav1.ResourceVersionMatchExact}), "1")
	want(t, "what is not older", text(metav1.ListOptions{ResourceVersion: s.note("a", "3"), ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan}), "3")
	// Clients would ask again for a while.
	err := s.Client.CoreV1().RESTClient().Get().Namespace(s.ns).Resource("configmaps").MaxRetries(0).
		Param("resourceVersion", "999999999").Param("resourceVersionMatch", string(metav1.ResourceVersionMatchNotOlderThan)).Do(t.Context()).Error()
	if !apierrors.IsTimeout(err) && !apierrors.IsServerTimeout(err) || !strings.Contains(err.Error(), "Too large resource version") {
		t.Errorf("of a version in the future: %v", err)
	}
}
