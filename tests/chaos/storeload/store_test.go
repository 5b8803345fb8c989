package storeload

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/tests/chaos/chance"
	"github.com/knarr-dev/knarr/tests/chaos/flakydisk"
	"github.com/knarr-dev/knarr/tests/chaos/record"
)

var (
	rounds = flag.Int("rounds", 20, "how often a process is killed")
	cuts   = flag.Int("cuts", 10, "how often the power of a disk is cut")
	seed   = flag.Uint64("seed", 0, "what chance is made of; 0 is another one each time")
)

func TestMain(m *testing.M) {
	if flakydisk.MaybeServe() || MaybeRun() {
		return
	}
	os.Exit(m.Run())
}

const (
	// settleTimeout only counts when a test is about to fail.
	settleTimeout = time.Minute
	// often has the store forget old revisions all the time, so that a fault
	// meets it at that.
	often = 40 * time.Millisecond
	// life is how long a load lives at most before the next fault: long enough
	// for a thousand writes.
	life = 500 * time.Millisecond
	// checkEvery is after how many faults a history is checked to its end.
	checkEvery = 5
)

// eachDriver runs a test with each of the store's drivers.
func eachDriver(t *testing.T, test func(*testing.T)) {
	for _, d := range []string{"kine-sqlite", "sqlite"} {
		t.Run(d, test)
	}
}

// driverOf is the one of the test that runs.
func driverOf(t *testing.T) string { return filepath.Base(t.Name()) }

// A process is killed while it starts, writes and compacts.
func TestKilledStoreKeepsWhatItAcknowledged(t *testing.T) {
	eachDriver(t, testKilledStoreKeepsWhatItAcknowledged)
}

func testKilledStoreKeepsWhatItAcknowledged(t *testing.T) {
	random := chance.New(t, *seed)
	path := filepath.Join(t.TempDir(), "db", "state.db")
	h := record.New()
	for round := range *rounds {
		o := Options{Driver: driverOf(t), Path: path, Seed: random.Uint64(), CompactEvery: often}
		l := start(t, o, h)
		if round%4 != 3 { // else it may still be opening its store
			opened(t, l)
		}
		time.Sleep(chance.UpTo(random, life/2))
		if err := errors.Join(l.Kill(), l.Ended()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if round%checkEvery == checkEvery-1 || round == *rounds-1 {
			settle(t, o, h)
			if t.Failed() {
				t.FailNow()
			}
		}
	}
	count(t, h)
}

// The disk under the store loses its power while the process writes, compacts
// and checkpoints: what no flush has made safe is dropped, or kept in part and
// in any order.
func TestStoreSurvivesPowerCuts(t *testing.T) { eachDriver(t, testStoreSurvivesPowerCuts) }

func testStoreSurvivesPowerCuts(t *testing.T) {
	flakydisk.Needs(t)
	random := chance.New(t, *seed)
	dir := t.TempDir()
	d := flakydisk.ForTest(t, dir, 96<<20)
	point := filepath.Join(dir, "disk")
	h := record.New()
	for cut := range *cuts {
		if cut%20 == 0 {
			h = record.New() // or each check would take longer than the one before
		}
		if err := d.Mount(t.Context(), point); err != nil {
			t.Fatal(err)
		}
		o := Options{Driver: driverOf(t), Path: filepath.Join(point, "db", "state.db"), Seed: random.Uint64(), CompactEvery: often}
		l := start(t, o, h)
		if cut%5 != 4 {
			opened(t, l)
		}
		time.Sleep(chance.UpTo(random, life))
		if err := d.Cut(chance.Keep(random), random.Uint64()); err != nil {
			t.Fatal(err)
		}
		// It lost its disk, and may have ended for that.
		if err := l.Kill(); err != nil {
			t.Fatalf("cut %d: %v", cut, err)
		}
		if err := d.Unmount(point); err != nil {
			t.Fatal(err)
		}
		if err := d.Power(); err != nil {
			t.Fatal(err)
		}
		if cut%checkEvery == checkEvery-1 || cut == *cuts-1 {
			if err := d.Mount(t.Context(), point); err != nil {
				t.Fatal(err)
			}
			settle(t, o, h)
			count(t, h)
			if err := d.Unmount(point); err != nil {
				t.Fatal(err)
			}
			if t.Failed() {
				t.FailNow()
			}
		}
	}
	counts, err := d.Counts()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d cuts; of %d writes to the disk %d were lost; %d flushes", counts.Cuts, counts.Writes, counts.Dropped, counts.Flushes)
}

// The disk under the store fails for a moment or for good, or its file system
// becomes read-only, while the process writes, compacts and checkpoints. Another
// process goes on with what is mounted, if it can, and then one after a reboot.
func TestStoreSurvivesAFailingDisk(t *testing.T) { eachDriver(t, testStoreSurvivesAFailingDisk) }

func testStoreSurvivesAFailingDisk(t *testing.T) {
	flakydisk.Needs(t)
	random := chance.New(t, *seed)
	dir := t.TempDir()
	d := flakydisk.ForTest(t, dir, 96<<20)
	point := filepath.Join(dir, "disk")
	faults := []struct {
		name  string
		begin func() error
	}{
		{"I/O errors for a moment", func() error {
			err := d.Fail()
			time.Sleep(chance.UpTo(random, life/4))
			return errors.Join(err, d.Heal())
		}},
		{"I/O errors", d.Fail},
		{"a read-only file system", func() error { return unix.Mount("", point, "", unix.MS_REMOUNT|unix.MS_NOATIME, "abort") }},
	}
	h := record.New()
	for round := range *cuts {
		if round%20 == 0 {
			h = record.New()
		}
		fault := faults[round%len(faults)]
		if err := d.Mount(t.Context(), point); err != nil {
			t.Fatal(err)
		}
		o := Options{Driver: driverOf(t), Path: filepath.Join(point, "db", "state.db"), Seed: random.Uint64(), CompactEvery: often}
		l := start(t, o, h)
		if round%5 != 4 {
			opened(t, l)
		}
		time.Sleep(chance.UpTo(random, life))
		if err := fault.begin(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			time.Sleep(chance.UpTo(random, life/2))
			if err := l.Kill(); err != nil {
				t.Fatalf("round %d: %s: %v", round, fault.name, err)
			}
			l = start(t, o, h)
			_ = l.Opened() // a file system that is read-only cannot be
		}
		if err := l.Kill(); err != nil {
			t.Fatalf("round %d: %s: %v", round, fault.name, err)
		}
		if err := errors.Join(d.Unmount(point), d.Power(), d.Mount(t.Context(), point)); err != nil {
			t.Fatal(err)
		}
		settle(t, o, h)
		if err := d.Unmount(point); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.Fatalf("round %d: %s", round, fault.name)
		}
	}
	count(t, h)
}

// What these tests would show of a store that acknowledges before it is safe.
func TestAPowerCutShowsWritesThatWereNotFlushed(t *testing.T) {
	eachDriver(t, testAPowerCutShowsWritesThatWereNotFlushed)
}

func testAPowerCutShowsWritesThatWereNotFlushed(t *testing.T) {
	flakydisk.Needs(t)
	random := chance.New(t, *seed)
	dir := t.TempDir()
	d := flakydisk.ForTest(t, dir, 96<<20)
	point := filepath.Join(dir, "disk")
	h := record.New()
	o := Options{Driver: driverOf(t), Path: filepath.Join(point, "db", "state.db"), Seed: random.Uint64(), Synchronous: "normal", Patience: time.Second}
	mount := func() {
		if err := d.Mount(t.Context(), point); err != nil {
			t.Fatal(err)
		}
	}
	mount()
	l := start(t, o, h)
	opened(t, l)
	for acked := 0; acked < 100; acked, _, _ = h.Counts() {
		time.Sleep(time.Millisecond) // it tells no other way
	}
	if err := d.Cut(0, 0); err != nil {
		t.Fatal(err)
	}
	_ = l.Kill() // whatever it found
	if err := errors.Join(d.Unmount(point), d.Power()); err != nil {
		t.Fatal(err)
	}
	mount()
	l = start(t, o, h)
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	if err := l.Finish(ctx); err == nil && len(h.Check()) == 0 {
		t.Error("nothing was found lost of a store that flushes nothing")
	}
	if err := d.Unmount(point); err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T, o Options, h *record.History) *Load {
	t.Helper()
	l, err := Start(o, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Kill() }) // it has ended, unless the test failed
	return l
}

func opened(t *testing.T, l *Load) {
	t.Helper()
	if err := l.Opened(); err != nil {
		t.Fatal(err)
	}
}

// settle opens the store once more, has every watch catch up, and checks.
func settle(t *testing.T, o Options, h *record.History) {
	t.Helper()
	l := start(t, o, h)
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	if err := l.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	for _, problem := range h.Check() {
		t.Error(problem)
	}
}

func count(t *testing.T, h *record.History) {
	t.Helper()
	acked, open, events := h.Counts()
	t.Logf("%d writes acknowledged, %d without an answer, %d events", acked, open, events)
}
