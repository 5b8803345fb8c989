package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// serve answers / with the body or host name, /remote with the client's
// address, /marked with whether /mark was asked, and /healthz and /ready with
// 200 or, after a POST with ?ok=false, with 503.
func serve(ctx context.Context, fs *flag.FlagSet, args []string) error {
	port := fs.Int("port", 8080, "")
	body := fs.String("body", "", "")
	fs.Bool("hostname", true, "")
	unready := fs.Bool("unready", false, "")
	if _, err := parse(fs, args, 0, 0); err != nil {
		return err
	}
	if *body == "" {
		host, err := os.Hostname()
		if err != nil {
			return err
		}
		*body = host
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, *body) })
	mux.HandleFunc("/remote", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.RemoteAddr) })
	var marked atomic.Bool
	mux.HandleFunc("/mark", func(http.ResponseWriter, *http.Request) { marked.Store(true) })
	mux.HandleFunc("/marked", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, marked.Load()) })
	for path, down := range map[string]bool{"/healthz": false, "/ready": *unready} {
		var bad atomic.Bool
		bad.Store(down)
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				bad.Store(r.FormValue("ok") == "false")
				return
			}
			if bad.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			fmt.Fprintln(w, !bad.Load())
		})
	}
	srv := &http.Server{Addr: fmt.Sprintf(":%d", *port), Handler: mux}
	done := make(chan error, 1)
	context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		done <- srv.Shutdown(end)
	})
	if err := srv.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	return <-done
}

func get(ctx context.Context, fs *flag.FlagSet, args []string) error {
	timeout := fs.Duration("timeout", 5*time.Second, "")
	most := fs.Duration("retry", 0, "")
	insecure := fs.Bool("insecure", false, "")
	header := fs.String("header", "", "")
	post := fs.Bool("post", false, "")
	plain, err := parse(fs, args, 1, 1)
	if err != nil {
		return err
	}
	url := plain[0]
	if !strings.Contains(url, "://") {
		url = "http://" + url
	}
	// No connection is kept: each attempt shall find its own way.
	client := &http.Client{Timeout: *timeout, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: *insecure},
	}}
	method := http.MethodGet
	if *post {
		method = http.MethodPost
	}
	return retry(ctx, *most, func() error {
		req, err := http.NewRequestWithContext(ctx, method, url, nil)
		if err != nil {
			return err
		}
		if k, v, ok := strings.Cut(*header, ":"); ok {
			req.Header.Set(k, strings.TrimSpace(v))
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if resp.StatusCode >= 300 {
			return fmt.Errorf("%s: %s", resp.Status, body)
		}
		_, err = os.Stdout.Write(body)
		return err
	})
}

func tcpEcho(ctx context.Context, fs *flag.FlagSet, args []string) error {
	port := fs.Int("port", 7, "")
	if _, err := parse(fs, args, 0, 0); err != nil {
		return err
	}
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", *port))
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // the client's end is ours
		}()
	}
}

func udpEcho(ctx context.Context, fs *flag.FlagSet, args []string) error {
	port := fs.Int("port", 7, "")
	named := fs.Bool("named", false, "")
	if _, err := parse(fs, args, 0, 0); err != nil {
		return err
	}
	prefix := ""
	if *named {
		host, err := os.Hostname()
		if err != nil {
			return err
		}
		prefix = host + " "
	}
	c, err := net.ListenPacket("udp", fmt.Sprintf(":%d", *port))
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { c.Close() })
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(append([]byte(prefix), buf[:n]...), from); err != nil {
			return err
		}
	}
}

func send(ctx context.Context, fs *flag.FlagSet, args []string) error {
	timeout := fs.Duration("timeout", 2*time.Second, "")
	most := fs.Duration("retry", 0, "")
	from := fs.Int("from", 0, "")
	plain, err := parse(fs, args, 3, 3)
	if err != nil {
		return err
	}
	network, addr, text := plain[0], plain[1], []byte(plain[2])
	dialer := net.Dialer{Timeout: *timeout}
	if *from != 0 {
		dialer.LocalAddr = &net.UDPAddr{Port: *from}
	}
	return retry(ctx, *most, func() error {
		c, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(*timeout)); err != nil {
			return err
		}
		if _, err := c.Write(text); err != nil {
			return err
		}
		answer := make([]byte, len(text))
		if network == "udp" {
			answer = make([]byte, 1<<16)
			n, err := c.Read(answer)
			if err != nil {
				return err
			}
			answer = answer[:n]
		} else if _, err := io.ReadFull(c, answer); err != nil {
			return err
		}
		fmt.Printf("%s\n", answer)
		return nil
	})
}

func lookup(ctx context.Context, fs *flag.FlagSet, args []string) error {
	server := fs.String("server", "", "")
	timeout := fs.Duration("timeout", 5*time.Second, "")
	most := fs.Duration("retry", 0, "")
	plain, err := parse(fs, args, 1, 2)
	if err != nil {
		return err
	}
	kind := "host"
	if len(plain) == 2 {
		kind = strings.ToLower(plain[1])
	}
	r := &net.Resolver{PreferGo: true}
	if *server != "" {
		r.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, *server)
		}
	}
	return retry(ctx, *most, func() error {
		ctx, cancel := context.WithTimeout(ctx, *timeout)
		defer cancel()
		found, err := resolve(ctx, r, kind, plain[0])
		if err != nil {
			return err
		}
		slices.Sort(found)
		fmt.Println(strings.Join(found, "\n"))
		return nil
	})
}

// resolve gives one line for each record.
func resolve(ctx context.Context, r *net.Resolver, kind, name string) ([]string, error) {
	var lines []string
	switch kind {
	case "host":
		return r.LookupHost(ctx, name)
	case "a", "aaaa":
		network := map[string]string{"a": "ip4", "aaaa": "ip6"}[kind]
		ips, err := r.LookupIP(ctx, network, name)
		for _, ip := range ips {
			lines = append(lines, ip.String())
		}
		return lines, err
	case "srv":
		_, srvs, err := r.LookupSRV(ctx, "", "", name)
		for _, s := range srvs {
			lines = append(lines, fmt.Sprintf("%d %d %d %s", s.Priority, s.Weight, s.Port, s.Target))
		}
		return lines, err
	case "ptr":
		return r.LookupAddr(ctx, name)
	case "txt":
		return r.LookupTXT(ctx, name)
	case "cname":
		c, err := r.LookupCNAME(ctx, name)
		return []string{c}, err
	}
	return nil, fmt.Errorf("no record type %q", kind)
}

func waitFor(ctx context.Context, fs *flag.FlagSet, args []string) error {
	timeout := fs.Duration("timeout", time.Minute, "")
	plain, err := parse(fs, args, 1, 1)
	if err != nil {
		return err
	}
	return retry(ctx, *timeout, func() error {
		if _, _, err := net.SplitHostPort(plain[0]); err != nil {
			_, err := new(net.Resolver).LookupHost(ctx, plain[0])
			return err
		}
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", plain[0])
		if err != nil {
			return err
		}
		return c.Close()
	})
}
