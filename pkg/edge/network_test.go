package edge

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// serveTLS serves the handler as API servers do.
func serveTLS(t *testing.T, h http.Handler, addr string) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	if addr != "" {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		s.Listener.Close()
		s.Listener = l
	}
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(func() { stopTLS(s) })
	return s
}

// stopTLS ends the listener first: clients come back at once.
func stopTLS(s *httptest.Server) {
	s.Listener.Close()
	s.CloseClientConnections()
	s.Close()
}

// ask sends a request and returns the answer with the first bytes of the body, or
// all of it with a limit of 0.
func exchange(t *testing.T, rt http.RoundTripper, method, url, accept string, body []byte, limit int64) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if limit < 0 {
		req.Header.Set("Accept-Encoding", "gzip")
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return "error: " + err.Error()
	}
	defer resp.Body.Close()
	var r io.Reader = resp.Body
	if limit > 0 {
		r = io.LimitReader(r, limit)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Errorf("read %s: %v", url, err)
	}
	if body == nil && resp.Request != req {
		t.Errorf("%s: the answer is to another request", url)
	}
	return fmt.Sprintf("%s %s %v %d %v\n%s", resp.Proto, resp.Status, resp.Header, resp.ContentLength, resp.Uncompressed, text)
}

// While a server answers, its answers are what they would be without the store,
// byte by byte, before and after they are kept.
func TestWithAServerNothingIsChanged(t *testing.T) {
	a := newShop(t)
	zip := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") == "gzip" && strings.HasSuffix(r.URL.Path, "/services") && !strings.Contains(r.URL.RawQuery, "watch") {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			defer z.Close()
			a.ServeHTTP(zipped{w, z}, r)
			return
		}
		a.ServeHTTP(w, r)
	})
	srv := serveTLS(t, zip, "")
	s := openStore(t, t.TempDir())
	plain := srv.Client().Transport
	wrapped := s.Wrap(plain)
	tokenBody := []byte(`{"kind":"TokenRequest","apiVersion":"authentication.k8s.io/v1","spec":{"audiences":["x"]}}`)
	for _, accept := range []string{"application/vnd.kubernetes.protobuf,application/json", "application/json", "", "application/json;as=Table;v=v1;g=meta.k8s.io", "application/yaml"} {
		for _, c := range []struct {
			method, path string
			body         []byte
			limit        int64
		}{
			{path: "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1&limit=500"},
			{path: "/api/v1/services"},
			{path: "/api/v1/services", limit: -1},
			{path: "/api/v1/namespaces/shop/secrets/password"},
			{path: "/api/v1/namespaces/shop/secrets/missing"},
			{path: "/api/v1/namespaces/none/secrets"},
			{path: "/apis/storage.k8s.io/v1/csinodes/edge-1"},
			{path: "/api/v1/services?watch=true&resourceVersion=100", limit: 300},
			{path: "/api/v1/services?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", limit: 300},
			{path: "/api/v1/services?watch=true", limit: 300},
			{path: "/readyz"},
			{method: "DELETE", path: "/api/v1/namespaces/shop/secrets/password"},
			{method: "POST", path: "/api/v1/namespaces/shop/serviceaccounts/web/token", body: []byte("{}")},
			{method: "POST", path: "/api/v1/namespaces/shop/serviceaccounts/web/token", body: tokenBody},
		} {
			method := c.method
			if method == "" {
				method = http.MethodGet
			}
			for i := range 2 {
				a.set(func() { a.tokens = 0 })
				want := exchange(t, plain, method, srv.URL+c.path, accept, c.body, c.limit)
				a.set(func() { a.tokens = 0 })
				got := exchange(t, wrapped, method, srv.URL+c.path, accept, c.body, c.limit)
				if c.body != nil {
					// A token tells when it ends.
					got, want = got[:100], want[:100]
				}
				if got != want {
					t.Errorf("%s %s, %q, time %d:\ngot  %q\nwant %q", method, c.path, accept, i, got, want)
				}
				flush(t, s)
			}
		}
	}
	if st := s.Status(); st.Objects < 6 {
		t.Errorf("kept %+v", st)
	}
}

type zipped struct {
	http.ResponseWriter
	z *gzip.Writer
}

func (z zipped) Write(p []byte) (int, error) { return z.z.Write(p) }

// An event is with the client as soon as the server has sent it.
func TestAWatchIsNotHeldBack(t *testing.T) {
	a := newShop(t)
	srv := serveTLS(t, a, "")
	s := openStore(t, t.TempDir())
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+"/api/v1/services?watch=true&resourceVersion=1000", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json")
	resp, err := s.Wrap(srv.Client().Transport).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	a.set(func() { a.rv = 1000 })
	for i := range 3 {
		a.put(service(fmt.Sprint("new-", i), "10.43.0.77"))
		if !lines.Scan() || !strings.Contains(lines.Text(), fmt.Sprintf(`"new-%d"`, i)) {
			t.Fatalf("event %d: %q, %v", i, lines.Text(), lines.Err())
		}
	}
	// Its end is the client's: nothing is left behind that reads on.
	resp.Body.Close()
	if s.isWatched("/api/v1/services") {
		t.Error("the watch is still open")
	}
}

// The end of a request's context ends an answer of the store, too.
func TestACancelledRequestEndsItsSilence(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	w := &silence{ctx: ctx, back: make(chan struct{}), end: s.link.ctx.Done(), closed: make(chan struct{}), forget: func(*silence) {}}
	cancel()
	if n, err := w.Read(make([]byte, 1)); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d, %v", n, err)
	}
	w.ctx = context.Background()
	w.Close()
	w.Close()
	if n, err := w.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
}

// The same as in bubbles of time once over a real network, TLS and HTTP/2.
func TestOverANetworkANodeOutlivesItsServer(t *testing.T) {
	lim := defaultLimits()
	lim.again, lim.cap = 10*time.Millisecond, 50*time.Millisecond
	a, dir := newShop(t), t.TempDir()
	srv := serveTLS(t, a, "")
	addr := srv.Listener.Addr().String()
	client := func(s *Store) *kubernetes.Clientset {
		cfg := &rest.Config{Host: "https://" + addr, QPS: -1, WrapTransport: s.Wrap}
		cfg.ContentType, cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
		cfg.Transport = srv.Client().Transport.(*http.Transport).Clone()
		c, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	open := func() *Store {
		s, err := openWith(Config{Dir: dir, Node: "edge-1", Log: testLog(t)}, lim)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeStore(t, s) })
		return s
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not within 20 s: %s", what)
			}
		}
	}
	synced := func(p *parts) func() bool {
		return func() bool { return slices.Equal(p.names(), shopNames()) }
	}

	s := open()
	c := client(s)
	p := startParts(t, c)
	until("the node knows its pods", synced(p))
	readByName(t, c)
	p.stop()
	closeStore(t, s)
	stopTLS(srv)

	s = open()
	c = client(s)
	begin := time.Now()
	p = startParts(t, c)
	until("the node knows its pods without a server", synced(p))
	readByName(t, c)
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("started after %v", took)
	}
	p.told()

	a.delete(pod("web-2", ""))
	a.put(pod("web-4", "edge-1"))
	srv = serveTLS(t, a, addr)
	var told []string
	until("the node follows its server", func() bool {
		told = append(told, p.told()...)
		return len(told) >= 2
	})
	slices.Sort(told)
	if want := []string{"1 add shop/web-4", "1 delete shop/web-2"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}

	// And a restart while it runs, when client-go's reflectors have watched for
	// more than the second within which they take an end for a failure.
	time.Sleep(shortWatch)
	stopTLS(srv)
	until("the node notices", s.Offline)
	a.put(pod("web-5", "edge-1"))
	a.seen("")
	serveTLS(t, a, addr)
	told = nil
	until("the node goes on", func() bool {
		told = append(told, p.told()...)
		return slices.Equal(told, []string{"1 add shop/web-5"})
	})
	for _, r := range a.seen("GET /api/v1/pods") {
		if strings.Contains(r, "sendInitialEvents") || !strings.Contains(r, "watch=true") {
			t.Errorf("listed anew: %s", r)
		}
	}
	p.stop()
}
