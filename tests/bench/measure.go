package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// bench is one run of this program.
type bench struct {
	options
	results *results
	knarr   *knarr
	peer    *peer
}

// calmTime lets what a start set in motion settle before a load.
const calmTime = 5 * time.Second

// measure takes all samples that the options ask for. Systems take turns, so
// that a machine that gets slower meanwhile is unjust to none. What was
// measured before an error is in the results.
func measure(ctx context.Context, o options) (*results, error) {
	b := &bench{options: o, results: newResults(time.Now())}
	if err := b.prepare(ctx); err != nil {
		return b.results, err
	}
	var subjects []subject
	if b.knarr != nil {
		subjects = append(subjects, b.knarr)
	}
	if b.peer != nil {
		subjects = append(subjects, b.peer)
	}
	for _, s := range subjects {
		version, err := s.version(ctx)
		if err != nil {
			return b.results, err
		}
		b.results.of(s.name()).Version = version
		if o.wants("size") {
			if err := b.size(ctx, s); err != nil {
				return b.results, err
			}
		}
	}
	for i := range max(o.runs, o.idleRuns) {
		for _, s := range subjects {
			if err := b.round(ctx, s, i); err != nil {
				return b.results, fmt.Errorf("run %d: %w", i+1, err)
			}
		}
	}
	return b.results, nil
}

func (b *bench) prepare(ctx context.Context) error {
	if err := os.MkdirAll(b.work, 0o755); err != nil {
		return err
	}
	if !b.skipKnarr {
		b.knarr = &knarr{file: b.options.knarr, args: b.knarrArgs, image: b.image}
		if _, err := os.Stat(b.options.knarr); err != nil {
			return fmt.Errorf("%w: `make` builds it, --knarr names another one", err)
		}
	}
	if b.skipPeer {
		return nil
	}
	b.say("building the peer")
	programs, err := buildPeer(ctx, b.options)
	if err != nil {
		return err
	}
	b.peer = &peer{programs: programs, image: b.image}
	return nil
}

// round measures a subject once.
func (b *bench) round(ctx context.Context, s subject, i int) error {
	if i < b.runs && slices.ContainsFunc([]string{"start", "packed", "warm", "load"}, b.wants) {
		if err := b.session(ctx, s, "start", i, b.starts); err != nil {
			return err
		}
	}
	if k, ok := s.(*knarr); ok && i < b.runs && b.wants("normal") {
		relaxed := *k
		relaxed.args = append(slices.Clone(k.args), "--datastore-synchronous=normal")
		if err := b.session(ctx, &relaxed, "normal", i, b.relaxed); err != nil {
			return err
		}
	}
	if i < b.idleRuns && b.wants("idle") {
		return b.session(ctx, s, "idle", i, b.idle)
	}
	return nil
}

// session makes a node for fn and closes it afterwards. Its log stays when
// something failed.
func (b *bench) session(ctx context.Context, s subject, kind string, i int, fn func(context.Context, *node) error) (err error) {
	b.say("run %d: %s, %s", i+1, s.name(), kind)
	dir := filepath.Join(b.work, fmt.Sprintf("disk-%s-%s", s.name(), kind))
	var d *disk
	if kind == "idle" {
		d, err = loopDisk(ctx, dir)
	} else {
		d, err = plainDisk(dir)
	}
	if err != nil {
		return err
	}
	logFile := filepath.Join(b.work, fmt.Sprintf("%s-%s-%d.log", s.name(), kind, i+1))
	n, err := newNode(ctx, s, d, logFile)
	if err != nil {
		return err
	}
	err = fn(ctx, n)
	if cerr := n.close(); err == nil {
		err = cerr
	}
	if err == nil && !b.keepLogs {
		err = os.Remove(logFile)
	}
	return err
}

// starts measures everything that a short life shows.
func (b *bench) starts(ctx context.Context, n *node) error {
	s := b.results.of(n.subject.name())
	k, isKnarr := n.subject.(*knarr)
	if isKnarr && (b.wants("start") || b.wants("packed")) {
		// The first start ever unpacks the bundle; the next finds it there.
		m, err := n.timeStart(ctx)
		if err != nil {
			return err
		}
		if b.wants("packed") {
			m.add(s, "packed")
		}
		b.say("  packed: %s", m)
		if err := n.stop(); err != nil {
			return err
		}
		if err := k.forget(ctx, n.host); err != nil {
			return err
		}
	}
	if !isKnarr && !b.wants("start") && !b.wants("warm") && !b.wants("load") {
		return nil
	}
	m, err := n.timeStart(ctx)
	if err != nil {
		return err
	}
	if b.wants("start") {
		m.add(s, "start")
	}
	b.say("  start: %s", m)
	if b.wants("warm") {
		if err := b.restart(ctx, n, s); err != nil {
			return err
		}
	}
	if !b.wants("load") {
		return nil
	}
	if err := pause(ctx, calmTime); err != nil {
		return err
	}
	return n.load(ctx, s, "load")
}

func (b *bench) restart(ctx context.Context, n *node, s *system) error {
	if err := pause(ctx, calmTime); err != nil {
		return err
	}
	before, err := n.podState(ctx)
	if err != nil {
		return err
	}
	api, err := n.timeRestart(ctx)
	if err != nil {
		return err
	}
	s.add("warm.api", api.Seconds())
	b.say("  warm: API %.3f s", api.Seconds())
	// The kubelet needs a moment to find a pod gone, and to tell.
	if err := pause(ctx, calmTime); err != nil {
		return err
	}
	after, err := n.podState(ctx)
	if err != nil {
		return err
	}
	if before != after {
		b.results.Remarks = append(b.results.Remarks, fmt.Sprintf("a restart of %s changed its pod from %q to %q", n.subject.name(), before, after))
	}
	return nil
}

func (b *bench) relaxed(ctx context.Context, n *node) error {
	if _, err := n.timeStart(ctx); err != nil {
		return err
	}
	if err := pause(ctx, calmTime); err != nil {
		return err
	}
	return n.load(ctx, b.results.of(n.subject.name()), "normal")
}

func (b *bench) idle(ctx context.Context, n *node) error {
	if _, err := n.timeStart(ctx); err != nil {
		return err
	}
	return n.idle(ctx, b.results.of(n.subject.name()), idleFrom, idleTo)
}

func (b *bench) size(ctx context.Context, s subject) error {
	files, err := s.executables()
	if err != nil {
		return err
	}
	var size, packed int64
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return err
		}
		size += info.Size()
		n, err := zstdSize(ctx, f)
		if err != nil {
			return err
		}
		packed += n
	}
	b.results.of(s.name()).add("size.file", mebibytes(size))
	b.results.of(s.name()).add("size.zstd", mebibytes(packed))
	return nil
}

func zstdSize(ctx context.Context, file string) (int64, error) {
	c := exec.CommandContext(ctx, "zstd", "-19", "-T0", "-q", "-c", file)
	out, err := c.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := c.Start(); err != nil {
		return 0, fmt.Errorf("compress %s: %w", file, err)
	}
	n, err := io.Copy(io.Discard, out)
	if werr := c.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		return 0, fmt.Errorf("compress %s: %w", file, err)
	}
	return n, nil
}

// say tells on standard error how far things are; the figures go to standard
// output.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
