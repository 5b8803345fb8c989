package cluster

import (
	"bytes"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// leftByUpstream are the goroutines that parts of upstream leave in the process when
// a control plane has stopped. docs/embedding.md tells of them, too.
func leftByUpstream() []goleak.Option {
	const queue, wait = "k8s.io/client-go/util/workqueue.", "k8s.io/apimachinery/pkg/util/wait."
	return []goleak.Option{
		// The API server's two client certificates, for kubelets and for extension
		// API servers, are looked after for ever: client-go's cache of transports
		// has no end. Each has a work queue, and sleeps.
		goleak.IgnoreTopFunction("k8s.io/client-go/transport.(*dynamicClientCert).run"),
		goleak.IgnoreAnyFunction("k8s.io/client-go/transport.(*dynamicClientCert).processNextWorkItem"),
		goleak.IgnoreTopFunction(wait + "waitForWithContext"),
		goleak.IgnoreTopFunction(wait + "PollImmediateUntilWithContext.poller.func1.1"),
		goleak.IgnoreTopFunction(queue + "(*Typed[...]).updateUnfinishedWorkLoop"),
		goleak.IgnoreTopFunction(queue + "(*delayingType[...]).waitingLoop"),
		// The health check of the log, one for all API servers of a process.
		goleak.IgnoreTopFunction(wait + "BackoffUntilWithContext"),
		// Lists that waited for the cache: a timer of three seconds, which ends.
		goleak.IgnoreTopFunction("k8s.io/apiserver/pkg/storage/cacher.(*watchCache).waitUntilFreshAndBlock.func2"),
		// The scheduler's recorder of figures sleeps for a second, and ends.
		goleak.IgnoreAnyFunction("k8s.io/kubernetes/pkg/scheduler/metrics.(*MetricAsyncRecorder).run"),
	}
}

// leftForEach is how many goroutines of that kind a control plane leaves at most,
// those that end by themselves aside.
const leftForEach = 16

// lasting counts goroutines without those that end by themselves: at most so many are
// waited for, for others end with their connections a moment later, and nothing tells.
func lasting(most int) int {
	count := countLasting()
	for deadline := time.Now().Add(5 * time.Second); count > most && time.Now().Before(deadline); count = countLasting() {
		time.Sleep(50 * time.Millisecond)
	}
	return count
}

func countLasting() int {
	stacks := make([]byte, 64<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return bytes.Count(stacks, []byte("\ngoroutine ")) - bytes.Count(stacks, []byte("waitUntilFreshAndBlock.func2(")) -
		bytes.Count(stacks, []byte("(*MetricAsyncRecorder).run("))
}

// checkNothingIsLeft compares with the goroutines and open files of before.
func checkNothingIsLeft(t *testing.T, goroutines goleak.Option, before []string) {
	t.Helper()
	if err := goleak.Find(append(leftByUpstream(), goroutines)...); err != nil {
		t.Error(err)
	}
	for _, file := range openFiles(t) {
		i := slices.Index(before, file)
		if i >= 0 {
			before = slices.Delete(before, i, i+1)
			continue
		}
		if !strings.HasPrefix(file, "anon_inode:") && !strings.HasPrefix(file, "/dev/") {
			t.Errorf("%s is open", file)
		}
	}
}
