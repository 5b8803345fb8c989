package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAContainersLogIsPutTogetherOutOfItsParts(t *testing.T) {
	log := filepath.Join(t.TempDir(), "0.log")
	records := "T stdout F 0 1.5ms ok\nT stdout P 1 2\nT stdout F ms lookup: no such host\nT stdout F 2 9"
	if err := os.WriteFile(log, []byte(records), 0o644); err != nil {
		t.Fatal(err)
	}
	all, err := lookUps(log)
	if err != nil {
		t.Fatal(err)
	}
	want := map[int]lookUp{0: {1500 * time.Microsecond, "ok"}, 1: {2 * time.Millisecond, "lookup: no such host"}}
	if len(all) != 2 || all[0] != want[0] || all[1] != want[1] {
		t.Errorf("look-ups are %v, want %v", all, want)
	}
	if err := os.WriteFile(log+".20260101-000000", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := lookUps(log); err == nil {
		t.Error("a rotated log was taken for a whole one")
	}
}

func TestLinesThatLackOrAreCutShortAreLost(t *testing.T) {
	line := func(i int) string { return fmt.Sprintf("%012d %086d\n", i, 0) }
	for _, c := range []struct {
		text string
		want int
	}{
		{line(0) + line(1) + line(2), 0},
		{line(0) + line(2) + line(3) + line(6), 3},
		{line(1) + line(2), 1},
		{line(0) + strings.TrimSuffix(line(1), "0\n") + "\n" + line(2), 1},
	} {
		if got, err := linesLost(c.text); err != nil || got != c.want {
			t.Errorf("of\n%s%d lines are lost (%v), want %d", c.text, got, err, c.want)
		}
	}
	if _, err := linesLost(""); err == nil {
		t.Error("an empty log lacks nothing")
	}
}
