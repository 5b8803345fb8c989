// Package storeload puts a load of writes and watches on a store, in a process of
// its own that may be killed at any moment, and records what happened.
//
// The process tells what it is about to do and what came of it, each in one
// write to a pipe: what it has told is known, whatever becomes of it.
package storeload

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/knarr-dev/knarr/tests/chaos/record"
)

// Options say how a store is used.
type Options struct {
	// Path is the store's file.
	Path string
	// Workers write at the same time, each to keys of its own. Default 4.
	Workers int
	// CompactEvery is how often the store forgets old revisions. Default: as the
	// store does by itself.
	CompactEvery time.Duration
	// Synchronous is the store's setting. Default: full.
	Synchronous string
	// Driver is the store's. Default: the store's own.
	Driver string
	// Patience is how long Finish waits for the watches. Default 30 seconds.
	Patience time.Duration
	// Seed makes the load.
	Seed uint64
}

// A Load is one process with an open store.
type Load struct {
	cmd    *exec.Cmd
	orders io.WriteCloser
	opened chan struct{}
	ended  chan struct{}
	err    error // read it after ended
	failed string
}

// Start starts the process. It goes on with what the history knows of keys and
// watches. A history has one load at a time.
func Start(o Options, h *record.History) (*Load, error) {
	if o.Workers == 0 {
		o.Workers = 4
	}
	if o.Patience == 0 {
		o.Patience = 30 * time.Second
	}
	s := spec{Path: o.Path, Workers: o.Workers, CompactEvery: o.CompactEvery, Synchronous: o.Synchronous, Driver: o.Driver, Patience: o.Patience, Seed: o.Seed, Watches: map[string]int64{}}
	for _, name := range watches {
		if from, ok := h.Seen(name); ok {
			s.Watches[name] = from
		}
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	l := &Load{opened: make(chan struct{}), ended: make(chan struct{})}
	l.cmd = exec.Command("/proc/self/exe")
	l.cmd.Env = []string{specEnv + "=" + string(text)}
	var errs strings.Builder
	l.cmd.Stderr = &errs
	if l.orders, err = l.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	// Not StdoutPipe, which Wait closes before all of it was read.
	out, outOfChild, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	l.cmd.Stdout = outOfChild
	err = l.cmd.Start()
	outOfChild.Close()
	if err != nil {
		out.Close()
		return nil, fmt.Errorf("start load: %w", err)
	}
	go func() {
		defer close(l.ended)
		defer out.Close()
		l.follow(out, h)
		if err := l.cmd.Wait(); err != nil {
			l.err = fmt.Errorf("load: %w: %s%s", err, l.failed, tail(errs.String()))
		}
	}()
	return l, nil
}

// tail is the end of what is too long.
func tail(s string) string { return s[max(0, len(s)-2000):] }

// follow records what the process tells.
func (l *Load) follow(out io.Reader, h *record.History) {
	ops := map[int64]*record.Op{}
	lines := bufio.NewReader(out)
	for {
		text, err := lines.ReadBytes('\n')
		if err != nil {
			return // a line without its end was not told
		}
		var t line
		if err := json.Unmarshal(text, &t); err != nil {
			l.failed = fmt.Sprintf("not understood: %q", text)
			return
		}
		switch t.Tells {
		case tellOpen:
			close(l.opened)
		case tellBegin:
			ops[t.ID] = h.Begin(t.Kind, t.Key, t.Value)
		case tellDone:
			h.Acknowledge(ops[t.ID], t.Rev)
		case tellRefused:
			h.Refuse(ops[t.ID])
		case tellWatch:
			h.Watching(t.Watch, t.Rev)
		case tellEvent:
			h.Saw(t.Watch, record.Event{Rev: t.Rev, Delete: t.Delete, Key: t.Key, Value: t.Value})
		case tellFinal:
			h.Final(t.List, t.Rev)
		case tellWrong:
			l.failed += t.Value + "\n"
		}
	}
}

// Opened waits until the store is open. It fails when the process ends before.
func (l *Load) Opened() error {
	select {
	case <-l.opened:
		return nil
	case <-l.ended:
		if l.err != nil {
			return l.err
		}
		return errors.New("load ended before it had opened its store")
	}
}

// Kill ends the process at this moment, and returns when all it told is
// recorded. The error is of what it found wrong in the store.
func (l *Load) Kill() error {
	_ = l.cmd.Process.Kill() // see Ended
	<-l.ended
	if l.failed != "" {
		return errors.New(l.failed)
	}
	return nil
}

// Ended is, after Kill, why the process had ended by itself, or nil.
func (l *Load) Ended() error {
	if state := l.cmd.ProcessState; state == nil || !state.Exited() {
		return nil
	}
	if l.err == nil {
		return errors.New("load ended")
	}
	return l.err
}

// Finish has the process write no more, wait until every watch has told the last
// write, list all keys, and end. Then the history can be checked.
func (l *Load) Finish(ctx context.Context) error {
	if err := l.Opened(); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = l.cmd.Process.Kill() })()
	err := l.orders.Close()
	<-l.ended
	if l.failed != "" {
		return errors.New(l.failed)
	}
	return errors.Join(err, l.err, ctx.Err())
}
