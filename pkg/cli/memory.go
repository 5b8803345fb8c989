package cli

import (
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// Start-up allocates some 300 MB, most of which lives: collecting it over and
// over while it grows costs a tenth of the time. Afterwards the process is
// mostly idle, and memory is worth more than the time to collect it.
const (
	startHeapLimit = 512 << 20 // bytes, on a machine that has four times as much
	idleGCPercent  = 25
	// settleAfter readiness the first pods and controllers have run, too.
	settleAfter = time.Minute
)

// hurry lets the heap grow without collections while the cluster starts, up to
// a quarter of the machine's memory, and returns what ends that. GOGC and
// GOMEMLIMIT, where the user has set them, are left alone.
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
	return func() {
		debug.SetGCPercent(idleGCPercent)
		debug.SetMemoryLimit(math.MaxInt64)
		debug.FreeOSMemory()
	}
}

// shrink gives back to the machine what only the start needed.
func shrink(log *slog.Logger) {
	debug.FreeOSMemory()
	if err := dropText(); err != nil {
		log.Debug("shrink", "err", err)
	}
}
