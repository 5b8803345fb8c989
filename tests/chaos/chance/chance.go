// Package chance chooses the moments and kinds of faults.
package chance

import (
	"hash/maphash"
	"math/rand/v2"
	"testing"
	"time"
)

// New is random, from a seed or, if that is 0, another one each time; a failed
// test tells which. How the kernel schedules is chance too, which no seed
// repeats.
func New(t testing.TB, seed uint64) *rand.Rand {
	t.Helper()
	if seed == 0 {
		seed = maphash.Bytes(maphash.MakeSeed(), []byte(t.Name()))
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("-seed=%d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// UpTo is a time below the limit: the moment of a fault, not a wait for
// something.
func UpTo(random *rand.Rand, limit time.Duration) time.Duration {
	return time.Duration(random.Int64N(int64(limit)))
}

// Keep is how much of what was not flushed is on a disk all the same after a
// power cut: in one of three nothing.
func Keep(random *rand.Rand) float64 {
	if random.IntN(3) == 0 {
		return 0
	}
	return random.Float64()
}
