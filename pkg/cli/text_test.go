package cli

import (
	"os"
	"strconv"
	"strings"
	"testing"
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
