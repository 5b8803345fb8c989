package edge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// knows tells whether the store could answer.
func (s *Store) knows(q question) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if q.verb == get || q.verb == token {
		_, ok := s.x.objects[q.id]
		return ok
	}
	sel, ok := s.x.selections[q.selection]
	return ok && sel.complete && q.query.Get("continue") == "" && q.query.Get("resourceVersionMatch") != "Exact"
}

// answerOffline answers if no server can be reached; else it returns nil.
func (s *Store) answerOffline(req *http.Request, q question) *http.Response {
	off, changed := s.link.offline()
	if !off {
		return nil
	}
	resp, err := s.answer(req, q, changed)
	if err != nil {
		s.log.Warn("what this node keeps can't be told", "path", req.URL.Path, "err", err)
		return nil
	}
	return resp
}

var errUnknown = errors.New("it is not kept")

// answer makes the answer of a server. A watch is silent until back is closed.
func (s *Store) answer(req *http.Request, q question, back <-chan struct{}) (*http.Response, error) {
	switch q.verb {
	case list:
		return s.answerList(req, q)
	case watch:
		return s.answerWatch(req, q, back)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	o, ok := s.x.objects[q.id]
	if !ok {
		return nil, errUnknown
	}
	value, err := s.value(o)
	if err != nil {
		return nil, err
	}
	text, err := encodeValue(value, q.json)
	if err != nil {
		return nil, err
	}
	status := http.StatusOK
	if q.verb == token {
		status = http.StatusCreated
	}
	return respond(req, q, status, text), nil
}

// contents are what the store has of a selection, and its resourceVersion, which
// is remembered as told offline. From then on, w is told what changes of them; it
// may be nil.
func (s *Store) contents(q question, w *silence) (*selection, string, [][]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	sel, ok := s.x.selections[q.selection]
	if !ok || !sel.complete {
		return nil, "", nil, errUnknown
	}
	members := s.x.members(sel)
	values := make([][]byte, len(members))
	for i, o := range members {
		var err error
		if values[i], err = s.value(o); err != nil {
			return nil, "", nil, err
		}
	}
	rv := s.x.version(sel, members)
	s.watchMu.Lock()
	defer s.watchMu.Unlock()
	if q.id.resource == endpointSliceResource {
		rv = s.addresses.version(rv)
		taken := s.addresses.taken()
		for i := range values {
			values[i] = s.addresses.mend(values[i], rv, taken)
		}
		s.follow(q, w)
	}
	s.offered[q.selection] = rv
	return sel, rv, values, nil
}

func (s *Store) answerList(req *http.Request, q question) (*http.Response, error) {
	sel, rv, values, err := s.contents(q, nil)
	if err != nil {
		return nil, err
	}
	text, err := encodeList(sel.kind, rv, values, q.json)
	if err != nil {
		return nil, err
	}
	return respond(req, q, http.StatusOK, text), nil
}

// answerWatch goes on from the resourceVersion that is asked for, or begins with
// what there is.
func (s *Store) answerWatch(req *http.Request, q question, back <-chan struct{}) (*http.Response, error) {
	last, err := expired(q.json)
	if err != nil {
		return nil, err
	}
	w := &silence{
		ctx: req.Context(), back: back, end: s.link.ctx.Done(), closed: make(chan struct{}), least: time.Now().Add(shortWatch),
		more: make(chan struct{}, 1), forget: s.unfollow, last: last,
	}
	from := q.query.Get("resourceVersion")
	all := isTrue(q.query.Get("sendInitialEvents"))
	if all || from == "" || from == "0" {
		w.ours = true
		if w.text, err = s.firstEvents(q, w, all); err != nil {
			w.Close()
			return nil, err
		}
	} else {
		s.goOn(q, w, from)
	}
	resp := respond(req, q, http.StatusOK, nil)
	if !q.json {
		resp.Header.Set("Content-Type", protobufType+";stream=watch")
	}
	resp.Body, resp.ContentLength = w, -1
	return resp, nil
}

// goOn has a watch follow a resourceVersion: one of ours, or of a server's.
func (s *Store) goOn(q question, w *silence, from string) {
	s.watchMu.Lock()
	defer s.watchMu.Unlock()
	w.ours = from == s.offered[q.selection]
	if q.id.resource != endpointSliceResource {
		return
	}
	if !w.ours && s.addresses.changes > 0 {
		// It has missed addresses that were told since: it begins anew.
		w.text, w.over = w.last, true
		return
	}
	s.follow(q, w)
}

// firstEvents tell what there is; marked says that a bookmark ends them.
func (s *Store) firstEvents(q question, w *silence, marked bool) ([]byte, error) {
	sel, rv, values, err := s.contents(q, w)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, v := range values {
		text, err := encodeValue(v, q.json)
		if err == nil {
			text, err = encodeEvent("ADDED", text, q.json)
		}
		if err != nil {
			return nil, err
		}
		b.Write(text)
	}
	if marked {
		text, err := bookmark(sel.kind, rv, q.json)
		if err != nil {
			return nil, err
		}
		b.Write(text)
	}
	return b.Bytes(), nil
}

func respond(req *http.Request, q question, status int, text []byte) *http.Response {
	contentType := protobufType
	if q.json {
		contentType = jsonType
	}
	return &http.Response{
		Status: fmt.Sprintf("%d %s", status, http.StatusText(status)), StatusCode: status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        http.Header{"Content-Type": {contentType}, "Date": {time.Now().UTC().Format(http.TimeFormat)}, keptHeader: {"kept"}},
		Body:          io.NopCloser(bytes.NewReader(text)),
		ContentLength: int64(len(text)),
		Request:       req,
	}
}

// keptHeader tells who looks closely that the answer is the store's.
const keptHeader = "Knarr-Answer"

// shortWatch is how long a watch must have lasted to end without client-go's
// reflector taking it for a failure, which it backs off from.
const shortWatch = 1100 * time.Millisecond

// silence is the body of a watch in which nothing happens until a server is back,
// but for new addresses of pods.
type silence struct {
	ctx    context.Context
	back   <-chan struct{}
	end    <-chan struct{} // of the store
	least  time.Time
	once   sync.Once
	closed chan struct{}
	forget func(*silence) // called by Close

	text []byte // to be read before anything else
	over bool   // nothing comes after text

	more   chan struct{} // has an element when there is something in queued
	mu     sync.Mutex
	queued []byte
	// ours is set if the client has what no server told: when one is back, it has
	// to begin anew, which last says.
	ours bool
	last []byte
}

// tell has the text read.
func (w *silence) tell(text []byte) {
	w.mu.Lock()
	w.queued, w.ours = append(w.queued, text...), true
	w.mu.Unlock()
	select {
	case w.more <- struct{}{}:
	default:
	}
}

func (w *silence) Read(p []byte) (int, error) {
	for len(w.text) == 0 && !w.over {
		if err := w.wait(); err != nil {
			return 0, err
		}
	}
	if len(w.text) == 0 {
		return 0, io.EOF
	}
	n := copy(p, w.text)
	w.text = w.text[n:]
	return n, nil
}

func (w *silence) wait() error {
	select {
	case <-w.more:
		w.mu.Lock()
		defer w.mu.Unlock()
		w.text, w.queued = w.queued, nil
		return nil
	case <-w.back:
	case <-w.end:
		return io.EOF
	case <-w.ctx.Done():
		return w.ctx.Err()
	case <-w.closed:
		return http.ErrBodyReadAfterClose
	}
	w.mu.Lock()
	w.over = true
	if w.ours {
		w.text = w.last
	}
	w.mu.Unlock()
	if len(w.text) > 0 {
		return nil
	}
	t := time.NewTimer(time.Until(w.least))
	defer t.Stop()
	select {
	case <-t.C:
	case <-w.end:
	case <-w.ctx.Done():
		return w.ctx.Err()
	case <-w.closed:
		return http.ErrBodyReadAfterClose
	}
	return nil
}

func (w *silence) Close() error {
	w.once.Do(func() {
		close(w.closed)
		w.forget(w)
	})
	return nil
}
