package memory

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestGivingBackTheExecutablesPagesLosesNothing(t *testing.T) {
	before := fileBacked(t)
	if err := dropText(); err != nil {
		t.Fatal(err)
	}
	after := fileBacked(t)
	if after >= before {
		t.Errorf("%d KiB of files were resident before, %d after", before, after)
	}
}

func TestAFaultBringsBackOnlyWhatIsAroundIt(t *testing.T) {
	// Written by the page cache's largest measure, as a program that was copied
	// and read from its beginning to its end.
	file := filepath.Join(t.TempDir(), "program")
	const size = 16 << 20
	if err := os.WriteFile(file, make([]byte, size), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	read := func(step int) (sum byte) {
		for i := 0; i < size; i += step {
			sum += m[i]
		}
		return sum
	}
	read(4 << 10)
	from := uintptr(unsafe.Pointer(unsafe.SliceData(m)))
	splitFolios(from, from+size)
	if err := advise(from, from+size, unix.MADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	before := fileBacked(t)
	read(4 << 20)
	if got := fileBacked(t) - before; got > size>>10/4 {
		t.Errorf("four bytes brought back %d of %d KiB", got, size>>10)
	}
}

func fileBacked(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "RssFile:"); ok {
			n, err := strconv.Atoi(strings.Fields(v)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssFile in /proc/self/status")
	return 0
}
