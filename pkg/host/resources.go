package host

import (
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// What a control plane and a node take, with little room for pods.
const (
	minMemory    = 512 << 20
	minAvailable = 256 << 20
)

// Memory is what this process and its pods can have, in bytes: the machine's
// memory, or a tighter limit of a cgroup. 0 if it cannot be told.
func Memory() uint64 {
	total, _, _ := new(Machine).survey(Config{}).memory()
	return total
}

// memory is what there is in all and free, in bytes, and the file that says so.
func (s *survey) memory() (total, free uint64, where string) {
	info := map[string]uint64{}
	for line := range strings.Lines(s.read("/proc/meminfo")) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, err := strconv.ParseUint(fields[1], 10, 64)
		if err == nil {
			info[strings.TrimSuffix(fields[0], ":")] = kib << 10
		}
	}
	total, free, where = info["MemTotal"], info["MemAvailable"], "/proc/meminfo"
	if limit, file := s.memoryLimit(); limit < total {
		total, free, where = limit, min(free, limit), file
	}
	return total, free, where
}

func (s *survey) checkMemory(f *findings) string {
	total, free, where := s.memory()
	if total == 0 {
		return ""
	}
	const do = "give it more, or stop what else runs"
	text := fmt.Sprintf("%s of %s are free", size(free), size(total))
	switch {
	case total < minMemory:
		f.warnf("there is only "+size(total)+" of memory", where, fmt.Sprintf("below %s little is left for pods", size(minMemory)), do)
	case free < minAvailable:
		f.warnf("only "+text, where, "below 100 MiB pods are evicted", do)
	}
	return text
}

// memoryLimit is the tightest limit of our own cgroup and those above it, and
// the file that says so.
func (s *survey) memoryLimit() (limit uint64, file string) {
	limit = 1<<64 - 1
	tree, own, name := cgroupDir, s.ownCgroups()[""], "memory.max"
	if dir := s.controllerDir("memory"); dir != "" {
		tree, own, name = dir, s.ownCgroups()["memory"], "memory.limit_in_bytes"
	}
	for p := path.Clean("/" + own); ; p = path.Dir(p) {
		at := filepath.Join(tree, p, name)
		if n, err := strconv.ParseUint(s.read(at), 10, 64); err == nil && n < limit {
			limit, file = n, at
		}
		if p == "/" {
			return limit, file
		}
	}
}

func (s *survey) checkClock(f *findings) string {
	now, built := s.now().UTC(), s.cfg.BuildDate.UTC()
	const layout = "2006-01-02 15:04 MST"
	if now.After(built) {
		return now.Format(layout)
	}
	where, do := fmt.Sprintf("now %s, built %s", now.Format(layout), built.Format(layout)), "set it (timedatectl set-ntp true), and start after time-sync.target"
	if s.cfg.ServerDir != "" && len(s.keys()) > 0 {
		f.warnf("the clock is earlier than this program", where, "certificates of before are not valid yet, so that the control plane waits", do)
		return ""
	}
	f.errorf("the clock is earlier than this program", where, "certificates made now may have expired once it is right", do)
	return ""
}
