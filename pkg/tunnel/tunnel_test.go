package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestCutTunnelEndsEverythingInItAndComesBack(t *testing.T) {
	a := newAPIServer(t, 0)
	r := newRelay(t, a.addr())
	cfg := a.config(t, "n1")
	cfg.Dial = r.dial
	c, _ := join(t, a, cfg)

	quiet := through(t, a, "n1", target(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) }))
	stuck := through(t, a, "n1", target(t, func(c *net.TCPConn) { io.ReadFull(c, make([]byte, 1)); <-t.Context().Done() }))
	busy := through(t, a, "n1", target(t, func(c *net.TCPConn) {
		for {
			if _, err := c.Write(make([]byte, 1000)); err != nil {
				return
			}
		}
	}))
	if _, err := io.ReadFull(busy, make([]byte, 100<<10)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 3)
	for what, use := range map[string]func() error{
		"a Read that waits, as of logs -f": func() error { return second(quiet.Read(make([]byte, 1))) },
		"a Read of much data":              func() error { return second(io.Copy(io.Discard, busy)) },
		"a Write that waits": func() (err error) {
			for err == nil {
				_, err = stuck.Write(make([]byte, 1<<20))
			}
			return err
		},
	} {
		go func() {
			if err := use(); !errors.Is(err, ErrCut) {
				ended <- fmt.Errorf("%s ends with %v", what, err)
			} else {
				ended <- nil
			}
		}()
	}
	time.Sleep(50 * time.Millisecond) // for all to be under way
	began, before := time.Now(), a.tunnel("n1")
	r.cut()
	for range 3 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %s", took)
	}

	remade(t, a, "n1", before)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the tunnel was back after %s", took)
	}
	wantEcho(t, through(t, a, "n1", target(t, echo)), "again")
	eventually(t, "the agent tells so", func() bool { return connected(c) == 1 })
	s := c.Status()[0]
	if s.Server != a.addr() || s.Since.IsZero() || s.LastErrorAt.IsZero() || s.Denied || !strings.Contains(s.LastError, ErrCut.Error()) {
		t.Errorf("the status is %+v", s)
	}
}

func TestTunnelComesBackThoughATargetHangs(t *testing.T) {
	a := newAPIServer(t, 0)
	r := newRelay(t, a.addr())
	cfg := a.config(t, "n1")
	cfg.Dial = r.dial
	join(t, a, cfg)
	c := through(t, a, "n1", target(t, func(c *net.TCPConn) { <-t.Context().Done() }))
	var err error
	for c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err == nil; {
		_, err = c.Write(make([]byte, 1<<20)) // until no buffer takes any more
	}
	before := a.tunnel("n1")
	r.cut()
	remade(t, a, "n1", before)
}

func TestHungPeerIsNoticedOnBothSides(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t, quick)
	r := newRelay(t, a.addr())
	cfg := a.config(t, "n1")
	cfg.Dial = r.dial
	c, _ := join(t, a, cfg)
	follow := through(t, a, "n1", target(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) }))

	time.Sleep(3 * quick)
	if connected(c) != 1 || !a.Connected("n1") {
		t.Fatal("a silent tunnel was given up")
	}
	r.frozen.Store(true)
	began := time.Now()
	if _, err := follow.Read(make([]byte, 1)); !errors.Is(err, ErrCut) || !strings.Contains(err.Error(), "silent") {
		t.Errorf("the connection ends with %v", err)
	}
	if took := time.Since(began); took > 20*quick {
		t.Errorf("it took %s", took)
	}
	eventually(t, "the agent notices", func() bool { return strings.Contains(c.Status()[0].LastError, "silent") })
	eventually(t, "the server forgets the tunnel", func() bool { return !a.Connected("n1") && len(a.Nodes()) == 0 })
	if _, err := a.Dial(t.Context(), "n1", netip.MustParseAddrPort("127.0.0.1:1")); !errors.Is(err, ErrNotConnected) {
		t.Errorf("Dial: %v", err)
	}
}

// A sign of life that queues behind data is late; the data is a sign, too.
func TestBusyTunnelIsNotTakenForHung(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t, quick)
	c, _ := join(t, a, a.config(t, "n1"))
	busy := through(t, a, "n1", target(t, func(c *net.TCPConn) {
		for {
			if _, err := c.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}))
	since := c.Status()[0].Since
	for end := time.Now().Add(5 * quick); time.Now().Before(end); {
		if _, err := busy.Read(make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if s := c.Status()[0]; !s.Connected || !s.Since.Equal(since) {
		t.Errorf("the tunnel was made anew: %+v", s)
	}
}

// With the keep-alive of a test, which is reckoned up to the real one.
func TestIdleTunnelCostsNextToNothing(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t, quick)
	r := newRelay(t, a.addr())
	cfg := a.config(t, "n1")
	cfg.Dial = r.dial
	join(t, a, cfg)
	time.Sleep(quick)
	bytes, pieces, began := r.bytes.Load(), r.pieces.Load(), time.Now()
	time.Sleep(6 * quick)
	idle := float64(time.Since(began)) / float64(quick) * DefaultKeepAlive.Seconds()
	// Ethernet, IPv4 and TCP with timestamps put 66 bytes before each segment,
	// and each may be acknowledged by one of its own.
	const framing = 2 * 66
	sent := float64(r.bytes.Load()-bytes) + framing*float64(r.pieces.Load()-pieces)
	if rate := sent / idle; rate == 0 || rate > 60 {
		t.Errorf("an idle tunnel costs %.1f bytes a second on the wire, want 60 at most", rate)
	} else {
		t.Logf("an idle tunnel costs %.1f bytes a second on the wire", rate)
	}
}

func TestAgentThatOpensAStreamLosesItsTunnel(t *testing.T) {
	a := newAPIServer(t, 0)
	rogue := NewClient(a.config(t, "n1"))
	l, err := rogue.connect(t.Context(), a.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer l.fail(io.EOF)
	eventually(t, "the tunnel stands", func() bool { return a.Connected("n1") })
	l.session.OpenStream() // it may fail when the end comes at once
	<-l.session.CloseChan()
	eventually(t, "the server forgets the tunnel", func() bool { return !a.Connected("n1") })
	if text := a.log.String(); !strings.Contains(text, "level=WARN") || !strings.Contains(text, "node=n1") {
		t.Errorf("the log does not tell:\n%s", text)
	}
}

func TestAgentThatBreaksTheProtocolHarmsItselfOnly(t *testing.T) {
	for name, answer := range map[string][]byte{
		"an unknown record":    {0xee, 0, 0},
		"data for an answer":   append(head(kindData, 2), "ok"...),
		"a text without end":   {byte(kindFailed), 0xff, 0xff},
		"the end of the data":  head(kindEnd, 0),
		"no answer, but close": nil,
	} {
		a := newAPIServer(t, 0)
		rogue := NewClient(a.config(t, "rogue"))
		l, err := rogue.connect(t.Context(), a.addr())
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			s, err := l.session.AcceptStream()
			if err != nil {
				t.Error(err)
				return
			}
			s.Write(answer)
			s.Close()
		}()
		join(t, a, a.config(t, "good"))
		eventually(t, "the tunnel stands", func() bool { return a.Connected("rogue") })
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if c, err := a.Dial(ctx, "rogue", netip.MustParseAddrPort("127.0.0.1:1")); err == nil || ctx.Err() != nil {
			t.Errorf("%s: Dial: %v, %v", name, c, err)
		}
		cancel()
		wantEcho(t, through(t, a, "good", target(t, echo)), "x")
		l.fail(io.EOF)
	}
}

func TestNewestTunnelOfANodeCounts(t *testing.T) {
	a := newAPIServer(t, 0)
	cfg := a.config(t, "n1")
	older, stop := join(t, a, cfg)
	follow := through(t, a, "n1", target(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) }))

	newer, err := NewClient(cfg).connect(t.Context(), a.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer newer.fail(io.EOF)
	if _, err := follow.Read(make([]byte, 1)); !errors.Is(err, ErrCut) || !strings.Contains(err.Error(), "newer") {
		t.Errorf("a connection of the older tunnel ends with %v", err)
	}
	eventually(t, "the older agent notices", func() bool { return older.Status()[0].LastError != "" })
	stop()
	// The older agent may have come again, and been the newest for a moment.
	if !newer.session.IsClosed() && !a.Connected("n1") {
		t.Error("the newer tunnel is forgotten")
	}
}

func TestEachServerHasItsTunnel(t *testing.T) {
	a, b := newAPIServer(t, 0), newAPIServer(t, 0)
	cfg := a.config(t, "n1")
	cfg.TLS.RootCAs.AddCert(b.http.Certificate())
	cfg.Servers = []string{a.addr(), b.addr()}
	c, _ := join(t, a, cfg)
	addr := target(t, echo)
	wantEcho(t, through(t, a, "n1", addr), "by a")
	eventually(t, "the other tunnel stands", func() bool { return b.Connected("n1") })
	kept := through(t, b, "n1", addr)
	wantEcho(t, kept, "by b")

	c.SetServers(nil) // not believed
	c.SetServers([]string{b.addr(), b.addr()})
	eventually(t, "the tunnel to a ends", func() bool { return !a.Connected("n1") })
	wantEcho(t, kept, "still by b")
	if s := c.Status(); len(s) != 1 || s[0].Server != b.addr() {
		t.Errorf("the status is %+v", s)
	}
	c.SetServers(cfg.Servers)
	eventually(t, "the tunnel to a is back", func() bool { return a.Connected("n1") })
	wantEcho(t, kept, "still by b")
}

func TestServerWithTwoAddressesHasOneTunnel(t *testing.T) {
	a := newAPIServer(t, 0)
	r := newRelay(t, a.addr())
	cfg := a.config(t, "n1")
	cfg.Servers = []string{r.addr()}
	c, _ := join(t, a, cfg)
	kept := through(t, a, "n1", target(t, echo))
	wantEcho(t, kept, "before")

	c.SetServers([]string{r.addr(), a.addr()})
	eventually(t, "the second address is tried", func() bool { return c.Status()[1].LastError != "" })
	if s := c.Status()[1]; s.Connected || !strings.Contains(s.LastError, r.addr()) {
		t.Errorf("the status of the second address is %+v", s)
	}
	wantEcho(t, kept, "after")

	r.lis.Close() // the first address is gone for good
	r.cut()
	began := time.Now()
	eventually(t, "the second address takes over", func() bool { return c.Status()[1].Connected && a.Connected("n1") })
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	wantEcho(t, through(t, a, "n1", target(t, echo)), "by the second")
}

func TestDeniedCredentialIsToldAndTriedSlowly(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		a := newAPIServer(t, 0)
		a.deny.Store(int32(status))
		log := &logs{}
		cfg := a.config(t, "n1")
		cfg.Log = debugLog(log)
		c, stop := run(t, cfg)
		eventually(t, "the credential is denied", func() bool { return c.Status()[0].Denied })
		time.Sleep(firstPause) // another failure would be tried again by now
		if n := a.asked.Load(); n != 1 {
			t.Errorf("%d: the server was asked %d times", status, n)
		}
		s := c.Status()[0]
		if s.Connected || !strings.Contains(s.LastError, http.StatusText(status)+": denied for a test") {
			t.Errorf("%d: the status is %+v", status, s)
		}
		_, err := c.connect(t.Context(), a.addr())
		var denied *DeniedError
		if !errors.As(err, &denied) || denied.Server != a.addr() || !strings.HasPrefix(denied.Status, fmt.Sprint(status)) {
			t.Errorf("%d: the error is %#v", status, err)
		}
		if n := strings.Count(log.String(), "level=WARN"); n != 1 {
			t.Errorf("%d: %d warnings", status, n)
		}
		a.deny.Store(0)
		c.Reconnect() // with another credential, say
		eventually(t, "the tunnel stands", func() bool { return a.Connected("n1") && connected(c) == 1 && !c.Status()[0].Denied })
		stop()
	}
}

func TestReconnectMakesTunnelsAnew(t *testing.T) {
	a := newAPIServer(t, 0)
	c, _ := join(t, a, a.config(t, "n1"))
	follow := through(t, a, "n1", target(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) }))
	c.Reconnect()
	if _, err := follow.Read(make([]byte, 1)); !errors.Is(err, ErrCut) {
		t.Errorf("the connection ends with %v", err)
	}
	eventually(t, "the tunnel stands again", func() bool { return a.asked.Load() == 2 && a.Connected("n1") && connected(c) == 1 })
}

func TestDroppedNodeLosesItsTunnel(t *testing.T) {
	a := newAPIServer(t, 0)
	join(t, a, a.config(t, "n1"))
	follow := through(t, a, "n1", target(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) }))
	a.deny.Store(http.StatusForbidden)
	a.Drop("n2") // has none
	a.Drop("n1")
	if _, err := follow.Read(make([]byte, 1)); !errors.Is(err, ErrCut) || !strings.Contains(err.Error(), "does not belong") {
		t.Errorf("the connection ends with %v", err)
	}
	if a.Connected("n1") {
		t.Error("the node has a tunnel")
	}
}

func TestDeadlineOfTheUpgradeEndsWithIt(t *testing.T) {
	a := newAPIServer(t, 0)
	a.upgradeTimeout = 300 * time.Millisecond
	join(t, a, a.config(t, "n1"))
	time.Sleep(a.upgradeTimeout + 50*time.Millisecond)
	wantEcho(t, through(t, a, "n1", target(t, echo)), "later")
	if n := a.asked.Load(); n != 1 {
		t.Errorf("the tunnel was made %d times", n)
	}
}

func TestNodesTellsWhoIsConnected(t *testing.T) {
	a := newAPIServer(t, 0)
	for _, node := range []string{"b", "a"} {
		join(t, a, a.config(t, node))
	}
	eventually(t, "both stand", func() bool { return len(a.Nodes()) == 2 })
	nodes := a.Nodes()
	if nodes[0].Name != "a" || nodes[1].Name != "b" {
		t.Errorf("the nodes are %+v", nodes)
	}
	for _, n := range nodes {
		if time.Since(n.Since) > time.Minute || !n.From.Addr().IsLoopback() {
			t.Errorf("the node is %+v", n)
		}
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	a := newAPIServer(t, 0)
	addr := target(t, echo)
	_, stop := join(t, a, a.config(t, "n1"))
	open := through(t, a, "n1", addr)
	wantEcho(t, open, "x")
	for range 20 {
		c := through(t, a, "n1", addr)
		wantEcho(t, c, "y")
		c.Close()
	}
	stop()
	if _, err := open.Read(make([]byte, 1)); !errors.Is(err, ErrCut) {
		t.Errorf("a connection ends with %v", err)
	}
	eventually(t, "the server notices", func() bool { return !a.Connected("n1") })
	join(t, a, a.config(t, "n1"))
	open = through(t, a, "n1", addr)
	a.Close()
	if _, err := open.Read(make([]byte, 1)); !errors.Is(err, ErrCut) || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("a connection ends with %v", err)
	}
	a.Close()
	if _, err := a.Dial(t.Context(), "n1", addr); !errors.Is(err, ErrNotConnected) {
		t.Errorf("Dial after Close: %v", err)
	}
	if _, err := NewClient(a.config(t, "n1")).connect(t.Context(), a.addr()); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a tunnel after Close: %v", err)
	}
	if nodes := a.Nodes(); len(nodes) != 0 {
		t.Errorf("nodes after Close: %+v", nodes)
	}
}

func TestNoGoroutineIsLeftWhenAllHasEnded(t *testing.T) {
	t.Run("use", func(t *testing.T) {
		a := newAPIServer(t, quick)
		r := newRelay(t, a.addr())
		cfg := a.config(t, "n1")
		cfg.Dial = r.dial
		_, stop := join(t, a, cfg)
		for range 2 {
			wantEcho(t, through(t, a, "n1", target(t, echo)), "x")
			before := a.tunnel("n1")
			r.cut()
			remade(t, a, "n1", before)
		}
		stop()
	})
	wantNoGoroutines(t)
}

func TestOtherRequestsAreRefused(t *testing.T) {
	a := newAPIServer(t, 0)
	node, other := a.tls(t, "system:node:n1"), a.tls(t, "jane")
	nobody := a.tls(t, "")
	nobody.Certificates = nil
	upgrade := http.Header{"Connection": {"keep-alive, Upgrade"}, "Upgrade": {Protocol}}
	for name, c := range map[string]struct {
		config *tls.Config
		http2  bool
		method string
		header http.Header
		want   int
	}{
		"no method of ours":      {node, false, http.MethodPost, upgrade, http.StatusMethodNotAllowed},
		"no upgrade":             {node, false, http.MethodGet, nil, http.StatusUpgradeRequired},
		"another upgrade":        {node, false, http.MethodGet, http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}, http.StatusUpgradeRequired},
		"another version":        {node, false, http.MethodGet, http.Header{"Connection": {"Upgrade"}, "Upgrade": {"knarr-tunnel/2"}}, http.StatusUpgradeRequired},
		"upgrade not for us":     {node, false, http.MethodGet, http.Header{"Upgrade": {Protocol}}, http.StatusUpgradeRequired},
		"HTTP/2":                 {node, true, http.MethodGet, nil, http.StatusUpgradeRequired},
		"a user, and no node":    {other, false, http.MethodGet, upgrade, http.StatusForbidden},
		"nobody":                 {nobody, false, http.MethodGet, upgrade, http.StatusUnauthorized},
		"an agent, by the rules": {node, false, http.MethodGet, upgrade, http.StatusSwitchingProtocols},
	} {
		transport := &http.Transport{TLSClientConfig: c.config.Clone(), ForceAttemptHTTP2: c.http2}
		req, err := http.NewRequestWithContext(t.Context(), c.method, "https://"+a.addr()+Path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range c.header {
			req.Header[k] = v
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		resp.Body.Close()
		transport.CloseIdleConnections()
		if resp.StatusCode != c.want || c.http2 != (resp.ProtoMajor == 2) {
			t.Errorf("%s: %s over %s, want %d", name, resp.Status, resp.Proto, c.want)
		}
	}
}

func TestServerThatIsNoneIsTold(t *testing.T) {
	a := newAPIServer(t, 0)
	cfg := a.config(t, "n1")
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	go func() {
		for answers := []string{"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", "SSH-2.0-x\r\n"}; len(answers) > 0; answers = answers[1:] {
			raw, err := lis.Accept()
			if err != nil {
				return
			}
			c := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{a.http.TLS.Certificates[0]}})
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, answers[0])
			c.Close()
		}
	}()
	c := NewClient(cfg)
	for _, want := range []string{"404 Not Found: nope", `it upgrades to "websocket"`, "malformed HTTP"} {
		if _, err := c.connect(t.Context(), lis.Addr().String()); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), lis.Addr().String()) {
			t.Errorf("the error is %v, want %s", err, want)
		}
	}
	strange := NewClient(ClientConfig{Servers: cfg.Servers, TLS: &tls.Config{}, Allow: cfg.Allow, Log: discard})
	if _, err := strange.connect(t.Context(), a.addr()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server of another authority: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if _, err := c.connect(ctx, silent.Addr().String()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a server that says nothing: %v", err)
	}
}

// Bytes that come in one piece with the request belong to the tunnel.
func TestWhatComesRightBehindTheRequestIsNotLost(t *testing.T) {
	a := newAPIServer(t, time.Hour)
	config := a.tls(t, "system:node:n1")
	conn, err := tls.Dial("tcp", a.addr(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	ping, err := hex.DecodeString("00" + "02" + "0001" + "00000000" + "0000002a")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n%s", Path, Protocol, ping)
	br := bufio.NewReader(conn)
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	pong := make([]byte, len(ping))
	if _, err := io.ReadFull(br, pong); err != nil || hex.EncodeToString(pong) != "00"+"02"+"0002"+"00000000"+"0000002a" {
		t.Errorf("the answer is %x, %v", pong, err)
	}
}

func TestPausesGrowAndHaveALimit(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t, 0)
	cfg := a.config(t, "n1")
	dials := make(chan time.Time, 10)
	cfg.Dial = func(context.Context, string, string) (net.Conn, error) {
		dials <- time.Now()
		return nil, errors.New("no route")
	}
	c, _ := run(t, cfg)
	last := <-dials
	for _, most := range []time.Duration{firstPause, 2 * firstPause} {
		next := <-dials
		if pause := next.Sub(last); pause < most/2 || pause > most+most/2 {
			t.Errorf("the pause is %s, want %s to %s", pause, most/2, most)
		}
		last = next
	}
	if s := c.Status()[0]; s.Connected || !strings.Contains(s.LastError, "no route") {
		t.Errorf("the status is %+v", s)
	}
}
