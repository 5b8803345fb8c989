package cli

import (
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Start-up allocates some 300 MB, of which 110 live: collecting it over and over
// while it grows costs a tenth of the time. Not at all is no better: what lives
// is then strewn over the whole heap, and 60 MB of holes stay for good. The
// limit makes a few collections of it. Afterwards the process is mostly idle,
// and memory is worth more than the time to collect it.
const (
	startHeapLimit = 240 << 20 // bytes, on a machine that has four times as much
	idleGCPercent  = 25
	// settleAfter readiness the first pods and controllers have run, too.
	settleAfter = time.Minute
)

// hurry lets the heap grow to startHeapLimit without collections while the
// cluster starts, and beyond it to twice of what lives, and returns what ends
// that. GOGC and GOMEMLIMIT, where the user has set them, are left alone.
func hurry() (settle func()) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return func() {}
	}
	var info unix.Sysinfo_t
	limit := int64(startHeapLimit)
	if err := unix.Sysinfo(&info); err == nil {
		limit = min(limit, int64(uint64(info.Totalram)*uint64(info.Unit)/4))
	}
	debug.SetMemoryLimit(limit)
	debug.SetGCPercent(-1)
	h := &heap{limit: limit}
	h.watch()
	return h.settle
}

// heap is a memory limit that follows the live heap: a cluster with many
// objects would otherwise do nothing but collect.
type heap struct {
	limit   int64
	mu      sync.Mutex
	settled bool
}

// watch looks at the heap after each collection; the runtime tells of one only
// by what it collects.
func (h *heap) watch() {
	runtime.SetFinalizer(new(struct{ _ [16]byte }), func(any) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.settled {
			return
		}
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		debug.SetMemoryLimit(max(h.limit, 2*int64(live[0].Value.Uint64())))
		h.watch()
	})
}

func (h *heap) settle() {
	h.mu.Lock()
	h.settled = true
	debug.SetGCPercent(idleGCPercent)
	debug.SetMemoryLimit(math.MaxInt64)
	h.mu.Unlock()
	debug.FreeOSMemory()
}

// shrink gives back to the machine what only the start needed.
func shrink(log *slog.Logger) {
	debug.FreeOSMemory()
	if err := dropText(); err != nil {
		log.Debug("shrink", "err", err)
	}
}
