package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/knarr-dev/knarr/tests/vm/wire"
)

const agentPort = wire.Port

// askAgain is how often a machine that boots is asked whether it has.
const askAgain = 15 * time.Second

// guest is the connection to the agent in the machine. It lasts over reboots.
type guest struct {
	conn net.Conn

	mu      sync.Mutex
	last    uint64
	pending map[uint64]chan wire.Reply
	closed  chan struct{}
}

func newGuest(conn net.Conn) *guest {
	g := &guest{conn: conn, pending: map[uint64]chan wire.Reply{}, closed: make(chan struct{})}
	go g.read()
	return g
}

func (g *guest) read() {
	defer close(g.closed)
	replies := bufio.NewReader(g.conn)
	for {
		line, err := replies.ReadBytes('\n')
		if err != nil {
			return
		}
		var r wire.Reply
		if json.Unmarshal(line, &r) != nil {
			continue // the agent was cut off by a reboot
		}
		g.mu.Lock()
		waiting := g.pending[r.ID]
		delete(g.pending, r.ID)
		g.mu.Unlock()
		if waiting != nil {
			waiting <- r
		}
	}
}

func (g *guest) close() { _ = g.conn.Close() }

// ask sends a request and waits for its reply.
func (g *guest) ask(ctx context.Context, r wire.Request) (wire.Reply, error) {
	answer := make(chan wire.Reply, 1)
	g.mu.Lock()
	g.last++
	r.ID = g.last
	g.pending[r.ID] = answer
	text, err := json.Marshal(r)
	if err == nil {
		_, err = g.conn.Write(append(text, '\n'))
	}
	g.mu.Unlock()
	if err != nil {
		return wire.Reply{}, fmt.Errorf("ask the agent: %w", err)
	}
	select {
	case reply := <-answer:
		return reply, nil
	case <-g.closed:
		return wire.Reply{}, errors.New("the machine has gone")
	case <-ctx.Done():
		g.mu.Lock()
		delete(g.pending, r.ID)
		g.mu.Unlock()
		return wire.Reply{}, fmt.Errorf("the machine does not answer: %w", ctx.Err())
	}
}

// run runs a program in the machine and returns what it printed. The error has
// what it wrote to stderr.
func (g *guest) run(ctx context.Context, stdin []byte, args ...string) (string, error) {
	r, err := g.ask(ctx, wire.Request{Args: args, Stdin: stdin})
	switch {
	case err != nil:
	case r.Error != "":
		err = errors.New(r.Error)
	case r.Code != 0:
		err = fmt.Errorf("exit code %d\n%s%s", r.Code, r.Stderr, r.Stdout)
	}
	if err != nil {
		return string(r.Stdout), fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return string(r.Stdout), nil
}

// awaitBoot waits until the agent answers in another boot than that before, and
// returns its name. Questions that a machine going down has swallowed are asked
// again.
func (g *guest) awaitBoot(ctx context.Context, before string) (string, error) {
	for {
		once, cancel := context.WithTimeout(ctx, askAgain)
		r, err := g.ask(once, wire.Request{})
		cancel()
		if err == nil && r.Boot != before {
			return r.Boot, nil
		}
		wait := time.NewTimer(askAgain / 5)
		select {
		case <-wait.C:
		case <-g.closed:
			return "", errors.New("the machine has gone")
		case <-ctx.Done():
			return "", fmt.Errorf("wait for the machine to boot: %w", ctx.Err())
		}
	}
}
