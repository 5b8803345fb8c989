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
	"unsafe"

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
// cluster starts, and beyond it to twice of what lives, until it is settled.
// GOGC and GOMEMLIMIT, where the user has set them, are left alone.
func hurry() *heap {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return &heap{settled: true}
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
	h.huge = useHugePages(limit * 2 / 3)
	return h
}

// pages are addresses of the heap. Go never gives back addresses, only what is
// behind them, so that they can be kept while their objects come and go.
type pages struct{ from, size uintptr }

// useHugePages has the kernel back the next size bytes of the heap with huge
// pages where it has them (transparent_hugepage "madvise" or "always"): the
// start then takes one page fault for 2 MiB in place of 512. Faults were a fifth
// of its work on a virtual machine whose page tables the hypervisor shadows.
func useHugePages(size int64) pages {
	const hugePage = 2 << 20
	room := make([]byte, size)
	from := uintptr(unsafe.Pointer(unsafe.SliceData(room)))
	start := (from + hugePage - 1) &^ (hugePage - 1)
	p := pages{start, from + uintptr(size) - start}
	p.advise(unix.MADV_HUGEPAGE)
	runtime.KeepAlive(room)
	// Nothing has been written there: collected now, it is what is allocated next.
	runtime.GC()
	return p
}

// advise tells the kernel how to treat p. One that does not know how says so,
// and treats it as any memory.
func (p pages) advise(how uintptr) { _ = advise(p.from, p.from+p.size, how) }

// heap is a memory limit that follows the live heap: a cluster with many
// objects would otherwise do nothing but collect.
type heap struct {
	limit   int64
	huge    pages
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

// settle makes memory dearer than time, once the cluster is ready. What is free
// stays with the process until shrink: the first pods would only ask for it anew.
func (h *heap) settle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.settled {
		return
	}
	h.settled = true
	debug.SetGCPercent(idleGCPercent)
	debug.SetMemoryLimit(math.MaxInt64)
	// As long as the advice stands, the kernel makes huge pages of what
	// collections have left full of holes (khugepaged: 16 MiB in ten seconds).
	h.huge.advise(unix.MADV_NOHUGEPAGE)
}

// shrink gives back to the machine what only the start needed.
func (h *heap) shrink(log *slog.Logger) {
	debug.FreeOSMemory()
	// A huge page with holes is kept whole until the kernel splits it; it does
	// for pages that are said to be cold.
	h.huge.advise(unix.MADV_COLD)
	if err := dropText(); err != nil {
		log.Debug("shrink", "err", err)
	}
}
