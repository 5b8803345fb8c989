package dial

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// server is what only the proxy can reach: its name resolves nowhere.
const server = "server.cluster.example:6443"

// proxy is a CONNECT proxy that knows one server. It asks for user and password
// when auth is not empty.
type proxy struct {
	*httptest.Server
	target string
	auth   string
	asked  atomic.Int32
}

func newProxy(t *testing.T, secure bool, auth string) *proxy {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
				c.Write([]byte("that was all"))
			}()
		}
	}()
	p := &proxy{target: lis.Addr().String(), auth: auth}
	if p.Server = httptest.NewUnstartedServer(p); secure {
		p.StartTLS()
	} else {
		p.Start()
	}
	t.Cleanup(p.Close)
	return p
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.asked.Add(1)
	user, password, _ := (&http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}).BasicAuth()
	switch {
	case r.Method != http.MethodConnect:
		http.Error(w, "CONNECT only", http.StatusMethodNotAllowed)
	case p.auth != "" && user+":"+password != p.auth:
		http.Error(w, "who are you?", http.StatusProxyAuthRequired)
	case r.Host != server:
		http.Error(w, "no such host", http.StatusBadGateway)
	default:
		up, err := net.Dial("tcp", p.target)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		down, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			up.Close()
			return
		}
		io.WriteString(down, "HTTP/1.1 200 Connection established\r\n\r\n")
		go func() {
			io.Copy(up, down)
			up.(*net.TCPConn).CloseWrite()
		}()
		io.Copy(down, up)
		down.Close()
		up.Close()
	}
}

// dialer trusts the proxy and asks env which to use.
func (p *proxy) dialer(env httpproxy.Config) Func {
	find := env.ProxyFunc()
	d := &proxied{
		find: func(r *http.Request) (*url.URL, error) { return find(r.URL) },
		dial: Dialer().DialContext,
	}
	if p.Certificate() != nil {
		d.tls = &tls.Config{RootCAs: x509.NewCertPool()}
		d.tls.RootCAs.AddCert(p.Certificate())
	}
	return d.dialContext
}

func TestProxyLeadsToServers(t *testing.T) {
	for name, c := range map[string]struct {
		secure     bool
		auth, user string
		err        string
	}{
		"http":                      {},
		"http with password":        {auth: "me:s3cret/@", user: "me:s3cret%2F%40@"},
		"https":                     {secure: true},
		"https with password":       {secure: true, auth: "me:", user: "me@"},
		"http, password missing":    {auth: "me:secret", err: "407 Proxy Authentication Required: give its user and password"},
		"https, password is not it": {secure: true, auth: "me:secret", user: "me:guess@", err: "407"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t, c.secure, c.auth)
			addr := strings.Replace(p.URL, "://", "://"+c.user, 1)
			conn, err := p.dialer(httpproxy.Config{HTTPSProxy: addr})(t.Context(), "tcp", server)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("the error is %v, want %s", err, c.err)
				}
				if strings.Contains(err.Error(), "guess") {
					t.Errorf("the error tells the password: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprint(conn, "hello, ")
			if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if !c.secure { // TLS to the proxy does not tell it that one direction ended
				if got, err := io.ReadAll(conn); string(got) != "hello, that was all" {
					t.Errorf("read %q, %v", got, err)
				}
				return
			}
			got := make([]byte, len("hello, "))
			if _, err := io.ReadFull(conn, got); string(got) != "hello, " {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
}

func TestSomeAddressesGoThroughNoProxy(t *testing.T) {
	p := newProxy(t, false, "")
	env := httpproxy.Config{HTTPSProxy: p.URL, NoProxy: "127.0.0.0/8,.example"}
	always := (&proxied{
		find: func(*http.Request) (*url.URL, error) { return url.Parse(p.URL) },
		dial: Dialer().DialContext,
	}).dialContext
	_, port, err := net.SplitHostPort(p.target)
	if err != nil {
		t.Fatal(err)
	}
	for what, dial := range map[string]func() (net.Conn, error){
		"an address of loopback":    func() (net.Conn, error) { return always(t.Context(), "tcp", p.target) },
		"a mapped one":              func() (net.Conn, error) { return always(t.Context(), "tcp", "[::ffff:127.0.0.1]:"+port) },
		"localhost":                 func() (net.Conn, error) { return always(t.Context(), "tcp4", "LOCALHOST:"+port) },
		"what NO_PROXY has":         func() (net.Conn, error) { return p.dialer(env)(t.Context(), "tcp", p.target) },
		"all without a proxy named": func() (net.Conn, error) { return p.dialer(httpproxy.Config{})(t.Context(), "tcp", p.target) },
	} {
		conn, err := dial()
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		conn.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // what is looked for is that the proxy is not asked
	if _, err := p.dialer(env)(ctx, "tcp", server); err == nil {
		t.Error("the server's name resolves")
	}
	if n := p.asked.Load(); n != 0 {
		t.Errorf("the proxy was asked %d times", n)
	}
}

func TestProxyErrorsSayWhatIsWrong(t *testing.T) {
	p := newProxy(t, false, "")
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "no", http.StatusForbidden)
	}))
	defer web.Close()
	for _, c := range []struct{ proxy, addr, want string }{
		{p.URL, "other.example:443", "502 Bad Gateway"},
		{p.URL, "no-port", "missing port"},
		{"http://" + gone.Addr().String(), server, "connection refused"},
		{web.URL, server, "403 Forbidden"},
		{"http://" + p.target, server, "is it an HTTP proxy?"},
		{"socks5://" + p.target, server, "only http:// and https:// proxies"},
		{"https://" + p.Listener.Addr().String(), server, "tls"},
	} {
		d := &proxied{find: func(*http.Request) (*url.URL, error) { return url.Parse(c.proxy) }, dial: Dialer().DialContext}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		conn, err := d.dialContext(ctx, "tcp", c.addr)
		cancel()
		if err == nil {
			conn.Close()
			t.Errorf("%s through %s works", c.addr, c.proxy)
		} else if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.addr) {
			t.Errorf("%s through %s: %v, want %s", c.addr, c.proxy, err, c.want)
		}
	}
}

// raw is a proxy that answers each connection by a function.
func raw(t *testing.T, answer func(net.Conn)) Func {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				answer(c)
			}()
		}
	}()
	return ProxyDialer(func(*http.Request) (*url.URL, error) { return url.Parse("http://" + lis.Addr().String()) })
}

func TestHungProxyIsLeftWhenTheContextEnds(t *testing.T) {
	left := make(chan struct{})
	dial := raw(t, func(c net.Conn) {
		io.Copy(io.Discard, c)
		close(left)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := dial(ctx, "tcp", server); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error is %v", err)
	}
	<-left
}

func TestBytesRightBehindTheAnswerAreNotLost(t *testing.T) {
	dial := raw(t, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			t.Error(err)
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nthe server speaks first")
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	conn, err := dial(ctx, "tcp", server)
	cancel() // ends nothing of a connection that stands
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); string(got) != "the server speaks first" {
		t.Errorf("read %q, %v", got, err)
	}
	if _, ok := Heard(conn); !ok {
		t.Error("the connection's silence can't be told")
	}
}

func TestProxyThatTalksWithoutEndIsLeft(t *testing.T) {
	dial := raw(t, func(c net.Conn) {
		line := "X-Filler: " + strings.Repeat("x", 1000) + "\r\n"
		for _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n"); err == nil; {
			_, err = io.WriteString(c, line)
		}
	})
	if _, err := dial(t.Context(), "tcp", server); err == nil {
		t.Error("an endless header is taken")
	}
}
