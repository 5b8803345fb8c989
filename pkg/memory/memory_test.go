package memory

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

func TestMemoryLimitOfTheStartFollowsTheLiveHeap(t *testing.T) {
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	h := Hurry(StartHeap)
	large := make([]byte, StartHeap)
	// The finalizer runs in a goroutine of its own, after a collection.
	for debug.SetMemoryLimit(-1) < 2*int64(len(large)) {
		runtime.GC()
		runtime.Gosched()
	}
	runtime.KeepAlive(large)
	h.settle()
	if got := debug.SetMemoryLimit(-1); got != math.MaxInt64 {
		t.Errorf("after the start a limit of %d bytes stays", got)
	}
	if got := debug.SetGCPercent(-1); got <= idleGCPercent {
		t.Errorf("the first pods have room for %d %%", got)
	}
}

func TestCollectionsThatFollowEachOtherMakeRoom(t *testing.T) {
	now := time.Now()
	h := &Heap{memory: 8 << 30, busy: true, last: now}
	const live = 100 << 20
	for _, step := range []struct {
		after time.Duration
		want  int
	}{
		{9 * time.Second, busyGCPercent}, // still at work
		{11 * time.Second, idleGCPercent},
		{3 * time.Second, idleGCPercent},
		{time.Second, busyGCPercent},
		{time.Minute, idleGCPercent},
	} {
		now = now.Add(step.after)
		h.weigh(now)
		if got := h.percent(live); got != step.want {
			t.Errorf("a collection after %s: %d %%, want %d", step.after, got, step.want)
		}
	}
	small := &Heap{memory: 512 << 20, busy: true}
	if got := small.percent(live); got != 64 {
		t.Errorf("with 512 MiB of memory: %d %%", got)
	}
	if got := small.percent(512 << 20); got != idleGCPercent {
		t.Errorf("with more alive than there is memory: %d %%", got)
	}
}

func TestTheHeapOfTheStartIsMadeOfHugePages(t *testing.T) {
	h := &Heap{huge: useHugePages(16 << 20)}
	if got := smapsFlags(t, h.huge.from); !strings.Contains(got, " hg") {
		t.Skipf("this kernel has no huge pages (flags %q)", got)
	}
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	h.settle()
	if got := smapsFlags(t, h.huge.from); !strings.Contains(got, " nh") {
		t.Errorf("afterwards huge pages may still be made (flags %q)", got)
	}
}

// smapsFlags returns the flags of the mapping that holds addr (proc_pid_smaps(5)).
func smapsFlags(t *testing.T, addr uintptr) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	within := false
	for line := range strings.Lines(string(data)) {
		var from, to uintptr
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			within = from <= addr && addr < to
		} else if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && within {
			return " " + strings.TrimSpace(flags)
		}
	}
	t.Fatalf("no mapping at %#x", addr)
	return ""
}
