package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Run listens and carries connections to servers until ctx ends; then it closes
// all that came through the listener. It closes ready once it listens, whether
// or not a server answers. It also looks after servers that were found dead.
func (l *LoadBalancer) Run(ctx context.Context, ready chan<- struct{}) error {
	lis, err := l.open(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() { l.watch(ctx) })
	close(ready)
	if lis == nil {
		<-ctx.Done()
		return nil
	}
	l.log.Debug("API clients of this node are served", "address", lis.Addr())
	defer context.AfterFunc(ctx, func() { lis.Close() })()
	defer lis.Close()
	for pause := time.Duration(0); ; {
		client, err := lis.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				client.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept connections of API clients on %s: %w", lis.Addr(), err)
		case err != nil:
			// No descriptor is free, or the client has gone already.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			l.log.Warn("a connection of an API client was not accepted", "err", err, "next", pause)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		work.Go(func() { l.carry(ctx, client) })
	}
}

// Addr is where Run listens; nil before it is ready and when it does not.
func (l *LoadBalancer) Addr() net.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addr
}

func (l *LoadBalancer) open(ctx context.Context) (net.Listener, error) {
	lis := l.cfg.Listener
	if lis == nil && l.cfg.Listen.IsValid() {
		// Nothing gets lost on loopback: no probes.
		lc := net.ListenConfig{KeepAlive: -1}
		var err error
		if lis, err = lc.Listen(ctx, "tcp", l.cfg.Listen.String()); err != nil {
			return nil, fmt.Errorf("listen for API clients of this node: %w", err)
		}
	}
	if lis != nil {
		l.mu.Lock()
		l.addr = lis.Addr()
		l.mu.Unlock()
	}
	return lis, nil
}

// watch asks servers that were found dead, or may be, whether they answer.
func (l *LoadBalancer) watch(ctx context.Context) {
	var checks sync.WaitGroup
	defer checks.Wait()
	for {
		due, wait, changed := l.checks()
		for _, s := range due {
			checks.Go(func() {
				defer l.checked(s)
				if c, err := l.attempt(ctx, s); err == nil {
					c.Close()
				}
			})
		}
		var again <-chan time.Time
		if wait >= 0 {
			again = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-again:
		}
	}
}

// carry brings a client's connection to a server. When none answers it is
// closed, so that the client backs off.
func (l *LoadBalancer) carry(ctx context.Context, client net.Conn) {
	defer client.Close()
	up, err := l.connect(ctx)
	if err != nil {
		l.log.Debug("a connection of an API client was closed", "client", client.RemoteAddr(), "err", err)
		return
	}
	defer up.Close()
	defer context.AfterFunc(ctx, func() {
		client.Close()
		up.cut(context.Cause(ctx))
	})()
	var back sync.WaitGroup
	back.Go(func() { up.judge(copyHalf(client, up.Conn)) })
	up.judge(copyHalf(up.Conn, client))
	back.Wait()
}

// copyHalf carries one direction to its end. Between two TCP connections the
// kernel does that (splice), without buffers here.
func copyHalf(dst, src net.Conn) error {
	_, err := io.Copy(dst, src)
	if err == nil {
		err = closeWrite(dst)
	}
	if err != nil {
		// The other direction has to end too.
		dst.Close()
		src.Close()
	}
	return err
}
