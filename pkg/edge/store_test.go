package edge

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/knarr-dev/knarr/pkg/edge/sealed"
)

// written is what the store has written since the last call.
func written(s *Store) (batches, bytes int64) { return s.batches.Swap(0), s.bytes.Swap(0) }

// A node at rest writes nothing, though its Node is renewed, its leases are, and
// its watches get bookmarks.
func TestANodeAtRestWritesNothing(t *testing.T) {
	forEveryClient(t, func(t *testing.T, asJSON bool) {
		a := newShop(t)
		s := openStore(t, t.TempDir())
		c := clientOf(t, newLine(a), s, asJSON)
		startParts(t, c)
		settle(time.Minute)
		if n, b := written(s); n == 0 || n > 4 || b > 64<<10 {
			t.Errorf("%d writes of %d bytes for the start", n, b)
		}
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-node-lease", Name: "edge-1"}}
		for i := range 360 {
			now := metav1.Unix(int64(2000+i), 0)
			if i%30 == 0 {
				n := node("edge-1")
				n.Status.Conditions[0].LastHeartbeatTime = now
				a.put(n)
				e := slice("web-a", "10.42.1.5")
				e.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: now.String()}
				a.put(e)
			}
			a.put(lease)
			if _, err := c.CoordinationV1().Leases("kube-node-lease").Get(context.Background(), "edge-1", metav1.GetOptions{}); err != nil {
				t.Fatal(err)
			}
			settle(10 * time.Second)
		}
		if n, b := written(s); n != 0 {
			t.Errorf("%d writes of %d bytes in an hour at rest", n, b)
		}
		flush(t, s)
		if n, b := written(s); n != 0 {
			t.Errorf("%d writes of %d bytes had been due", n, b)
		}
	})
}

// What pods need is on disk in seconds; what only tells how they are waits, and
// many changes are written once.
func TestChangesAreWrittenAsSoonAsTheyMatter(t *testing.T) {
	ready := func(p *corev1.Pod, restarts int32) *corev1.Pod {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "web", RestartCount: restarts}}
		return p
	}
	lim := defaultLimits()
	for _, c := range []struct {
		name   string
		change func(a *apiServer)
		within time.Duration // 0: never
	}{
		{"a new pod", func(a *apiServer) { a.put(pod("web-9", "edge-1")) }, lim.urgent},
		{"a pod that went", func(a *apiServer) { a.delete(pod("web-1", "")) }, lim.urgent},
		{"a pod that ended", func(a *apiServer) {
			p := pod("web-1", "edge-1")
			p.Status.Phase = corev1.PodSucceeded
			a.put(p)
		}, lim.urgent},
		{"a pod that is to go", func(a *apiServer) {
			p := pod("web-1", "edge-1")
			p.DeletionTimestamp = &metav1.Time{Time: time.Unix(3000, 0)}
			a.put(p)
		}, lim.urgent},
		{"a Secret", func(a *apiServer) { a.put(secret("password", "new")) }, lim.urgent},
		{"a Service", func(a *apiServer) { a.put(service("web", "10.43.0.98")) }, lim.urgent},
		{"endpoints", func(a *apiServer) { a.put(slice("web-a", "10.42.1.6")) }, lim.soon},
		{"the node's range", func(a *apiServer) {
			n := node("edge-1")
			n.Spec.PodCIDR = "10.42.7.0/24"
			a.put(n)
		}, lim.soon},
		{"a volume that is attached", func(a *apiServer) {
			n := node("edge-1")
			n.Status.VolumesAttached = []corev1.AttachedVolume{{Name: "disk"}}
			a.put(n)
		}, lim.soon},
		{"a pod's status", func(a *apiServer) { a.put(ready(pod("web-1", "edge-1"), 1)) }, lim.lazy},
		{"the node's images", func(a *apiServer) {
			n := node("edge-1")
			n.Status.Images = []corev1.ContainerImage{{Names: []string{"web:2"}}}
			a.put(n)
		}, lim.lazy},
		{"a probe of a pod", func(a *apiServer) {
			p := pod("web-1", "edge-1")
			p.Status.Conditions = nil
			a.put(p)
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newShop(t)
				s := openStore(t, t.TempDir())
				startParts(t, clientOf(t, newLine(a), s, false))
				settle(time.Minute)
				written(s)
				c.change(a)
				if c.within == 0 {
					settle(time.Hour)
					if n, _ := written(s); n > 0 {
						t.Error("written")
					}
					return
				}
				settle(c.within - time.Millisecond)
				if n, _ := written(s); n > 0 {
					t.Errorf("written before %v", c.within)
				}
				settle(2 * time.Millisecond)
				if n, _ := written(s); n != 1 {
					t.Errorf("%d writes within %v", n, c.within)
				}
			})
		})
	}
	t.Run("all the time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newShop(t)
			s := openStore(t, t.TempDir())
			startParts(t, clientOf(t, newLine(a), s, false))
			settle(time.Minute)
			written(s)
			for i := range 600 {
				a.put(configMap("settings", fmt.Sprint(i)))
				settle(time.Second)
			}
			if n, _ := written(s); n < 50 || n > 61 {
				t.Errorf("%d writes for a change every second in ten minutes", n)
			}
		})
	})
	t.Run("many at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newShop(t)
			s := openStore(t, t.TempDir())
			startParts(t, clientOf(t, newLine(a), s, false))
			settle(time.Minute)
			written(s)
			// A pod restarts all the time.
			for i := range 600 {
				a.put(ready(pod("web-1", "edge-1"), int32(i)))
				settle(time.Second)
			}
			settle(time.Second)
			if n, b := written(s); n != 1 || b > 4<<10 {
				t.Errorf("%d writes of %d bytes for 600 changes of a status in ten minutes", n, b)
			}
		})
	})
}

// Tokens are renewed all the time; that costs little.
func TestRenewedTokensCostFewWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPIServer(t)
		for i := range 100 {
			a.put(pod(fmt.Sprint("web-", i), "edge-1"))
		}
		s := openStore(t, t.TempDir())
		c := clientOf(t, newLine(a), s, false)
		startParts(t, c)
		settle(time.Second)
		renew := func() {
			for i := range 100 {
				if _, err := tokenFor(c, "web", fmt.Sprint("uid-", 101+i)); err != nil {
					t.Fatal(err)
				}
				settle(30 * time.Second)
			}
		}
		renew()
		settle(time.Minute)
		written(s)
		begin := time.Now()
		renew()
		settle(defaultLimits().lazy)
		n, b := written(s)
		if minutes := int64(time.Since(begin).Minutes()); n > minutes/10+1 || b/minutes > 4<<10 {
			t.Errorf("%d writes, %d bytes in %d minutes", n, b, minutes)
		}
	})
}

// files are all files of the store, by name.
func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = text
	}
	return all
}

func TestNothingOfTheClusterCanBeReadInTheFolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "edge")
		_, podToken := run(t, dir, newShop(t), false)
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("the folder has mode %v, %v", info.Mode(), err)
		}
		all := files(t, dir)
		if names := slices.Sorted(maps.Keys(all)); !slices.Equal(names, []string{"key", "objects"}) {
			t.Errorf("files %q", names)
		}
		for name, text := range all {
			for _, word := range []string{secretText, podToken, "password", "web-1", "edge-1", "shop"} {
				if bytes.Contains(text, []byte(word)) {
					t.Errorf("%q is in %s", word, name)
				}
			}
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v, %v", name, info.Mode(), err)
			}
		}
	})
}

// bootAlone is what a node that starts with no server gets of its store.
func bootAlone(t *testing.T, dir string) (*Store, *kubernetes.Clientset) {
	t.Helper()
	l := newLine(nil)
	l.become(refused)
	s := openStore(t, dir)
	return s, clientOf(t, l, s, false)
}

func names(t *testing.T, c kubernetes.Interface) ([]string, error) {
	t.Helper()
	pods, err := c.CoreV1().Pods("").List(context.Background(), metav1.ListOptions{FieldSelector: "spec.nodeName=edge-1"})
	if err != nil {
		return nil, err
	}
	var all []string
	for _, p := range pods.Items {
		all = append(all, p.Name)
	}
	return all, nil
}

// The power goes at any moment of any write: what is found is what was before or
// after it, and a pod comes with all that belongs to its list.
func TestAPowerCutAtAnyByteLeavesTheOldOrTheNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, dir := newShop(t), t.TempDir()
		s := openStore(t, dir)
		l := newLine(a)
		p := startParts(t, clientOf(t, l, s, false))
		settle(time.Minute)
		a.put(pod("web-4", "edge-1"))
		settle(time.Minute)
		a.delete(pod("web-1", ""))
		settle(time.Minute)
		p.stop()
		closeStore(t, s)
		whole := files(t, dir)

		states := map[string]int{}
		step := 41
		for at := 0; at <= len(whole["objects"]); at += step {
			cut := t.TempDir()
			for name, text := range whole {
				if name == "objects" {
					text = text[:at]
				}
				if err := os.WriteFile(filepath.Join(cut, name), text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s, c := bootAlone(t, cut)
			got, err := names(t, c)
			state := strings.Join(got, " ")
			if err != nil {
				state = "unknown"
			}
			states[state]++
			closeStore(t, s)
		}
		for state := range states {
			if !slices.Contains([]string{"unknown", "web-1 web-2", "web-1 web-2 web-4", "web-2 web-4"}, state) {
				t.Errorf("pods %q", state)
			}
		}
		if len(states) < 3 {
			t.Errorf("the cuts hit only %v", states)
		}
	})
}

func TestADamagedStoreIsPutAsideAndBegunAnew(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"a changed byte": func(t *testing.T, dir string) {
			path := filepath.Join(dir, "objects")
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text[200] ^= 1
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"another key": func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "key"), bytes.Repeat([]byte{7}, 32), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"no key": func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "key")); err != nil {
				t.Fatal(err)
			}
		},
		"half a key": func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, "key"), 16); err != nil {
				t.Fatal(err)
			}
		},
		"something else": func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "objects"), bytes.Repeat([]byte("hello "), 1000), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"nothing in it": func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, "objects"), 0); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, dir := newShop(t), t.TempDir()
				// Two writes: a fault in the last alone is an unfinished one.
				run(t, dir, a, false)
				a.put(pod("web-4", "edge-1"))
				s := openStore(t, dir)
				p := startParts(t, clientOf(t, newLine(a), s, false))
				settle(time.Minute)
				p.stop()
				closeStore(t, s)

				damage(t, dir)
				before := files(t, dir)["objects"]
				s, c := bootAlone(t, dir)
				if got, err := names(t, c); err == nil {
					t.Errorf("answers %q from a damaged store", got)
				}
				if aside := files(t, dir)["objects.damaged"]; !bytes.Equal(aside, before) {
					t.Errorf("%d bytes were put aside, of %d", len(aside), len(before))
				}
				closeStore(t, s)

				// It works again, also after the next start.
				run(t, dir, newShop(t), false)
				_, c = bootAlone(t, dir)
				if got, err := names(t, c); err != nil || !slices.Equal(got, []string{"web-1", "web-2"}) {
					t.Errorf("pods %q, %v", got, err)
				}
			})
		})
	}
}

func TestForgetAllLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, dir := newShop(t), t.TempDir()
		run(t, dir, a, false)
		key := files(t, dir)["key"]
		s, c := bootAlone(t, dir)
		if err := s.ForgetAll(); err != nil {
			t.Fatal(err)
		}
		if got, err := names(t, c); err == nil {
			t.Errorf("still answers %q", got)
		}
		all := files(t, dir)
		if len(all["objects"]) > 100 || bytes.Equal(all["key"], key) {
			t.Errorf("%d bytes are left; the key is another: %v", len(all["objects"]), !bytes.Equal(all["key"], key))
		}
		if st := s.Status(); st.Objects != 0 || st.Selections != 0 {
			t.Errorf("%+v", st)
		}
		closeStore(t, s)
		_, c = bootAlone(t, dir)
		if got, err := names(t, c); err == nil {
			t.Errorf("answers %q after a start", got)
		}
	})
}

// What a client reads to its end after everything was forgotten is of before.
func TestForgetAllEndsWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newShop(t)
		s := openStore(t, t.TempDir())
		l := newLine(a)
		p := startParts(t, clientOf(t, l, s, false))
		settle(time.Minute)
		req, err := http.NewRequest(http.MethodGet, "http://x/api/v1/services", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.Wrap(l).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := s.ForgetAll(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		a.put(pod("web-4", "edge-1"), secret("password", "new"))
		settle(time.Minute)
		if st := s.Status(); st.Objects != 0 || st.Selections != 0 {
			t.Errorf("%+v", st)
		}
		p.told()
	})
}

// The power goes while a list streams in: half of it is nothing.
func TestHalfAListIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, dir := newShop(t), t.TempDir()
		s := openStore(t, dir)
		l := newLine(a)
		req, err := http.NewRequest(http.MethodGet, "http://x/api/v1/services?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", "application/json")
		resp, err := s.Wrap(l).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		for b := []byte{0}; b[0] != '\n'; { // one event
			if _, err := io.ReadFull(resp.Body, b); err != nil {
				t.Fatal(err)
			}
		}
		flush(t, s)
		if n, _ := written(s); n == 0 {
			t.Fatal("nothing is written yet")
		}
		resp.Body.Close()
		closeStore(t, s)
		s, c := bootAlone(t, dir)
		if st := s.Status(); st.Objects != 0 || st.Selections != 0 {
			t.Errorf("%+v", st)
		}
		if _, err := c.CoreV1().Services("shop").Get(context.Background(), "db", metav1.GetOptions{}); err == nil {
			t.Error("a part of a list that never ended is kept")
		}
	})
}

// A list of how it was some time ago is no news.
func TestAListOfAnExactVersionIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir())
		l := newLine(newShop(t))
		c := clientOf(t, l, s, false)
		exact := metav1.ListOptions{ResourceVersion: "101", ResourceVersionMatch: metav1.ResourceVersionMatchExact}
		if _, err := c.CoreV1().Services("").List(context.Background(), exact); err != nil {
			t.Fatal(err)
		}
		l.become(refused)
		if _, err := c.CoreV1().Services("").List(context.Background(), metav1.ListOptions{}); err == nil {
			t.Error("kept as how it is")
		}
		l.become(up)
		settle(back)
		if _, err := c.CoreV1().Services("").List(context.Background(), metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		flush(t, s)
		l.become(refused)
		if _, err := c.CoreV1().Services("").List(context.Background(), metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.CoreV1().Services("").List(context.Background(), exact); err == nil {
			t.Error("how it is, is answered for how it was")
		}
	})
}

func TestAnotherNodesStoreIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		run(t, dir, newShop(t), false)
		s, err := Open(Config{Dir: dir, Node: "renamed", Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		if st := s.Status(); st.Objects != 0 {
			t.Errorf("%+v", st)
		}
		closeStore(t, s)
		s = openStore(t, dir)
		if st := s.Status(); st.Objects != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestAfterCloseRequestsOnlyPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, dir := newShop(t), t.TempDir()
		s := openStore(t, dir)
		l := newLine(a)
		c := clientOf(t, l, s, false)
		get := func() error {
			_, err := c.CoreV1().Nodes().Get(context.Background(), "edge-1", metav1.GetOptions{})
			return err
		}
		if err := get(); err != nil {
			t.Fatal(err)
		}
		closeStore(t, s)
		closeStore(t, s)
		if err := get(); err != nil {
			t.Errorf("after Close: %v", err)
		}
		l.become(refused)
		if err := get(); err == nil {
			t.Error("answered after Close")
		}
		if err := s.Flush(); err == nil {
			t.Error("flushed after Close")
		}
	})
}

// An offline watch ends when the store does, so that nobody hangs.
func TestCloseEndsSilentWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		run(t, dir, newShop(t), false)
		s, c := bootAlone(t, dir)
		w, err := c.CoreV1().Pods("").Watch(context.Background(), metav1.ListOptions{FieldSelector: "spec.nodeName=edge-1", ResourceVersion: "7"})
		if err != nil {
			t.Fatal(err)
		}
		closeStore(t, s)
		if e, ok := <-w.ResultChan(); ok {
			t.Errorf("told %v", e)
		}
	})
}

// A watch of old, without a bookmark at the end of what there is.
func TestAWatchFromNothingTellsAllThereIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		run(t, dir, newShop(t), false)
		_, c := bootAlone(t, dir)
		w, err := c.CoreV1().Pods("").Watch(context.Background(), metav1.ListOptions{FieldSelector: "spec.nodeName=edge-1"})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"web-1", "web-2"} {
			if e := <-w.ResultChan(); e.Type != "ADDED" || e.Object.(*corev1.Pod).Name != name {
				t.Errorf("told %v", e)
			}
		}
		synctest.Wait()
		select {
		case e := <-w.ResultChan():
			t.Errorf("told %v", e)
		default:
		}
		w.Stop()
	})
}

// A list that comes in pieces is kept when it is whole.
func TestAListInPagesIsKeptWhenItIsWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newShop(t)
		a.pageSize = 1
		s := openStore(t, t.TempDir())
		l := newLine(a)
		c := clientOf(t, l, s, false)
		ctx, services := context.Background(), c.CoreV1().Services("")
		token := ""
		for i := range 3 {
			page, err := services.List(ctx, metav1.ListOptions{Limit: 1, Continue: token})
			if err != nil {
				t.Fatal(err)
			}
			token = page.Continue
			flush(t, s)
			l.become(refused)
			whole, err := services.List(ctx, metav1.ListOptions{Limit: 1})
			if i < 2 && err == nil {
				t.Errorf("answered after %d pages: %d Services", i+1, len(whole.Items))
			}
			if i == 2 && (err != nil || len(whole.Items) != 3 || whole.Continue != "") {
				t.Errorf("kept %d Services, %v", len(whole.Items), err)
			}
			l.become(up)
			settle(back)
		}
		// A later list that ends half way changes nothing.
		a.delete(service("web", ""))
		if _, err := services.List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
			t.Fatal(err)
		}
		flush(t, s)
		l.become(refused)
		if whole, err := services.List(ctx, metav1.ListOptions{}); err != nil || len(whole.Items) != 3 {
			t.Errorf("kept %d Services, %v", len(whole.Items), err)
		}
	})
}

// The answer to a GET can be behind what a watch has told.
func TestAnOldAnswerDoesNotReplaceANewerObject(t *testing.T) {
	x, now := newIndex(), time.Now()
	q := question{selection: "all", id: objectID{resource: "v1/services"}}
	sel := x.selection(q)
	c := func(rv, text string) content {
		return content{id: objectID{"v1/services", "shop", "web"}, rv: rv, uid: "1", value: []byte(text), full: digest(sum8(text)), vital: digest(sum8(text))}
	}
	steps := []struct {
		c     content
		s     *selection
		trust bool
		want  string
	}{
		{c("100", "a"), sel, true, "a"},
		{c("105", "b"), sel, false, "b"},
		{c("100", "a"), nil, false, "b"},
		{c("105", "b"), nil, false, "b"},
		{c("99", "c"), sel, false, "b"},
		{c("110", "d"), nil, false, "d"},
		{c("50", "e"), sel, true, "e"}, // a datastore that was set back
		{c("9", "f"), sel, false, "e"}, // numbers, not text
		{c("opaque", "g"), sel, false, "g"},
	}
	for i, step := range steps {
		x.put(step.c, step.s, step.trust, now)
		if got := string(x.objects[step.c.id].value); got != step.want {
			t.Errorf("step %d: %q, want %q", i, got, step.want)
		}
	}
}

func sum8(text string) [8]byte {
	s := sha256.Sum256([]byte(text))
	return [8]byte(s[:8])
}

// An object is kept as long as any list has it, and what was asked for by name
// until the server says that it is gone.
func TestWhatTheServerSaysIsGoneGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newShop(t)
		s := openStore(t, t.TempDir())
		l := newLine(a)
		c := clientOf(t, l, s, false)
		startParts(t, c)
		settle(time.Second)
		readByName(t, c)
		ctx, core := context.Background(), c.CoreV1()

		headless := service("db", "None")
		a.put(headless) // out of kube-proxy's list, and still in DNS'
		a.delete(claim("data", ""))
		if _, err := core.PersistentVolumeClaims("shop").Get(ctx, "data", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		// A pod that is read by name is not kept for that.
		if _, err := core.Pods("shop").Get(ctx, "web-3", metav1.GetOptions{}); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		l.become(refused)
		if all, err := core.Services("").List(ctx, metav1.ListOptions{}); err != nil || len(all.Items) != 3 {
			t.Errorf("all Services: %d, %v", len(all.Items), err)
		}
		proxied, err := core.Services("").List(ctx, metav1.ListOptions{LabelSelector: "!service.kubernetes.io/service-proxy-name", FieldSelector: "spec.clusterIP!=None"})
		if err != nil || len(proxied.Items) != 1 {
			t.Errorf("kube-proxy's Services: %d, %v", len(proxied.Items), err)
		}
		if _, err := core.PersistentVolumeClaims("shop").Get(ctx, "data", metav1.GetOptions{}); err == nil || apierrors.IsNotFound(err) {
			t.Errorf("a claim that is gone: %v", err)
		}
		if _, err := core.Pods("shop").Get(ctx, "web-3", metav1.GetOptions{}); err == nil {
			t.Error("another node's pod is kept")
		}
	})
}

// What only pods needed that went is cleared up, in time; what any needs stays,
// however long ago it was read.
func TestWhatNoPodNeedsIsClearedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, dir := newShop(t), t.TempDir()
		s := openStore(t, dir)
		l := newLine(a)
		c := clientOf(t, l, s, false)
		ctx, core := context.Background(), c.CoreV1()
		p := startParts(t, c)
		settle(time.Second)
		readByName(t, c)
		// A pod with everything of its own, in another namespace, read once, as
		// the kubelet reads an environment.
		job := pod("job", "edge-1")
		job.Namespace = "batch"
		job.Spec.Volumes[0].Secret.SecretName = "job-secret"
		job.Spec.Volumes[1].PersistentVolumeClaim.ClaimName = "job-claim"
		job.Spec.Volumes = append(job.Spec.Volumes, corev1.Volume{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}})
		sec, pvc, own := secret("job-secret", "x"), claim("job-claim", "pv-job"), claim("job-scratch", "pv-scratch")
		sec.Namespace, pvc.Namespace, own.Namespace = "batch", "batch", "batch"
		pv := volume("pv-job")
		pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "disks", NodePublishSecretRef: &corev1.SecretReference{Namespace: "storage", Name: "disk-key"}}
		diskKey := secret("disk-key", "y")
		diskKey.Namespace = "storage"
		volumeName := "pv-job"
		va := &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: "csi-1234"}, Spec: storagev1.VolumeAttachmentSpec{Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &volumeName}}}
		a.put(job, sec, pvc, own, pv, volume("pv-scratch"), diskKey, va)
		settle(time.Second)
		read := func() map[string]error {
			errs := map[string]error{}
			_, errs["secret"] = core.Secrets("batch").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=job-secret"})
			_, errs["claim"] = core.PersistentVolumeClaims("batch").Get(ctx, "job-claim", metav1.GetOptions{})
			_, errs["ephemeral claim"] = core.PersistentVolumeClaims("batch").Get(ctx, "job-scratch", metav1.GetOptions{})
			_, errs["volume"] = core.PersistentVolumes().Get(ctx, "pv-job", metav1.GetOptions{})
			_, errs["ephemeral volume"] = core.PersistentVolumes().Get(ctx, "pv-scratch", metav1.GetOptions{})
			_, errs["secret of the volume"] = core.Secrets("storage").Get(ctx, "disk-key", metav1.GetOptions{})
			_, errs["attachment"] = c.StorageV1().VolumeAttachments().Get(ctx, "csi-1234", metav1.GetOptions{})
			return errs
		}
		for what, err := range read() {
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		uid := func() string {
			live, err := core.Pods("batch").Get(ctx, "job", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return string(live.UID)
		}()
		if _, err := tokenFor(c, "web", uid); err != nil {
			t.Fatal(err)
		}
		// Its list is left, and so are the others that this client has.
		check := func(when string, want bool) {
			t.Helper()
			l.become(refused)
			for what, err := range read() {
				if (err == nil) != want {
					t.Errorf("%s: %s: %v", when, what, err)
				}
			}
			if _, err := tokenFor(c, "web", uid); (err == nil) != want {
				t.Errorf("%s: token: %v", when, err)
			}
			readByName(t, c)
			p.synced()
			l.become(up)
			settle(back)
		}
		settle(48 * time.Hour)
		check("while the pod is there", true)
		a.delete(job)
		settle(time.Minute)
		check("a minute after it went", true)
		settle(2 * time.Hour)
		check("two hours after it went", false)

		if all, err := names(t, c); err != nil || !slices.Equal(all, []string{"web-1", "web-2"}) {
			t.Errorf("pods %q, %v", all, err)
		}
	})
}

// A client's later version asks by other selectors: what the old one kept goes.
func TestASelectionThatNobodyUsesGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newShop(t)
		s := openStore(t, t.TempDir())
		l := newLine(a)
		c := clientOf(t, l, s, false)
		startParts(t, c)
		ctx, core := context.Background(), c.CoreV1()
		if _, err := core.Services("").List(ctx, metav1.ListOptions{LabelSelector: "old"}); err != nil {
			t.Fatal(err)
		}
		if _, err := core.Secrets("").List(ctx, metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		st := s.Status()
		settle(25 * time.Hour)
		after := s.Status()
		if after.Selections != st.Selections-2 || after.Objects != st.Objects-1 {
			t.Errorf("%d selections and %d objects, before %d and %d", after.Selections, after.Objects, st.Selections, st.Objects)
		}
		l.become(refused)
		if _, err := core.Services("").List(ctx, metav1.ListOptions{LabelSelector: "old"}); err == nil {
			t.Error("still kept")
		}
		if all, err := core.Services("").List(ctx, metav1.ListOptions{}); err != nil || len(all.Items) != 3 {
			t.Errorf("all Services: %d, %v", len(all.Items), err)
		}
		// Not while no server can be reached: nobody can ask for it then.
		settle(72 * time.Hour)
		if st := s.Status(); st.Selections != after.Selections {
			t.Errorf("%d selections, before %d", st.Selections, after.Selections)
		}
	})
}

// A cluster that is too large costs the node its Services first, and never its
// pods.
func TestTheLimitIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, dir := newShop(t), t.TempDir()
		for i := range 300 {
			e := slice(fmt.Sprintf("big-%d", i), "10.42.1.5")
			e.Annotations = map[string]string{"x": strings.Repeat("x", 2000)}
			a.put(e)
		}
		s, err := Open(Config{Dir: dir, Node: "edge-1", Log: testLog(t), MaxBytes: 100 << 10})
		if err != nil {
			t.Fatal(err)
		}
		l := newLine(a)
		c := clientOf(t, l, s, false)
		p := startParts(t, c)
		readByName(t, c)
		settle(time.Minute)
		p.synced()
		e := slice("big-1", "10.42.1.6")
		a.put(e, pod("web-4", "edge-1"))
		settle(time.Minute)
		if size := s.Status().Bytes; size > 100<<10+slack {
			t.Errorf("the file has %d bytes", size)
		}
		written(s)
		settle(time.Hour)
		if n, _ := written(s); n > 0 {
			t.Errorf("%d writes at rest", n)
		}
		p.stop()
		closeStore(t, s)
		_, c = bootAlone(t, dir)
		if all, err := names(t, c); err != nil || !slices.Equal(all, []string{"web-1", "web-2", "web-4"}) {
			t.Errorf("pods %q, %v", all, err)
		}
		if all, err := c.CoreV1().Services("").List(context.Background(), metav1.ListOptions{}); err != nil || len(all.Items) != 3 {
			t.Errorf("Services: %d, %v", len(all.Items), err)
		}
		if all, err := c.DiscoveryV1().EndpointSlices("").List(context.Background(), metav1.ListOptions{LabelSelector: "!service.kubernetes.io/headless"}); err == nil {
			t.Errorf("a list that was too large is answered with %d", len(all.Items))
		}
	})
}

// The file does not grow with what changes, and survives being rewritten.
func TestTheFileIsRewrittenWhenMostOfItIsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, dir := newShop(t), t.TempDir()
		s := openStore(t, dir)
		p := startParts(t, clientOf(t, newLine(a), s, false))
		settle(time.Minute)
		written(s)
		var most, changed int64
		for i := range 600 {
			text := strings.Repeat("x", 3000) + fmt.Sprint(i)
			changed += int64(len(text))
			a.put(configMap("settings", text))
			settle(11 * time.Second)
			most = max(most, s.Status().Bytes)
		}
		_, b := written(s)
		if most > 2*slack+64<<10 || b > 2*changed {
			t.Errorf("the file had %d bytes; %d were written for %d that changed", most, b, changed)
		}
		content := p.content()
		p.stop()
		closeStore(t, s)
		s, c := bootAlone(t, dir)
		p = startParts(t, c)
		settle(time.Second)
		if got := p.content(); !maps.Equal(got, content) {
			t.Errorf("kept %v\nwant %v", got, content)
		}
		_ = s
	})
}

// A disk that fails is told once; what it lost is not answered with, and what
// comes anew is kept when it works again.
func TestADiskThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, dir := newShop(t), t.TempDir()
		s := openStore(t, dir)
		l := newLine(a)
		c := clientOf(t, l, s, false)
		p := startParts(t, c)
		settle(time.Minute)
		// Neither the file nor a new one can be written.
		if err := s.do(s.file.Close); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(dir, "objects.new"), 0o700); err != nil {
			t.Fatal(err)
		}
		a.put(pod("web-4", "edge-1"))
		settle(time.Minute)
		if !s.Status().Failing {
			t.Error("nobody is told")
		}
		l.become(refused)
		if _, err := names(t, c); err == nil {
			t.Error("answers without the pods that can't be read")
		}
		l.become(up)
		settle(back)
		if err := os.Remove(filepath.Join(dir, "objects.new")); err != nil {
			t.Fatal(err)
		}
		settle(2 * time.Minute)
		if s.Status().Failing {
			t.Error("still failing")
		}
		p.stop()
		// Clients list anew, as when they start.
		p = startParts(t, c)
		settle(time.Minute)
		content := p.content()
		p.stop()
		closeStore(t, s)
		_, c = bootAlone(t, dir)
		p = startParts(t, c)
		settle(time.Second)
		if got := p.content(); !maps.Equal(got, content) {
			t.Errorf("kept %v\nwant %v", got, content)
		}
	})
}

// Types that the store does not know pass, and are not kept.
func TestUnknownTypesPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := `{"kind":"WidgetList","apiVersion":"example.com/v1","metadata":{"resourceVersion":"5"},"items":[]}`
		l := newLine(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, body)
		}))
		s := openStore(t, t.TempDir())
		rt := s.Wrap(l)
		for range 2 {
			for _, path := range []string{"/apis/example.com/v1/widgets", "/apis/example.com/v1/widgets?watch=true", "/apis/example.com/v1/widgets/w", "/openapi/v3", "/version"} {
				req, err := http.NewRequest(http.MethodGet, "http://x"+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Accept", "application/json")
				resp, err := rt.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || string(got) != body {
					t.Errorf("%s: %q, %v", path, got, err)
				}
			}
		}
		flush(t, s)
		if st := s.Status(); st.Objects != 0 || st.Selections != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// Clients that read faster than the store takes in are held back at last, not its
// memory filled.
func TestTheQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		j := job{size: maxQueued, do: func() urgency { return none }}
		q.push(j)
		q.push(j) // what is one too many still goes in
		pushed := make(chan bool, 2)
		for range 2 {
			go func() { pushed <- q.push(j) }()
		}
		synctest.Wait()
		if len(pushed) > 0 {
			t.Error("the queue took more than it may")
		}
		q.pop()
		q.pop()
		synctest.Wait()
		if len(pushed) != 2 {
			t.Error("nobody was let in")
		}
		go func() { pushed <- q.push(j) }()
		synctest.Wait()
		q.close()
		synctest.Wait()
		<-pushed
		<-pushed
		if <-pushed {
			t.Error("a closed queue took a job")
		}
	})
}

func TestAskReadsRequests(t *testing.T) {
	for _, c := range []struct {
		method, url, accept string
		verb                verb
		id                  objectID
		selection           string
		json, no            bool
	}{
		{url: "/api/v1/pods?fieldSelector=spec.nodeName%3Da&limit=500&resourceVersion=0", verb: list, id: objectID{resource: "v1/pods"}, selection: "/api/v1/pods?fieldSelector=spec.nodeName%3Da"},
		{url: "/api/v1/pods?watch=true&fieldSelector=spec.nodeName%3Da&resourceVersion=7", verb: watch, id: objectID{resource: "v1/pods"}, selection: "/api/v1/pods?fieldSelector=spec.nodeName%3Da"},
		{url: "/api/v1/namespaces/a/pods/b", id: objectID{"v1/pods", "a", "b"}},
		{url: "/api/v1/namespaces", verb: list, id: objectID{resource: "v1/namespaces"}, selection: "/api/v1/namespaces"},
		{url: "/api/v1/namespaces/a", id: objectID{resource: "v1/namespaces", name: "a"}},
		{url: "/api/v1/namespaces/a/status", no: true},
		{url: "/apis/storage.k8s.io/v1/csinodes/a", id: objectID{resource: "storage.k8s.io/v1/csinodes", name: "a"}},
		{url: "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=!x", verb: list, id: objectID{resource: "discovery.k8s.io/v1/endpointslices"}, selection: "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=%21x"},
		{url: "/api/v1/nodes/a", accept: "application/json, */*", id: objectID{resource: "v1/nodes", name: "a"}, json: true},
		{url: "/api/v1/nodes/a", accept: "application/cbor,application/json", id: objectID{resource: "v1/nodes", name: "a"}, json: true},
		{url: "/api/v1/nodes/a", accept: "application/json;as=Table;v=v1;g=meta.k8s.io,application/json", no: true},
		{url: "/api/v1/nodes/a", accept: "application/yaml", no: true},
		{url: "/api/v1/namespaces/a/pods/b/log", no: true},
		{url: "/api/v1/watch/pods", no: true},
		{url: "/api/v1/nodes/a?watch=1", no: true},
		{url: "/api/v1", no: true},
		{url: "/apis/apps/v1", no: true},
		{url: "/readyz", no: true},
		{url: "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/a", no: true},
		{url: "/api/v1/events", no: true},
		{method: "POST", url: "/api/v1/namespaces/a/serviceaccounts/b/token", verb: token, id: objectID{"v1/serviceaccounts", "a", "b"}},
		{method: "POST", url: "/api/v1/namespaces/a/pods", no: true},
		{method: "PATCH", url: "/api/v1/nodes/a/status", no: true},
		{method: "PUT", url: "/apis/storage.k8s.io/v1/csinodes/a", verb: change, id: objectID{resource: "storage.k8s.io/v1/csinodes", name: "a"}},
		{method: "DELETE", url: "/apis/storage.k8s.io/v1/csinodes/a", verb: remove, id: objectID{resource: "storage.k8s.io/v1/csinodes", name: "a"}},
		{method: "HEAD", url: "/api/v1/nodes/a", no: true},
	} {
		method, accept := c.method, c.accept
		if method == "" {
			method = http.MethodGet
		}
		if accept == "" {
			accept = "application/vnd.kubernetes.protobuf,application/json"
		}
		req, err := http.NewRequest(method, "https://x"+c.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", accept)
		q, ok := ask(req)
		if ok == c.no {
			t.Errorf("%s %s: understood: %v", method, c.url, ok)
		}
		if ok && (q.verb != c.verb || q.id != c.id || q.selection != c.selection || q.json != c.json) {
			t.Errorf("%s %s: %+v", method, c.url, q)
		}
	}
}

func TestByName(t *testing.T) {
	for selection, want := range map[string][2]string{
		"/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3Db":              {"a", "b"},
		"/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3Db%2Cx%3Dy":      {"a", ""},
		"/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%21%3Db":           {"a", ""},
		"/api/v1/nodes?fieldSelector=metadata.name%3Db":                             {"", "b"},
		"/api/v1/namespaces/a/secrets":                                              {"a", ""},
		"/api/v1/namespaces?fieldSelector=metadata.name%3Da":                        {"", "a"},
		"/apis/x.io/v1/namespaces/a/things?fieldSelector=metadata.name%3Db":         {"a", "b"},
		"/api/v1/pods?fieldSelector=spec.nodeName%3Dmetadata.name%3Db":              {"", ""},
		"/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3D&labelSelector": {"a", ""},
	} {
		if got := [2]string{namespaceOf(selection), byName(selection)}; got != want {
			t.Errorf("%s: %q, want %q", selection, got, want)
		}
	}
}

// The records of the file, as written and read; and whatever else they could be.
func FuzzReplay(f *testing.F) {
	now := time.Unix(5000, 0)
	x := newIndex()
	sel := x.selection(question{selection: "all", id: objectID{resource: "v1/pods"}})
	x.put(content{id: objectID{"v1/pods", "a", "b"}, rv: "7", uid: "u", value: []byte("v")}, sel, true, now)
	var w writer
	w.byte(recChanges)
	w.head("edge-1", now)
	w.selection(sel)
	w.gone(objectID{"v1/pods", "a", "c"})
	w.noSelection(9)
	rec, _ := objectRecord(x.objects[objectID{"v1/pods", "a", "b"}], []byte("v"))
	f.Add([]byte(w), rec)
	f.Add(rec, []byte(w))
	f.Add([]byte("c"), []byte{})
	f.Fuzz(func(t *testing.T, one, two []byte) {
		y := newIndex()
		for _, rec := range [][]byte{one, two} {
			if err := y.replay(sealed.Ref{}, rec); err != nil {
				return
			}
		}
		y.loaded(now)
		for id, o := range y.objects {
			if o.id != id || o.head+o.length < o.head {
				t.Errorf("%v is %+v", id, o)
			}
			for _, n := range o.in {
				if y.numbers[n] == nil {
					t.Errorf("%v is in the selection %d, which is none", id, n)
				}
			}
		}
	})
}
