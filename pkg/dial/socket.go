package dial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// maxLine bounds what either side of a [Socket] says before data flows, bytes.
const maxLine = 4 << 10

// Socket connects by way of a process that serves the unix socket at path with
// [ServeSocket], and so from that one's network: names are resolved there, and
// localhost is its own.
//
// What is said: the client sends "<network> <address>\n", and is answered "ok\n"
// or one line that tells what went wrong. After "ok" the bytes are the peer's.
func Socket(path string) Func {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", addr, err)
		}
		// A deadline in the past ends what waits.
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		answer, err := ask(conn, network, addr)
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err == nil && answer != "ok" {
			err = errors.New(answer)
		}
		if err != nil {
			conn.Close()
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, fmt.Errorf("dial %s: %w", addr, err)
		}
		return conn, nil
	}
}

func ask(conn net.Conn, network, addr string) (string, error) {
	if strings.ContainsAny(network+addr, " \n") {
		return "", errors.New("not an address")
	}
	if _, err := fmt.Fprintf(conn, "%s %s\n", network, addr); err != nil {
		return "", err
	}
	return readLine(conn)
}

// readLine reads no further than the line: what follows is the peer's.
func readLine(r io.Reader) (string, error) {
	var line []byte
	one := make([]byte, 1)
	for len(line) < maxLine {
		if _, err := io.ReadFull(r, one); err != nil {
			return "", fmt.Errorf("read an answer: %w", err)
		}
		if one[0] == '\n' {
			return string(line), nil
		}
		line = append(line, one[0])
	}
	return "", errors.New("read an answer: it does not end")
}

// ServeSocket connects those who come to l with [Socket] to where they want, by
// dial. It returns when l is closed, and then has ended every connection.
func ServeSocket(l net.Listener, dial Func) {
	Serve(l, func(ctx context.Context, conn net.Conn) (net.Conn, error) {
		line, err := readLine(conn)
		if err != nil {
			return nil, err
		}
		network, addr, _ := strings.Cut(line, " ")
		to, err := dial(ctx, network, addr)
		if err != nil {
			_, werr := fmt.Fprintf(conn, "%s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
			return nil, errors.Join(err, werr)
		}
		if _, err := io.WriteString(conn, "ok\n"); err != nil {
			to.Close()
			return nil, err
		}
		return to, nil
	})
}

// Serve accepts connections and passes on what comes, both ways, to the one that
// connect returns for each; one for which it fails is closed. It returns when l
// is closed, and then has ended every connection.
func Serve(l net.Listener, connect func(context.Context, net.Conn) (net.Conn, error)) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Too many open files, mostly: others are about to be closed.
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		all.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			to, err := connect(ctx, conn)
			if err != nil {
				return
			}
			defer to.Close()
			stopTo := context.AfterFunc(ctx, func() { to.Close() })
			defer stopTo()
			Pass(conn, to)
		})
	}
}

// Pass copies both ways until both are at their ends, or one fails. Both are still
// to be closed then.
func Pass(a, b net.Conn) {
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			from, to := way[0], way[1]
			_, err := io.Copy(to, from)
			half, ok := to.(interface{ CloseWrite() error })
			if err == nil && ok && half.CloseWrite() == nil {
				return
			}
			a.Close()
			b.Close()
		})
	}
	both.Wait()
}
