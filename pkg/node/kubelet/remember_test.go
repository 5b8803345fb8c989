package kubelet

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runtimeOf is a container runtime with pods, and a container in each.
type runtimeOf struct {
	internalapi.RuntimeService
	events chan struct{} // closed by the test to end the stream
	code   codes.Code    // how the stream ends

	mu    sync.Mutex
	pods  []string
	asked int
	tell  chan *runtimeapi.ContainerEventResponse
	slow  func() // called amidst a list
}

func (r *runtimeOf) GetContainerEvents(ctx context.Context, to chan *runtimeapi.ContainerEventResponse, connected func(runtimeapi.RuntimeService_GetContainerEventsClient)) error {
	if r.code == codes.Unimplemented {
		return status.Error(r.code, "no events")
	}
	connected(nil)
	for {
		select {
		case e := <-r.tell:
			to <- e
		case <-r.events:
			return errors.New("the stream ended")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *runtimeOf) ListPodSandbox(context.Context, *runtimeapi.PodSandboxFilter) (all []*runtimeapi.PodSandbox, err error) {
	r.mu.Lock()
	r.asked++
	for i, name := range r.pods {
		all = append(all, &runtimeapi.PodSandbox{Id: name, State: runtimeapi.PodSandboxState(i % 2)})
	}
	slow := r.slow
	r.mu.Unlock()
	if slow != nil {
		slow()
	}
	return all, nil
}

func (r *runtimeOf) ListContainers(context.Context, *runtimeapi.ContainerFilter) (all []*runtimeapi.Container, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	for _, name := range r.pods {
		all = append(all, &runtimeapi.Container{Id: name, State: runtimeapi.ContainerState_CONTAINER_RUNNING})
	}
	return all, nil
}

func (r *runtimeOf) StopPodSandbox(context.Context, string) error {
	r.set("b")
	return nil
}

func (r *runtimeOf) set(pods ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pods = pods
}

func (r *runtimeOf) times() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// told is a runtime whose changes are listened to, in a bubble of time.
func told(t *testing.T, code codes.Code, do func(*remembering, *runtimeOf)) {
	synctest.Test(t, func(t *testing.T) {
		rt := &runtimeOf{pods: []string{"a", "b"}, tell: make(chan *runtimeapi.ContainerEventResponse), events: make(chan struct{}), code: code}
		r := remember(rt)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var done sync.WaitGroup
		defer done.Wait()
		defer stop()
		done.Go(func() { r.listen(ctx) })
		synctest.Wait()
		do(r, rt)
	})
}

func podsOf(t *testing.T, r *remembering, f *runtimeapi.PodSandboxFilter) []string {
	t.Helper()
	all, err := r.ListPodSandbox(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range all {
		names = append(names, p.Id)
	}
	return names
}

func TestRuntimeIsAskedAgainWhenItTellsOfAChange(t *testing.T) {
	told(t, codes.OK, func(r *remembering, rt *runtimeOf) {
		for range 3 {
			if got := podsOf(t, r, nil); !slices.Equal(got, []string{"a", "b"}) {
				t.Errorf("pods %v", got)
			}
			if c, err := r.ListContainers(t.Context(), &runtimeapi.ContainerFilter{}); err != nil || len(c) != 2 {
				t.Errorf("containers %v, %v", c, err)
			}
			time.Sleep(time.Second)
		}
		if n := rt.times(); n != 2 {
			t.Errorf("asked %d times for what had not changed, pods and containers", n)
		}
		rt.set("a", "b", "c")
		rt.tell <- &runtimeapi.ContainerEventResponse{}
		synctest.Wait()
		if got := podsOf(t, r, nil); len(got) != 3 {
			t.Errorf("after an event: %v", got)
		}
		if err := r.StopPodSandbox(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if got := podsOf(t, r, nil); !slices.Equal(got, []string{"b"}) {
			t.Errorf("after a pod was stopped: %v", got)
		}
		// One that was never told.
		rt.set()
		if got := podsOf(t, r, nil); len(got) != 1 {
			t.Errorf("at once: %v", got)
		}
		time.Sleep(rememberFor)
		if got := podsOf(t, r, nil); len(got) != 0 {
			t.Errorf("after %v: %v", rememberFor, got)
		}
	})
}

func TestAListThatAChangeOvertookIsNotRemembered(t *testing.T) {
	told(t, codes.OK, func(r *remembering, rt *runtimeOf) {
		rt.slow = func() {
			rt.set("c")
			rt.tell <- &runtimeapi.ContainerEventResponse{}
			synctest.Wait()
		}
		podsOf(t, r, nil)
		rt.slow = nil
		if got := podsOf(t, r, nil); !slices.Equal(got, []string{"c"}) {
			t.Errorf("pods %v", got)
		}
	})
}

func TestListsAreFilteredAsTheRuntimeWould(t *testing.T) {
	told(t, codes.OK, func(r *remembering, rt *runtimeOf) {
		ready := &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}}
		if got := podsOf(t, r, ready); !slices.Equal(got, []string{"a"}) {
			t.Errorf("ready pods %v", got)
		}
		if got := podsOf(t, r, nil); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("pods, after those that are ready: %v", got)
		}
		exited := &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_EXITED}}
		if c, err := r.ListContainers(t.Context(), exited); err != nil || len(c) != 0 {
			t.Errorf("ended containers %v, %v", c, err)
		}
		before := rt.times()
		podsOf(t, r, &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"a": "b"}})
		podsOf(t, r, &runtimeapi.PodSandboxFilter{Id: "a"})
		if n := rt.times() - before; n != 2 {
			t.Errorf("asked %d times in place of 2", n)
		}
	})
}

func TestARuntimeThatDoesNotTellIsAskedEachTime(t *testing.T) {
	told(t, codes.Unimplemented, func(r *remembering, rt *runtimeOf) {
		for range 3 {
			podsOf(t, r, nil)
		}
		if n := rt.times(); n != 3 {
			t.Errorf("one that can't tell was asked %d times", n)
		}
	})
	told(t, codes.OK, func(r *remembering, rt *runtimeOf) {
		podsOf(t, r, nil)
		close(rt.events)
		synctest.Wait()
		rt.set()
		if got := podsOf(t, r, nil); len(got) != 0 {
			t.Errorf("after the stream ended: %v", got)
		}
	})
}
