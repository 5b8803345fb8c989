package usage

import (
	"context"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"

	"github.com/knarr-dev/knarr/pkg/component"
)

func TestWhatAComponentUsesIsToldByItsLabel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	pprof.Do(ctx, pprof.Labels(component.Label, "busy"), func(ctx context.Context) {
		go func() { // inherits the label
			defer close(ended)
			for n := 0; ctx.Err() == nil; n++ {
				_ = n * n
			}
		}()
		for range 3 {
			go func() { <-ctx.Done() }()
		}
	})
	defer func() { cancel(); <-ended }()
	r, err := Take(t.Context(), 500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	var busy, shared *Part
	for i, p := range r.Parts {
		switch p.Name {
		case "busy":
			busy = &r.Parts[i]
		case Shared:
			shared = &r.Parts[i]
		}
	}
	if busy == nil || busy.Goroutines != 4 || busy.CPU < 0.05 {
		t.Errorf("the busy one: %+v in %+v", busy, r)
	}
	if shared == nil || shared.Goroutines == 0 || r.Parts[len(r.Parts)-1].Name != Shared {
		t.Errorf("the others: %+v in %+v", shared, r)
	}
	if r.HeapBytes == 0 || r.ResidentBytes == 0 && runtime.GOOS == "linux" || r.Seconds < 0.4 {
		t.Errorf("%+v", r)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := Take(ctx, time.Hour); err == nil {
		t.Error("nobody waits for it any more, and it goes on")
	}
}

func TestHeapIsTheOutermostOwners(t *testing.T) {
	for function, want := range map[string]string{
		"k8s.io/kubernetes/pkg/kubelet.(*Kubelet).Run":                    "kubelet",
		"k8s.io/kubernetes/pkg/controller/job.(*Controller).Run":          "controller-manager",
		"k8s.io/kubernetes/pkg/controlplane/apiserver.CreateServer":       "apiserver",
		"github.com/knarr-dev/knarr/pkg/addons/dns.(*DNS).Run":            "dns",
		"k8s.io/client-go/tools/cache.(*Reflector).ListAndWatch":          "",
		"github.com/knarr-dev/knarr/pkg/component.(*Group).attempt.func1": "",
	} {
		if got := ownerOf(function); got != want {
			t.Errorf("%s is %q's, not %q's", function, got, want)
		}
	}
	if got := ownerOfStack(nil); got != Shared {
		t.Errorf("an empty stack is %s's", got)
	}
	if got := scaled(1, 1<<30, 512<<10); got != 1<<30 {
		t.Errorf("a large object counts as %d", got)
	}
	if got := scaled(1, 512<<10, 512<<10); got < 800<<10 || got > 850<<10 {
		t.Errorf("an object of the rate's size counts as %d", got)
	}
}

func FuzzProfile(f *testing.F) {
	f.Add([]byte{0x12, 0x04, 0x12, 0x02, 0x01, 0x05, 0x32, 0x01, 'a'})
	f.Fuzz(func(t *testing.T, text []byte) {
		_, _, _ = readSample(text, []string{"", "a"})
		countRoutines(string(text))
	})
}
