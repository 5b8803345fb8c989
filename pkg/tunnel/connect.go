package tunnel

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// connect asks a server for a tunnel.
func (c *Client) connect(ctx context.Context, addr string) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	raw, err := c.cfg.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect to API server %s for a tunnel: %w", addr, err)
	}
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	l, err := c.ask(ctx, raw, addr)
	if !stop() {
		err = errors.Join(context.Cause(ctx), err)
		if l != nil {
			l.fail(context.Cause(ctx))
			l.watched.Wait()
		}
	}
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("ask API server %s for a tunnel: %w", addr, err)
	}
	return l, nil
}

func (c *Client) ask(ctx context.Context, raw net.Conn, addr string) (*link, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	config := c.cfg.TLS.Clone()
	config.NextProtos = []string{"http/1.1"} // HTTP/2 has no Upgrade
	config.ServerName = cmp.Or(config.ServerName, host)
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	req := &http.Request{
		Method: http.MethodGet,
		URL:    &url.URL{Scheme: "https", Host: addr, Path: Path},
		Header: http.Header{
			"User-Agent": {"knarr"},
			"Connection": {"Upgrade"},
			"Upgrade":    {Protocol},
			clientHeader: {c.process + " " + addr},
		},
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, refusal(resp, addr)
	}
	if !hasToken(resp.Header, "Upgrade", Protocol) {
		return nil, fmt.Errorf("it upgrades to %q, not %s", resp.Header.Get("Upgrade"), Protocol)
	}
	return newLink(conn, begun(br, conn), false, c.cfg.KeepAlive, c.cfg.Log)
}

// refusal is the error that an answer other than 101 stands for.
func refusal(resp *http.Response, addr string) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	said := strings.TrimSpace(oneLine(string(text)))
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return &DeniedError{Server: addr, Status: resp.Status, Text: said}
	case http.StatusConflict:
		return fmt.Errorf("%w: %s", errElsewhere, said)
	default:
		return fmt.Errorf("it answers %s: %s", resp.Status, said)
	}
}

// begun is what r has read ahead of c, and then c.
func begun(r *bufio.Reader, c net.Conn) io.Reader {
	early, _ := r.Peek(r.Buffered())
	if len(early) == 0 {
		return c
	}
	return io.MultiReader(bytes.NewReader(bytes.Clone(early)), c)
}
