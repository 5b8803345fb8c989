package main

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

func TestMemoryAddsUpTheProcessesOfCgroupsOnce(t *testing.T) {
	// Two hierarchies that hold the same process, one of them deeper down.
	v1, v2 := t.TempDir(), t.TempDir()
	deeper := filepath.Join(v2, "pod", "container")
	if err := os.MkdirAll(deeper, 0o755); err != nil {
		t.Fatal(err)
	}
	self := strconv.Itoa(os.Getpid())
	for _, file := range []string{filepath.Join(v1, "cgroup.procs"), filepath.Join(deeper, "cgroup.procs")} {
		if err := os.WriteFile(file, []byte(self+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	u, err := memory([]string{v1, v2})
	if err != nil {
		t.Fatal(err)
	}
	if len(u.byProgram) != 1 || u.pss == 0 || u.rss < u.pss {
		t.Errorf("memory of this process is %+v", u)
	}
	for name, pss := range u.byProgram {
		if pss != u.pss {
			t.Errorf("%s has %d bytes of %d: counted more than once", name, pss, u.pss)
		}
	}
	if u, err = memory([]string{v1, v2}, os.Getpid()); err != nil || u.pss != 0 {
		t.Errorf("without this process memory is %+v (%v)", u, err)
	}
}

func TestMemoryForgivesProcessesThatEnd(t *testing.T) {
	dir := t.TempDir()
	const never = "4194305" // above the highest process id of Linux
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(never), 0o644); err != nil {
		t.Fatal(err)
	}
	if u, err := memory([]string{dir}); err != nil || u.pss != 0 {
		t.Errorf("memory is %+v (%v)", u, err)
	}
}

func TestRollupIsReadInBytes(t *testing.T) {
	pss, rss, err := parseRollup("55d0-7ffc ---p 00000000 00:00 0 [rollup]\nRss:            1300 kB\nPss:             600 kB\nPss_Dirty:       7 kB\n")
	if err != nil || pss != 600<<10 || rss != 1300<<10 {
		t.Errorf("got pss %d, rss %d (%v)", pss, rss, err)
	}
}

func TestCPUTimeComesFromWhicheverHierarchyCountsIt(t *testing.T) {
	empty, v1, v2 := t.TempDir(), t.TempDir(), t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(v1, "cpuacct.usage"), "1500000000\n")
	write(filepath.Join(v2, "cpu.stat"), "usage_usec 2500000\nuser_usec 1\n")
	for _, c := range []struct {
		dirs []string
		want time.Duration
	}{
		{[]string{empty, v1}, 1500 * time.Millisecond},
		{[]string{empty, v2}, 2500 * time.Millisecond},
	} {
		if got, err := cpuTime(c.dirs); err != nil || got != c.want {
			t.Errorf("CPU time is %s (%v), want %s", got, err, c.want)
		}
	}
	if _, err := cpuTime([]string{empty}); err == nil {
		t.Error("a machine that counts no CPU time has some")
	}
}
