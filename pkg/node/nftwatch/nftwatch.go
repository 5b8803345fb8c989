// Package nftwatch notices when another program removes packet-filter rules of
// ours, as `nft flush ruleset` or a restarted firewall service does, so that
// they can be put back at once. The kernel tells of every change; nothing polls.
//
// A change counts as a loss when
//   - a table of ours is deleted and not made again in the same transaction,
//     whoever did it: nothing of ours deletes a table that it still uses; or
//   - a chain, rule, set or element in a table of ours is deleted by a program
//     that is not ours. Our own programs do so all the time.
//
// What others add to our tables is not looked at.
package nftwatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/component"
)

const (
	// pause is the least time between two restorations of one table, so that two
	// programs that each insist on their rules don't use up the machine.
	pause = time.Second
	// overflowPause bounds the same after an overflow. Restoring makes many
	// changes itself, and might overflow again each time.
	overflowPause = time.Minute
	// receiveBuffer holds the changes of a full sync with tens of thousands of
	// rules. The kernel uses only what is waiting.
	receiveBuffer = 32 << 20
)

// Table is a table that is watched.
type Table struct {
	// Name is the table's family and name as nft writes them: "ip kube-proxy".
	Name string
	// Restore is called, in a goroutine of its own, after the table lost
	// something or may have. It is never called twice at once.
	Restore func(ctx context.Context)
}

// Watcher watches the tables of the network namespace that Run is called in.
type Watcher struct {
	tables []Table
	own    string
	log    *slog.Logger
	buffer int // bytes of the socket's receive buffer
}

var _ component.Component = (*Watcher)(nil)

// New returns a watcher for the tables.
//
// Own is the name of the process (the base name of its executable, at most 15
// bytes) under which our programs change rules, when no other program has it,
// as with a bundled nft. With an empty one, a process is ours when it is this
// one or descends from it. It may have ended before that can be looked up; a
// transaction of it that only deletes is then taken for foreign, which at worst
// restores what is there.
func New(log *slog.Logger, own string, tables ...Table) *Watcher {
	return &Watcher{tables: tables, own: own, log: log, buffer: receiveBuffer}
}

// Name implements component.Component.
func (w *Watcher) Name() string { return "nftwatch" }

// Needs implements component.Component: nothing, so that no change is missed.
func (w *Watcher) Needs() []string { return nil }

// Run closes ready once changes are being received.
func (w *Watcher) Run(ctx context.Context, ready chan<- struct{}) error {
	sock, err := subscribe(w.buffer)
	if err != nil {
		return err
	}
	defer sock.Close()

	guards := make(map[string]*guard)
	for _, t := range w.tables {
		guards[t.Name] = &guard{table: t}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, func() { sock.Close() })()
	defer func() {
		cancel()
		for _, g := range guards {
			g.stop()
		}
	}()
	close(ready)

	buf := make([]byte, 1<<16) // the kernel sends 8 KiB at once, at most
	gen := make(generation)
	overflows := 0
	for {
		n, err := sock.Read(buf)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, unix.ENOBUFS) {
			clear(gen)
			overflows++
			w.log.Warn("packet-filter changes came faster than they could be read; restoring every table to be safe")
			for _, g := range guards {
				g.lost(ctx, min(pause<<min(overflows, 10), overflowPause))
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("receive packet-filter changes: %w", err)
		}
		for _, m := range messages(buf[:n]) {
			if !m.ends {
				gen.note(m, guards)
				continue
			}
			for name, by := range w.losses(gen, m) {
				w.log.Warn("packet-filter rules were removed by another program; restoring them", "table", name, "by", by)
				guards[name].lost(ctx, pause)
			}
			clear(gen)
		}
	}
}

// generation collects what one transaction does to each of our tables.
type generation map[string]touch

type touch struct {
	tableGone bool // deleted, and not made again since
	deletes   bool
	adds      bool
}

// note adds a change, if it is one of a table that we watch.
func (gen generation) note(m message, guards map[string]*guard) {
	if guards[m.table] == nil {
		return
	}
	t := gen[m.table]
	switch {
	case m.deletes && m.wholeTable:
		t.tableGone, t.deletes = true, true
	case m.deletes:
		t.deletes = true
	case m.wholeTable:
		t.tableGone = false
	default:
		t.adds = true
	}
	gen[m.table] = t
}

// losses names the tables that lost something in a transaction, and the program
// that did it. End is the message that ends the transaction.
func (w *Watcher) losses(gen generation, end message) map[string]string {
	lost := make(map[string]string)
	if len(gen) == 0 {
		return lost
	}
	who := w.origin(end)
	for name, t := range gen {
		if t.tableGone || t.deletes && (who == foreign || who == unknown && !t.adds) {
			lost[name] = fmt.Sprintf("%s (process %d)", end.comm, end.pid)
		}
	}
	return lost
}

type origin int

const (
	unknown origin = iota
	ours
	foreign
)

// origin says who made a transaction.
func (w *Watcher) origin(end message) origin {
	switch {
	case end.pid == os.Getpid():
		return ours
	case w.own == "":
		return ancestry(end.pid)
	case end.comm == w.own:
		return ours
	}
	return foreign
}

// ancestry says whether a process descends from this one; unknown when one of
// the processes on the way up has ended.
func ancestry(pid int) origin {
	// The kernel reports numbers of the initial PID namespace.
	if !initialPIDNamespace() {
		return unknown
	}
	for self := os.Getpid(); pid > 1; {
		parent, err := parentOf(pid)
		if err != nil {
			return unknown
		}
		if parent == self {
			return ours
		}
		pid = parent
	}
	return foreign
}

func parentOf(pid int) (int, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name stands in parentheses and may hold some of its own.
	rest := stat[bytes.LastIndexByte(stat, ')')+1:]
	var state string
	var parent int
	if _, err := fmt.Sscan(string(rest), &state, &parent); err != nil {
		return 0, err
	}
	return parent, nil
}

// initialPIDNamespace says whether process numbers here are those of the kernel.
func initialPIDNamespace() bool {
	const inode = 0xEFFFFFFC // fixed in the kernel's sources
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/pid", &st) == nil && st.Ino == inode
}

// guard restores one table, not too often and never twice at once.
type guard struct {
	table Table

	running sync.WaitGroup // what timer has started
	turn    sync.Mutex     // held while Restore runs

	mu    sync.Mutex
	timer *time.Timer // set while a restoration is due
	next  time.Time   // the earliest time of the next one
}

// lost makes a restoration due: now, or when the pause after the last is over.
// The next one is due no earlier than pause after this.
func (g *guard) lost(ctx context.Context, pause time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.timer != nil {
		return
	}
	g.running.Add(1)
	g.timer = time.AfterFunc(time.Until(g.next), func() {
		defer g.running.Done()
		g.turn.Lock()
		defer g.turn.Unlock()
		g.mu.Lock()
		// What is lost from here on needs another restoration.
		g.timer, g.next = nil, time.Now().Add(pause)
		g.mu.Unlock()
		if ctx.Err() == nil {
			g.table.Restore(ctx)
		}
	})
}

// stop takes back a restoration that is due and waits for one that runs.
func (g *guard) stop() {
	g.mu.Lock()
	if g.timer != nil && g.timer.Stop() {
		g.running.Done()
	}
	g.mu.Unlock()
	g.running.Wait()
}
