package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// bench is one run of this program.
type bench struct {
	options
	results *results
	began   time.Time
	knarr   *knarr
	peer    *peer
	coredns *coredns // if DNS is measured
}

// calmTime lets what a start set in motion settle before a load.
const calmTime = 5 * time.Second

// measure takes all samples that the options ask for. Systems take turns, so
// that a machine that gets slower meanwhile is unjust to none. What was
// measured before an error is in the results, and what fails once takes nothing
// else with it. The results are written whenever there are more.
func measure(ctx context.Context, o options) (*results, error) {
	b := &bench{options: o, results: newResults(time.Now()), began: time.Now()}
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
	}
	var errs []error
	for i := range max(o.runs, o.idleRuns) {
		for _, s := range subjects {
			errs = append(errs, b.round(ctx, s, i))
		}
	}
	if o.wants("size") {
		for _, s := range subjects {
			errs = append(errs, b.group(ctx, "size of "+s.name(), func() error { return b.size(ctx, s) }))
		}
	}
	return b.results, errors.Join(append(errs, ctx.Err())...)
}

// group measures some figures of one run, tells how long that took and writes
// what there is by then.
func (b *bench) group(ctx context.Context, what string, fn func() error) error {
	if ctx.Err() != nil {
		return nil // who interrupts hears of it once
	}
	b.say("[%s] %s", clock(time.Since(b.began)), what)
	begin := time.Now()
	err := fn()
	if err != nil {
		err = fmt.Errorf("%s: %w", what, err)
		b.say("  FAILED: %v", err)
		// Without the log, which is with the error.
		first, _, _ := strings.Cut(err.Error(), " (log: ")
		b.results.Remarks = append(b.results.Remarks, strings.Join(strings.Fields(first), " "))
	}
	b.say("  took %.0f s", time.Since(begin).Seconds())
	return errors.Join(err, b.results.write(b.out))
}

// clock is a time in minutes and seconds.
func clock(d time.Duration) string {
	s := int(d.Seconds())
	return fmt.Sprintf("%02d:%02d", s/60, s%60)
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
	if b.wants("dns") && !b.skipKnarr {
		b.say("building coredns")
		var err error
		if b.coredns, err = buildCoreDNS(ctx); err != nil {
			return err
		}
		if b.skipPeer {
			b.results.of(peerName).Version = b.coredns.version
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
	var errs []error
	session := func(s subject, kind string, fn func(context.Context, *node) error) error {
		what := fmt.Sprintf("run %d of %d: %s, %s", i+1, max(b.runs, b.idleRuns), s.name(), kind)
		err := b.group(ctx, what, func() error { return b.session(ctx, s, kind, i, fn) })
		errs = append(errs, err)
		return err
	}
	if i < b.runs && slices.ContainsFunc([]string{"start", "packed", "warm", "load"}, b.wants) {
		if err := session(s, "start", b.starts); errors.Is(err, errUnloaded) {
			_ = session(s, "load", b.loads("load")) // kept in errs
		}
	}
	if k, ok := s.(*knarr); ok && i < b.runs {
		if b.wants("normal") {
			relaxed := *k
			relaxed.args = append(slices.Clone(k.args), "--datastore-synchronous=normal")
			_ = session(&relaxed, "normal", b.loads("normal"))
		}
		if b.wants("restart") {
			_ = session(s, "restart", b.restarts)
		}
	}
	if k, ok := s.(*knarr); ok && i < b.runs && b.wants("throwaway") {
		what := fmt.Sprintf("run %d of %d: throwaway clusters", i+1, b.runs)
		errs = append(errs, b.group(ctx, what, func() error { return b.throwaway(ctx, k) }))
	}
	if i < b.runs && b.wants("embedded") {
		what := fmt.Sprintf("run %d of %d: %s, in a Go program", i+1, b.runs, s.name())
		errs = append(errs, b.group(ctx, what, func() error { return b.embedded(ctx, s) }))
	}
	if k, ok := s.(*knarr); ok && i < b.runs && b.wants("apart") {
		what := fmt.Sprintf("run %d of %d: a control plane alone", i+1, b.runs)
		errs = append(errs, b.group(ctx, what, func() error { return b.apart(ctx, k) }))
	}
	if k, ok := s.(*knarr); ok && i < b.idleRuns && b.wants("agent") {
		_ = session(s, "agent", func(ctx context.Context, n *node) error { return b.agent(ctx, k, n) })
	}
	if k, ok := s.(*knarr); ok && i < b.runs && b.wants("addons") {
		for _, off := range addonRuns() {
			_ = session(k.without(off), "addons", b.addons(off))
		}
	}
	if k, ok := s.(*knarr); ok && i < b.runs && b.wants("addons-start") {
		for _, off := range addonRuns() {
			_ = session(k.without(off), "addons-start", b.addonStart(off))
		}
	}
	if _, ok := s.(*knarr); ok && i < b.runs && b.wants("dns") {
		_ = session(s, "dns", b.dns)
	}
	if i < b.idleRuns && b.wants("idle") {
		_ = session(s, "idle", b.idle)
	}
	return errors.Join(errs...)
}

// session makes a node for fn and closes it afterwards. Its log stays when
// something failed.
func (b *bench) session(ctx context.Context, s subject, kind string, i int, fn func(context.Context, *node) error) (err error) {
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
	if err := n.rest(ctx, calmTime); err != nil {
		return errors.Join(err, b.unloaded())
	}
	if b.wants("warm") {
		if err := b.restart(ctx, n, s); err != nil {
			return errors.Join(err, b.unloaded())
		}
	}
	if !b.wants("load") {
		return nil
	}
	return n.load(ctx, s, "load")
}

// errUnloaded tells that a node ended before its load was measured.
var errUnloaded = errors.New("load is measured on another node")

func (b *bench) unloaded() error {
	if b.wants("load") {
		return errUnloaded
	}
	return nil
}

// restart leaves the node calm, for a load.
func (b *bench) restart(ctx context.Context, n *node, s *system) error {
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
	if err := n.rest(ctx, calmTime); err != nil {
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

// loads measures a load alone.
func (b *bench) loads(kind string) func(context.Context, *node) error {
	return func(ctx context.Context, n *node) error {
		if _, err := n.timeStart(ctx); err != nil {
			return err
		}
		if err := n.rest(ctx, calmTime); err != nil {
			return err
		}
		return n.load(ctx, b.results.of(n.subject.name()), kind)
	}
}

func (b *bench) idle(ctx context.Context, n *node) error {
	if _, err := n.timeStart(ctx); err != nil {
		return err
	}
	return n.idle(ctx, b.results.of(n.subject.name()), "idle", idleFrom, idleTo)
}

// say tells on standard error how far things are; the figures go to standard
// output.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
