package dial

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// served is a socket whose server connects by d.
func served(t *testing.T, d Func) Func {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { ServeSocket(l, d); close(ended) }()
	t.Cleanup(func() { l.Close(); <-ended })
	return Socket(path)
}

func TestSocketConnectsByTheOneWhoServesIt(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	go func() {
		c, err := lis.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "hello\n") // before anything is asked
		said, _ := io.ReadAll(c)
		c.Write(said)
	}()
	var asked string
	dial := served(t, func(ctx context.Context, network, addr string) (net.Conn, error) {
		asked = network + " " + addr
		return (&net.Dialer{}).DialContext(ctx, network, lis.Addr().String())
	})
	c, err := dial(t.Context(), "tcp", "registry.example:443")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	if line, err := in.ReadString('\n'); line != "hello\n" {
		t.Errorf("first came %q: %v", line, err)
	}
	text := strings.Repeat("x", 1<<20)
	go func() {
		io.WriteString(c, text)
		c.(*net.UnixConn).CloseWrite()
	}()
	if back, err := io.ReadAll(in); string(back) != text || err != nil {
		t.Errorf("%d of %d bytes came back: %v", len(back), len(text), err)
	}
	if asked != "tcp registry.example:443" {
		t.Errorf("asked for %q", asked)
	}
}

func TestSocketTellsWhyThereIsNoConnection(t *testing.T) {
	dial := served(t, func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no such host\nat all")
	})
	_, err := dial(t.Context(), "tcp", "registry.example:443")
	if err == nil || err.Error() != "dial registry.example:443: no such host; at all" {
		t.Errorf("%v", err)
	}
	if _, err := dial(t.Context(), "tcp", "two words:443"); err == nil {
		t.Error("an address of two lines was sent")
	}
}

func TestSocketGivesUpWhenItsContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dial := served(t, func(serving context.Context, _, _ string) (net.Conn, error) {
		cancel()
		<-serving.Done()
		return nil, serving.Err()
	})
	if _, err := dial(ctx, "tcp", "registry.example:443"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
