package loadbalancer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/knarr-dev/knarr/pkg/dial"
)

func TestKeepsToOneServerAndLeavesItWhenItDies(t *testing.T) {
	servers := map[string]*apiServer{}
	var addrs []string
	for _, name := range []string{"a", "b", "c"} {
		s := newServer(t, name, "")
		servers[name] = s
		addrs = append(addrs, s.addr)
	}
	l, _ := start(t, Config{Servers: addrs[:1]})
	l.SetServers(addrs)

	inUse := dialProxy(t, l)
	first, err := inUse.ask("who?")
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		wantServer(t, dialProxy(t, l), first)
	}
	if got := l.Status(); got.Current != servers[first].addr || statusOf(t, l, got.Current).Connections != 11 {
		t.Errorf("%s answers and the status is %+v", first, got)
	}

	servers[first].kill()
	wantCut(t, inUse)
	second, err := dialProxy(t, l).ask("who?")
	if err != nil || second == first {
		t.Fatalf("%q answers: %v", second, err)
	}
	s := statusOf(t, l, servers[first].addr)
	if s.State != StateUnreachable || !strings.Contains(s.LastError, "connection refused") || s.LastErrorAt.IsZero() || s.LastContact.IsZero() {
		t.Errorf("the status of the dead server is %+v", s)
	}

	// It stays with the second when the first is back.
	newServer(t, first, servers[first].addr)
	for range 5 {
		wantServer(t, dialProxy(t, l), second)
	}
	servers[second].kill()
	if third, err := dialProxy(t, l).ask("who?"); err != nil || third == second {
		t.Errorf("%q answers: %v", third, err)
	}
}

func TestAgentsSpreadOverTheServers(t *testing.T) {
	servers := []string{"10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:6443"}
	first := map[string]int{}
	for range 300 {
		l := newBalancer(t, Config{Servers: servers[:1]})
		l.SetServers(servers)
		first[l.Status().Servers[0].Address]++
	}
	for _, s := range servers {
		if first[s] < 50 {
			t.Errorf("%d of 300 agents begin with %s", first[s], s)
		}
	}
}

// A server whose machine is cut off leaves connections behind that look open.
func TestConnectionsToADeadServerAreCut(t *testing.T) {
	a, b := newServer(t, "a", ""), newServer(t, "b", "")
	l, _ := start(t, Config{Servers: []string{a.addr, b.addr}})
	proxied := dialProxy(t, l)
	wantServer(t, proxied, "a")
	inProcess, err := l.DialContext(t.Context(), "tcp", "not looked at")
	if err != nil {
		t.Fatal(err)
	}
	defer inProcess.Close()

	time.Sleep(20 * time.Millisecond) // until both are silent, by the kernel's clock
	a.deafen()
	wantServer(t, dialProxy(t, l), "b")
	wantCut(t, proxied)
	wantCut(t, inProcess)
	if _, err := inProcess.Write([]byte("x")); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("the error does not say why it was cut: %v", err)
	}
}

func TestConnectionsThatHearTheirServerSurviveAFailedDial(t *testing.T) {
	a, b := newServer(t, "a", ""), newServer(t, "b", "")
	var busy *client
	var talk sync.Mutex // the server is checked meanwhile
	var deaf atomic.Bool
	l, _ := start(t, Config{
		Servers: []string{a.addr, b.addr},
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == a.addr && deaf.Load() {
				talk.Lock()
				defer talk.Unlock()
				time.Sleep(20 * time.Millisecond)
				if _, err := busy.ask("still there?"); err != nil {
					t.Error(err)
				}
				return nil, errors.New("full")
			}
			return dial.Dialer().DialContext(ctx, network, addr)
		},
	})
	busy = dialProxy(t, l)
	wantServer(t, busy, "a")
	deaf.Store(true)
	wantServer(t, dialProxy(t, l), "b")
	talk.Lock()
	defer talk.Unlock()
	wantServer(t, busy, "a")
}

func TestConnectionsToARemovedServerAreCut(t *testing.T) {
	for name, given := range map[string]bool{"learned only": false, "named by --server too": true} {
		t.Run(name, func(t *testing.T) {
			a, b := newServer(t, "a", ""), newServer(t, "b", "")
			vip := freeAddr(t)
			cfg := Config{Servers: []string{vip}}
			if given {
				cfg.Servers = append(cfg.Servers, a.addr)
			}
			l, _ := start(t, cfg)
			l.SetServers([]string{a.addr})
			old := dialProxy(t, l)
			wantServer(t, old, "a")

			l.SetServers([]string{a.addr, b.addr})
			wantServer(t, old, "a")
			l.SetServers([]string{b.addr})
			wantCut(t, old)
			wantServer(t, dialProxy(t, l), "b")
			want := []string{b.addr, vip}
			if given {
				want = append(want, a.addr)
			}
			var got []string
			for _, s := range l.Status().Servers {
				got = append(got, s.Address)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("the servers are %v, want %v", got, want)
			}
		})
	}
}

func TestClusterWithoutServersIsNotBelieved(t *testing.T) {
	a := newServer(t, "a", "")
	l, _ := start(t, Config{Servers: []string{freeAddr(t)}})
	l.SetServers([]string{a.addr})
	c := dialProxy(t, l)
	wantServer(t, c, "a")
	l.SetServers(nil)
	l.SetServers([]string{"", "no-port", "host:0", ":6443", "10.0.0.1:65536"})
	wantServer(t, c, "a")
	if s := statusOf(t, l, a.addr); !s.Learned {
		t.Errorf("the server was forgotten: %+v", l.Status())
	}
}

func TestRemembersServersOverARestart(t *testing.T) {
	a := newServer(t, "a", "")
	file := filepath.Join(t.TempDir(), "servers.json")
	given := freeAddr(t)
	l, stop := start(t, Config{Servers: []string{given}, File: file})
	if got := l.Status().Servers; len(got) != 1 {
		t.Fatalf("servers before any is learned: %+v", got)
	}
	l.SetServers([]string{a.addr, a.addr})
	stop()

	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info.Mode(), err)
	}
	l, _ = start(t, Config{Servers: []string{given}, File: file})
	wantServer(t, dialProxy(t, l), "a")
	if got := l.Status().Servers; len(got) != 2 || got[0].Address != a.addr || !got[0].Learned || got[1].Learned {
		t.Errorf("servers after the restart: %+v", got)
	}
	newBalancer(t, Config{File: file}) // enough without --server
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDamagedFileIsAsGoodAsNone(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want int
	}{
		"empty":           {"", 0},
		"zeros":           {strings.Repeat("\x00", 64), 0},
		"torn":            {`{"servers":["10.0.0.1:64`, 0},
		"another type":    {`{"servers":"10.0.0.1:6443"}`, 0},
		"another content": {`[]`, 0},
		"one is damaged":  {`{"servers":["10.0.0.1:6443","10.0.0.2","10.0.0.3:x",""]}`, 1},
		"whole":           {`{"servers":["10.0.0.1:6443","[fd00::1]:6443"]}`, 2},
	} {
		file := filepath.Join(t.TempDir(), "servers.json")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		l := newBalancer(t, Config{Servers: []string{"given:6443"}, File: file})
		if got := len(l.Status().Servers) - 1; got != c.want {
			t.Errorf("%s: %d servers are remembered, want %d", name, got, c.want)
		}
		l.SetServers([]string{"10.0.0.9:6443"})
		if again := newBalancer(t, Config{File: file}).Status().Servers; len(again) != 1 || again[0].Address != "10.0.0.9:6443" {
			t.Errorf("%s: the file is not mended: %+v", name, again)
		}
	}
}

func TestFileThatCannotBeWrittenIsToldAndNoMore(t *testing.T) {
	var log bytes.Buffer
	l := newBalancer(t, Config{
		Servers: []string{"given:6443"},
		File:    filepath.Join(t.TempDir(), "no", "such", "folder"),
		Log:     slog.New(slog.NewTextHandler(&log, nil)),
	})
	l.SetServers([]string{"10.0.0.9:6443"})
	if len(l.Status().Servers) != 2 || !strings.Contains(log.String(), "level=WARN") {
		t.Errorf("servers %+v, log:\n%s", l.Status().Servers, log.String())
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  Config
		want string
	}{
		"no server":                   {Config{}, "--server"},
		"no port":                     {Config{Servers: []string{"10.0.0.1"}}, "host:port"},
		"no host":                     {Config{Servers: []string{":6443"}}, "host:port"},
		"open to the network":         {Config{Servers: []string{"a:1"}, Listen: netip.MustParseAddrPort("0.0.0.0:6444")}, "loopback"},
		"open to the network by IPv6": {Config{Servers: []string{"a:1"}, Listen: netip.MustParseAddrPort("[::]:6444")}, "loopback"},
	} {
		c.cfg.Log = slog.New(slog.DiscardHandler)
		if _, err := New(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestTakenPortEndsRun(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	l := newBalancer(t, Config{Servers: []string{"a:1"}, Listen: lis.Addr().(*net.TCPAddr).AddrPort()})
	if err := l.Run(t.Context(), make(chan struct{})); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("Run: %v", err)
	}
	wantNoGoroutines(t)
}

func TestClosedListenerEndsRun(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newBalancer(t, Config{Servers: []string{newServer(t, "a", "").addr}, Listener: lis})
	ready, result := make(chan struct{}), make(chan error, 1)
	go func() { result <- l.Run(t.Context(), ready) }()
	<-ready
	c := dialProxy(t, l)
	wantServer(t, c, "a")
	lis.Close()
	if err := <-result; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
	wantCut(t, c)
	wantNoGoroutines(t)
}

func TestWithoutAListenerThereIsDialContext(t *testing.T) {
	a := newServer(t, "a", "")
	l := newBalancer(t, Config{Servers: []string{a.addr}})
	ctx, cancel := context.WithCancel(t.Context())
	ready, result := make(chan struct{}), make(chan error, 1)
	go func() { result <- l.Run(ctx, ready) }()
	<-ready
	if l.Addr() != nil {
		t.Errorf("it listens on %s", l.Addr())
	}
	c, err := l.DialContext(t.Context(), "tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel()
	if err := <-result; err != nil {
		t.Error(err)
	}
	// Who dialled stops by itself.
	if _, err := fmt.Fprintln(c, "x"); err != nil {
		t.Error(err)
	}
	if statusOf(t, l, a.addr).Connections != 1 {
		t.Error("the connection is not counted")
	}
	c.Close()
	if statusOf(t, l, a.addr).Connections != 0 {
		t.Error("the connection is counted after its end")
	}
}

func TestAllServersDeadThenOneAppears(t *testing.T) {
	addrs := []string{freeAddr(t), freeAddr(t)}
	l, _ := start(t, Config{Servers: addrs})
	began := time.Now()
	wantCut(t, dialProxy(t, l))
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("a connection without a server is held for %s", took)
	}

	awaited := make(chan error, 1)
	go func() { awaited <- l.Await(t.Context()) }()
	waiting := dialProxy(t, l)
	fmt.Fprintln(waiting, "who?")
	newServer(t, "late", addrs[1])
	began = time.Now()
	if err := <-awaited; err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("the server was found after %s", took)
	}
	wantServer(t, dialProxy(t, l), "late")
	if line, err := waiting.lines.ReadString('\n'); line != "late: who?\n" {
		t.Errorf("the connection that waited gets %q, %v", line, err)
	}
}

func TestEndOfOneDirectionIsPassedOn(t *testing.T) {
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
		all, _ := io.ReadAll(c)
		fmt.Fprintf(c, "got %q", all)
	}()
	l, _ := start(t, Config{Servers: []string{lis.Addr().String()}})
	c := dialProxy(t, l)
	io.WriteString(c, "all of it")
	c.Conn.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); string(got) != `got "all of it"` {
		t.Errorf("read %q, %v", got, err)
	}
}

// What TCP can't tell is not told: see the package's comment.
func TestServerThatAcceptsAndNeverAnswersLooksHealthy(t *testing.T) {
	hung, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close() // the kernel accepts; nobody takes the connections
	l, _ := start(t, Config{Servers: []string{hung.Addr().String(), newServer(t, "b", "").addr}})
	c := dialProxy(t, l)
	fmt.Fprintln(c, "anyone?")
	c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection ends: %v", err)
	}
	if s := statusOf(t, l, hung.Addr().String()); s.State != StateHealthy {
		t.Errorf("the status is %+v", s)
	}
}

func TestAThousandConnectionsAtOnce(t *testing.T) {
	l, stop := start(t, Config{Servers: []string{newServer(t, "a", "").addr}})
	var clients sync.WaitGroup
	together := make(chan struct{})
	var open sync.WaitGroup
	open.Add(1000)
	for i := range 1000 {
		clients.Go(func() {
			once := sync.OnceFunc(open.Done)
			defer once()
			raw, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer raw.Close()
			raw.SetDeadline(time.Now().Add(30 * time.Second))
			for j := range 3 {
				text := fmt.Sprintf("%d of client %d", j, i)
				if _, err := fmt.Fprintln(raw, text); err != nil {
					t.Error(err)
					return
				}
				answer := make([]byte, len("a: \n")+len(text))
				if _, err := io.ReadFull(raw, answer); err != nil || string(answer) != "a: "+text+"\n" {
					t.Errorf("client %d reads %q, %v", i, answer, err)
					return
				}
				if j == 0 {
					once()
					<-together
				}
			}
		})
	}
	open.Wait()
	if n := l.Status().Servers[0].Connections; n != 1000 {
		t.Errorf("%d connections are open", n)
	}
	close(together)
	clients.Wait()
	// The servers' ends of the last ones may be on their way out.
	for range 1000 {
		if l.Status().Servers[0].Connections == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if n := l.Status().Servers[0].Connections; n != 0 {
		t.Errorf("%d connections are counted after their end", n)
	}
	stop()
}

func TestStopCutsWhatCameThroughTheListener(t *testing.T) {
	a := newServer(t, "a", "")
	l, stop := start(t, Config{Servers: []string{a.addr}})
	c := dialProxy(t, l)
	wantServer(t, c, "a")
	stop()
	wantCut(t, c)
	if n := l.Status().Servers[0].Connections; n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

func TestLogTellsEachChangeOnce(t *testing.T) {
	var log bytes.Buffer
	dead := freeAddr(t)
	l := newBalancer(t, Config{Servers: []string{dead}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if err := l.Await(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrNoServer) || !strings.Contains(err.Error(), dead+": connect: connection refused") {
			t.Errorf("Await: %v", err)
		}
		cancel()
	}
	newServer(t, "late", dead)
	for range 3 {
		if err := l.Await(t.Context()); err != nil {
			t.Error(err)
		}
		c, err := l.DialContext(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	var got []string
	for line := range strings.Lines(log.String()) {
		_, rest, _ := strings.Cut(line, `msg="`)
		text, _, _ := strings.Cut(rest, `"`)
		got = append(got, text)
	}
	if want := []string{"API server does not answer", "API server answers again", "using API server"}; !reflect.DeepEqual(got, want) {
		t.Errorf("the log says %q, want %q", got, want)
	}
}

func TestProxyDialerSuits(t *testing.T) {
	var _ dial.Func = dial.ProxyDialer(nil)
	newBalancer(t, Config{Servers: []string{"a:1"}, Dial: dial.ProxyDialer(nil)})
}
