// Package memory has a process that is a cluster ask for memory freely while it
// starts, and sparingly from then on.
package memory

import (
	"context"
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

	"github.com/knarr-dev/knarr/pkg/host"
)

// Start-up allocates some 300 MB, of which 110 live: collecting it over and over
// while it grows costs a tenth of the time. Not at all is no better: what lives
// is then strewn over the whole heap, and 60 MB of holes stay for good. The
// limit makes a few collections of it. Afterwards the process is mostly idle,
// and memory is worth more than the time to collect it. While it is at work, as
// collections that follow each other tell, it is the other way round: at 25 % a
// hundred MB that live are marked for every 25 that are asked for.
const (
	idleGCPercent = 25
	busyGCPercent = 100 // less on a small machine
	// Four times as much room makes collections four times as rare, so that the
	// two must be further apart than that.
	busyWithin = 2 * time.Second
	calmAfter  = 10 * time.Second
)

// The heap that a start may make before it is collected, in bytes, on a machine that
// has four times as much. That of a control plane apart is collected once more, for 60
// of 500 ms: what lives lies in 20 MiB less then.
const (
	StartHeap      = 240 << 20
	StartHeapApart = 96 << 20
)

// How long after it is ready a cluster has done what its start brings: with nodes the
// first pods have run then, too.
const (
	SettleAfter      = time.Minute
	SettleAfterApart = 15 * time.Second
)

// Hurry lets the heap grow to limit without collections while the
// cluster starts, and beyond it to twice of what lives, until it is settled.
// GOGC and GOMEMLIMIT, where the user has set them, are left alone.
func Hurry(limit int64) *Heap {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return &Heap{settled: true}
	}
	h := &Heap{limit: limit, memory: int64(host.Memory())}
	if h.memory > 0 {
		h.limit = min(h.limit, h.memory/4)
	}
	debug.SetMemoryLimit(h.limit)
	debug.SetGCPercent(-1)
	h.watch()
	h.huge = useHugePages(h.limit * 2 / 3)
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

// Heap is a memory limit that follows the live heap: a cluster with many
// objects would otherwise do nothing but collect.
type Heap struct {
	limit   int64
	huge    pages
	memory  int64 // what there is, in bytes
	mu      sync.Mutex
	settled bool
	busy    bool      // room is given for work
	last    time.Time // of the last collection
}

// watch looks at the heap after each collection; the runtime tells of one only
// by what it collects.
func (h *Heap) watch() {
	runtime.SetFinalizer(new(struct{ _ [16]byte }), func(any) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if !h.settled {
			debug.SetMemoryLimit(max(h.limit, 2*liveHeap()))
		} else if h.weigh(time.Now()) {
			debug.SetGCPercent(h.percent(liveHeap()))
		}
		h.watch()
	})
}

// liveHeap is what the last collection found alive, in bytes.
func liveHeap() int64 {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	return int64(live[0].Value.Uint64())
}

// weigh takes note of a collection, and tells whether the process has begun or
// ended to be at work. The caller holds mu.
func (h *Heap) weigh(now time.Time) (changed bool) {
	since := now.Sub(h.last)
	h.last = now
	was := h.busy
	h.busy = since < busyWithin || was && since < calmAfter
	return h.busy != was
}

// percent is how much may be asked for between two collections, of what lives:
// an eighth of the machine at most. The caller holds mu.
func (h *Heap) percent(live int64) int {
	if !h.busy {
		return idleGCPercent
	}
	return int(max(idleGCPercent, min(busyGCPercent, h.memory/8*100/max(live, 1))))
}

// settle ends the start's way to collect, once the cluster is ready. What is free
// stays with the process until shrink: the first pods would only ask for it anew,
// and have room as any work has.
func (h *Heap) settle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.settled {
		return
	}
	h.settled, h.busy, h.last = true, true, time.Now()
	debug.SetGCPercent(h.percent(liveHeap()))
	debug.SetMemoryLimit(math.MaxInt64)
	// As long as the advice stands, the kernel makes huge pages of what
	// collections have left full of holes (khugepaged: 16 MiB in ten seconds).
	h.huge.advise(unix.MADV_NOHUGEPAGE)
}

// Rest is what follows the start, once the cluster is ready: what only the start needed
// is given back after a while, and once more after as long, when what the cluster did
// after its start is over, too. It returns then, or when ctx ends.
func (h *Heap) Rest(ctx context.Context, after time.Duration, log *slog.Logger) {
	h.settle()
	for range 2 {
		select {
		case <-time.After(after):
			h.shrink(log)
		case <-ctx.Done():
			return
		}
	}
}

// shrink gives back to the machine what only the start needed.
func (h *Heap) shrink(log *slog.Logger) {
	debug.FreeOSMemory()
	// A huge page with holes is kept whole until the kernel splits it; it does
	// for pages that are said to be cold.
	h.huge.advise(unix.MADV_COLD)
	if err := dropText(); err != nil {
		log.Debug("shrink", "err", err)
	}
}
