package cli

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
)

func TestMemoryLimitOfTheStartFollowsTheLiveHeap(t *testing.T) {
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	settle := hurry()
	large := make([]byte, startHeapLimit)
	// The finalizer runs in a goroutine of its own, after a collection.
	for debug.SetMemoryLimit(-1) < 2*int64(len(large)) {
		runtime.GC()
		runtime.Gosched()
	}
	runtime.KeepAlive(large)
	settle()
	if got := debug.SetMemoryLimit(-1); got != math.MaxInt64 {
		t.Errorf("after the start a limit of %d bytes stays", got)
	}
	if got := debug.SetGCPercent(-1); got != idleGCPercent {
		t.Errorf("after the start the collector works at %d %%", got)
	}
}
