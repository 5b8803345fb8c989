package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhatIsWrittenToALoopDiskIsCounted(t *testing.T) {
	d := testDisk(t)
	before, err := d.stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(d.dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	after, err := d.stat()
	if err != nil {
		t.Fatal(err)
	}
	got := after.since(before)
	if got.bytes < 1<<20 || got.bytes > 2<<20 {
		t.Errorf("%d bytes were counted for a file of 1 MiB", got.bytes)
	}
	if got.requests == 0 || got.flushes == 0 {
		t.Errorf("an fsync counted as %d write requests and %d flushes", got.requests, got.flushes)
	}
}

func TestALoopDiskLeavesNoDeviceBehind(t *testing.T) {
	d := testDisk(t)
	backing := "/sys/block/" + d.device + "/loop/backing_file"
	if _, err := os.Stat(backing); err != nil {
		t.Fatal(err)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(backing); err == nil && strings.Contains(string(text), d.dir) {
		t.Errorf("%s is still attached to %s", d.device, text)
	}
	for _, path := range []string{d.dir, d.dir + ".img"} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there (%v)", path, err)
		}
	}
}

// testDisk needs what a bench needs, which not every machine that runs unit
// tests has.
func testDisk(t *testing.T) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, tool := range []string{"losetup", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs loop devices:", err)
	}
	d, err := loopDisk(t.Context(), filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(d.dir, 0) }) // not mounted any more is as good
	return d
}

func TestDiskStatisticsAreReadFromTheRightFields(t *testing.T) {
	got, err := parseDiskStat("  1 2 3 4 50 6 70 8 9 10 11 12 13 14 15 160 17\n")
	if err != nil {
		t.Fatal(err)
	}
	if want := (diskStat{requests: 50, bytes: 70 * 512, flushes: 160}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := parseDiskStat("1 2 3 4 5 6 7 8 9 10 11"); err == nil {
		t.Error("statistics without flushes are accepted")
	}
}
