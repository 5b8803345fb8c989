package main

import (
	"context"
	"time"
)

const (
	idleFrom = 120 * time.Second // after start
	idleTo   = 180 * time.Second
)

// idle measures a node that has nothing to do, in a window of time since its
// start: nobody asks it anything meanwhile. It must be on a loop disk. The
// figures are those of the kind, idle or agent.
func (n *node) idle(ctx context.Context, s *system, kind string, from, to time.Duration) error {
	if err := n.restUntil(ctx, from); err != nil {
		return err
	}
	disk, err := n.disk.stat()
	if err != nil {
		return err
	}
	cpu, err := cpuTime(n.host.CgroupDirs())
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := n.restUntil(ctx, to); err != nil {
		return err
	}
	took := time.Since(begin)
	cpu2, err := cpuTime(n.host.CgroupDirs())
	if err != nil {
		return err
	}
	disk2, err := n.disk.stat()
	if err != nil {
		return err
	}
	not := []int{n.host.PID()} // the host's own first process
	if n.subject.supervised() {
		not = append(not, n.cmd.Process.Pid)
	}
	mem, err := memory(n.host.CgroupDirs(), not...)
	if err != nil {
		return err
	}
	written, minutes := disk2.since(disk), took.Minutes()
	s.add(kind+".cpu", 100*float64(cpu2-cpu)/float64(took))
	s.add(kind+".written", float64(written.bytes)/1024/minutes)
	s.add(kind+".writes", float64(written.requests)/minutes)
	s.add(kind+".flushes", float64(written.flushes)/minutes)
	s.add(kind+".pss", mebibytes(mem.pss))
	s.add(kind+".rss", mebibytes(mem.rss))
	if kind != "idle" {
		return nil
	}
	s.Memory = map[string]float64{}
	for name, bytes := range mem.byProgram {
		s.Memory[name] = mebibytes(bytes)
	}
	return nil
}

// restUntil waits until some time after the start, if the subject lasts.
func (n *node) restUntil(ctx context.Context, since time.Duration) error {
	return n.rest(ctx, time.Until(n.started.Add(since)))
}

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }
