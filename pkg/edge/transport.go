package edge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"sync"

	authenticationv1 "k8s.io/api/authentication/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// transport stands between a client and its way to the API server.
type transport struct {
	store *Store
	inner http.RoundTripper
}

var (
	_ http.RoundTripper           = (*transport)(nil)
	_ utilnet.RoundTripperWrapper = (*transport)(nil)
)

// WrappedRoundTripper implements [utilnet.RoundTripperWrapper].
func (t *transport) WrappedRoundTripper() http.RoundTripper { return t.inner }

// RoundTrip implements [http.RoundTripper].
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	q, ok := ask(req)
	if t.store.isClosed() {
		return t.inner.RoundTrip(req)
	}
	switch {
	case !ok:
		return t.pass(req)
	case q.verb == token:
		return t.token(req, q)
	case q.verb == status:
		return t.patchStatus(req, q.id)
	case q.verb <= watch:
		return t.read(req, q)
	}
	return t.fetch(req, q)
}

// pass has the server answer, whatever it says.
func (t *transport) pass(req *http.Request) (*http.Response, error) {
	resp, err := t.inner.RoundTrip(req)
	switch {
	case err == nil && resp.StatusCode < http.StatusInternalServerError:
		t.store.link.met()
	case err == nil:
		t.store.link.doubt(t.way(req), statusError(resp))
	case !errors.Is(req.Context().Err(), context.Canceled):
		t.store.link.doubt(t.way(req), err)
	}
	return resp, err
}

func (t *transport) way(req *http.Request) way {
	return way{t, req.URL.Scheme + "://" + req.URL.Host}
}

func statusError(resp *http.Response) error { return fmt.Errorf("%w: %s", errStatus, resp.Status) }

// token is a TokenRequest, which is answered by an object like a GET.
func (t *transport) token(req *http.Request, q question) (*http.Response, error) {
	if req.Body == nil {
		return t.pass(req)
	}
	text, err := io.ReadAll(req.Body)
	req.Body.Close()
	if err != nil {
		return nil, fmt.Errorf("read the request for a token: %w", err)
	}
	same := req.Clone(req.Context())
	same.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil }
	same.Body = io.NopCloser(bytes.NewReader(text))
	ask := t.pass
	if obj, err := decode(text); err == nil {
		if r, ok := obj.(*authenticationv1.TokenRequest); ok {
			q.id = tokenID(q.id.namespace, q.id.name, r)
			ask = func(req *http.Request) (*http.Response, error) { return t.read(req, q) }
		}
	}
	resp, err := ask(same)
	if err != nil {
		return nil, err
	}
	resp.Request = req
	return resp, nil
}

// read answers from the server if there is one that does, else from the store if
// it can.
func (t *transport) read(req *http.Request, q question) (*http.Response, error) {
	s := t.store
	if !s.knows(q) {
		return t.fetch(req, q)
	}
	if resp := s.answerOffline(req, q); resp != nil {
		return resp, nil
	}

	ctx, cancel := context.WithCancel(req.Context())
	g := s.link.watchOver(t.way(req), cancel)
	resp, err := t.inner.RoundTrip(req.WithContext(ctx))
	cut := g.done()
	if !cut && err == nil && resp.StatusCode < http.StatusInternalServerError {
		s.link.met()
		resp.Request = req
		return t.keep(q, resp, cancel), nil
	}
	switch {
	case cut:
	case err == nil:
		s.link.failed(req.Context(), t.way(req), statusError(resp))
	case req.Context().Err() == nil:
		s.link.failed(req.Context(), t.way(req), err)
	case !errors.Is(req.Context().Err(), context.Canceled):
		s.link.doubt(t.way(req), err)
	}
	if req.Context().Err() == nil {
		if kept := s.answerOffline(req, q); kept != nil {
			if resp != nil {
				resp.Body.Close()
			}
			cancel()
			return kept, nil
		}
	}
	if cut {
		// A server was found meanwhile, or the store can't be read.
		if resp != nil {
			resp.Body.Close()
		}
		cancel()
		if req.GetBody != nil {
			b, err := req.GetBody()
			if err != nil {
				return nil, fmt.Errorf("ask again: %w", err)
			}
			req = req.Clone(req.Context())
			req.Body = b
		}
		return t.fetch(req, q)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	resp.Request = req
	resp.Body = &body{ReadCloser: resp.Body, cancel: cancel}
	return resp, nil
}

// fetch asks the server, for as long as it takes.
func (t *transport) fetch(req *http.Request, q question) (*http.Response, error) {
	resp, err := t.pass(req)
	if err != nil {
		return nil, err
	}
	return t.keep(q, resp, nil), nil
}

// keep has the store see what the client reads of the answer, when it does.
func (t *transport) keep(q question, resp *http.Response, cancel context.CancelFunc) *http.Response {
	b := &body{ReadCloser: resp.Body, cancel: cancel}
	asJSON, ok := formOf(resp)
	switch {
	case q.verb == get && resp.StatusCode == http.StatusNotFound, q.verb == remove && resp.StatusCode == http.StatusOK:
		t.store.forgetObject(q)
	case !ok || resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated:
	case q.verb == watch:
		b.sink = t.store.watching(q, asJSON)
	case q.verb == list && q.query.Get("resourceVersionMatch") == "Exact":
		// How it was some time ago.
	case q.verb != remove:
		b.sink = &collector{store: t.store, q: q, age: t.store.age.Load(), length: resp.ContentLength}
	}
	if b.sink != nil || cancel != nil {
		resp.Body = b
	}
	return resp
}

// formOf tells in which form the answer is; false if in one that is not read.
func formOf(resp *http.Response) (asJSON, ok bool) {
	if resp.Header.Get("Content-Encoding") != "" {
		return false, false
	}
	name, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || params["as"] != "" {
		return false, false
	}
	return name == jsonType, name == jsonType || name == protobufType
}

// sink gets what a client reads.
type sink interface {
	write(p []byte)
	// end is called once: whole tells whether the body was read to its end.
	end(whole bool)
}

// body is a body that also tells a sink what is read of it.
type body struct {
	io.ReadCloser
	cancel context.CancelFunc

	mu   sync.Mutex // clients close while they read
	sink sink
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sink == nil {
		return n, err
	}
	if n > 0 {
		b.sink.write(p[:n])
	}
	if err != nil {
		b.sink.end(errors.Is(err, io.EOF))
		b.sink = nil
	}
	return n, err
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sink != nil {
		b.sink.end(false)
		b.sink = nil
	}
	if b.cancel != nil {
		b.cancel()
	}
	return err
}

// collector gathers an answer that is not a stream.
type collector struct {
	store  *Store
	q      question
	age    uint64
	length int64 // that the server said; -1 if none
	buf    []byte
	tooBig bool
}

func (c *collector) write(p []byte) {
	switch {
	case c.tooBig:
	case int64(len(c.buf)+len(p)) > c.store.cfg.MaxBytes:
		c.tooBig, c.buf = true, nil
	default:
		c.buf = append(c.buf, p...)
	}
}

func (c *collector) end(whole bool) {
	switch {
	case c.tooBig:
		c.store.tooBig(c.q, c.age)
	case whole || int64(len(c.buf)) == c.length:
		c.store.push(c.age, c.q, c.buf)
	}
}
