package dial

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// maxProxyAnswer bounds the head of a proxy's answer, in bytes.
const maxProxyAnswer = 64 << 10

// ProxyDialer connects through the proxy that proxyURL names for an address, by
// HTTP CONNECT (RFC 9110, section 9.3.6), and directly where it names none.
// proxyURL is of the type of http.Transport's Proxy and is asked as for
// https://addr; http.ProxyFromEnvironment and golang.org/x/net/http/httpproxy
// honour NO_PROXY. Loopback addresses and localhost never go through a proxy.
//
// Proxies are http:// or https:// (checked against the system's authorities),
// with user and password in the address if they ask for some. Host names are
// resolved by the proxy. Connections are those of [Dialer]; behind a proxy they
// notice the death of the proxy, not of what is behind it.
func ProxyDialer(proxyURL func(*http.Request) (*url.URL, error)) Func {
	return (&proxied{find: proxyURL, dial: Dialer().DialContext}).dialContext
}

type proxied struct {
	find func(*http.Request) (*url.URL, error)
	dial Func
	tls  *tls.Config // for https:// proxies; nil: the system's authorities
}

func (p *proxied) dialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	if ip, err := netip.ParseAddr(host); strings.EqualFold(host, "localhost") || err == nil && ip.IsLoopback() {
		return p.dial(ctx, network, addr)
	}
	u, err := p.find(&http.Request{Method: http.MethodConnect, Host: addr, URL: &url.URL{Scheme: "https", Host: addr}})
	if err != nil {
		return nil, fmt.Errorf("find the proxy for %s: %w", addr, err)
	}
	if u == nil {
		return p.dial(ctx, network, addr)
	}
	conn, err := p.through(ctx, network, addr, u)
	if err != nil {
		// The address may hold a password.
		return nil, fmt.Errorf("dial %s through proxy %s://%s: %w", addr, u.Scheme, u.Host, err)
	}
	return conn, nil
}

func (p *proxied) through(ctx context.Context, network, addr string, u *url.URL) (net.Conn, error) {
	port := u.Port()
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("only http:// and https:// proxies lead to an API server; name one in HTTPS_PROXY, or the server in NO_PROXY")
	case port == "":
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	raw, err := p.dial(ctx, network, net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	conn, err := p.ask(raw, addr, u)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// ask has the proxy connect to addr.
func (p *proxied) ask(conn net.Conn, addr string, u *url.URL) (net.Conn, error) {
	if u.Scheme == "https" {
		config := &tls.Config{}
		if p.tls != nil {
			config = p.tls.Clone()
		}
		config.ServerName = u.Hostname()
		config.NextProtos = []string{"http/1.1"}
		conn = tls.Client(conn, config)
	}
	req := &http.Request{
		Method: http.MethodConnect,
		URL:    &url.URL{Opaque: addr},
		Host:   addr,
		Header: http.Header{"User-Agent": {"knarr"}},
	}
	if u.User != nil {
		password, _ := u.User.Password()
		both := u.User.Username() + ":" + password
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(both)))
	}
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("ask it to connect: %w", err)
	}
	br := bufio.NewReader(io.LimitReader(conn, maxProxyAnswer))
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, fmt.Errorf("read its answer (is it an HTTP proxy?): %w", err)
	}
	switch {
	case resp.StatusCode == http.StatusProxyAuthRequired:
		return nil, fmt.Errorf("it answers %s: give its user and password as in http://user:password@%s", resp.Status, u.Host)
	case resp.StatusCode/100 != 2:
		return nil, fmt.Errorf("it answers %s", resp.Status)
	}
	early, err := br.Peek(br.Buffered())
	if err != nil {
		return nil, fmt.Errorf("read its answer: %w", err)
	}
	if len(early) > 0 {
		return &begun{conn, io.MultiReader(bytes.NewReader(early), conn)}, nil
	}
	return conn, nil
}

// begun is a connection whose first bytes have been read already.
type begun struct {
	net.Conn
	r io.Reader
}

func (b *begun) Read(p []byte) (int, error) { return b.r.Read(p) }
func (b *begun) NetConn() net.Conn          { return b.Conn }

// CloseWrite tells the peer that no more comes, where that can be told.
func (b *begun) CloseWrite() error {
	if half, ok := b.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return b.Close()
}
