package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// usage is the memory of all processes of a host, in bytes.
type usage struct {
	pss, rss int64
	// byProgram is each program's PSS.
	byProgram map[string]int64
}

// memory sums up the processes below cgroups, but for those listed.
func memory(cgroupDirs []string, except ...int) (usage, error) {
	u := usage{byProgram: map[string]int64{}}
	pids, err := processes(cgroupDirs)
	if err != nil {
		return u, fmt.Errorf("list processes: %w", err)
	}
	for _, pid := range except {
		delete(pids, pid)
	}
	for pid := range pids {
		rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if gone(err) {
			continue
		}
		if err != nil {
			return u, fmt.Errorf("memory of process %d: %w", pid, err)
		}
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if gone(err) {
			continue
		}
		if err != nil {
			return u, fmt.Errorf("name of process %d: %w", pid, err)
		}
		pss, rss, err := parseRollup(string(rollup))
		if err != nil {
			return u, fmt.Errorf("memory of process %d: %w", pid, err)
		}
		u.pss += pss
		u.rss += rss
		u.byProgram[strings.TrimSpace(string(name))] += pss
	}
	return u, nil
}

// processes are those of the cgroups and all below.
func processes(cgroupDirs []string) (map[int]bool, error) {
	pids := map[int]bool{}
	for _, dir := range cgroupDirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if gone(err) {
				return nil
			}
			if err != nil || d.Name() != "cgroup.procs" {
				return err
			}
			data, err := os.ReadFile(path)
			for _, field := range strings.Fields(string(data)) {
				pid, err := strconv.Atoi(field)
				if err != nil {
					return err
				}
				pids[pid] = true
			}
			if gone(err) {
				return nil
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return pids, nil
}

// gone tells that a process or a cgroup ended while it was looked at.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV)
}

// parseRollup reads a smaps_rollup; the result is in bytes. A process that is
// about to end has an empty one.
func parseRollup(text string) (pss, rss int64, err error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" || f[0] != "Pss:" && f[0] != "Rss:" {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("parse %q: %w", strings.TrimSpace(line), err)
		}
		if f[0] == "Pss:" {
			pss = n << 10
		} else {
			rss = n << 10
		}
	}
	return pss, rss, nil
}

// cpuTime is what all processes of cgroups have used, the ended ones too.
func cpuTime(cgroupDirs []string) (time.Duration, error) {
	for _, dir := range cgroupDirs {
		if text, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage")); err == nil {
			ns, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			return time.Duration(ns), err
		}
	}
	for _, dir := range cgroupDirs {
		text, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
		if err != nil {
			continue
		}
		if us, ok := parseUsage(string(text)); ok {
			return us, nil
		}
	}
	return 0, errors.New("no cgroup hierarchy of this machine counts CPU time: want cpuacct (v1) or the unified one")
}

func parseUsage(cpuStat string) (time.Duration, bool) {
	for line := range strings.Lines(cpuStat) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "usage_usec" {
			us, err := strconv.ParseInt(f[1], 10, 64)
			return time.Duration(us) * time.Microsecond, err == nil
		}
	}
	return 0, false
}
