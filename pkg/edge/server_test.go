package edge

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// apiServer is a small API server: GET, LIST in pages, WATCH with a history, with
// initial events and bookmarks, in protobuf and JSON, TokenRequests, PUT. It
// shares no code with the package.
type apiServer struct {
	t *testing.T

	mu       sync.Mutex
	rv       int
	forgot   int // events up to here are gone
	objects  map[string]map[string]runtime.Object
	events   []event
	changed  chan struct{}
	requests []string
	status   int            // what every request is answered with, if not 0
	failing  map[string]int // the same for what is at a path
	pageSize int
	tokens   int
}

type event struct {
	rv       int
	resource string
	kind     string
	old, obj runtime.Object
}

func newAPIServer(t *testing.T) *apiServer {
	return &apiServer{t: t, rv: 100, objects: map[string]map[string]runtime.Object{}, changed: make(chan struct{}), failing: map[string]int{}}
}

func (a *apiServer) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// seen returns the requests since the last call, as METHOD path?query, that
// contain the text.
func (a *apiServer) seen(text string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var found []string
	for _, r := range a.requests {
		if strings.Contains(r, text) {
			found = append(found, r)
		}
	}
	a.requests = nil
	return found
}

func resourceOf(obj runtime.Object) string {
	plural := map[string]string{"Endpoints": "endpoints"}
	kinds, _, err := scheme.Scheme.ObjectKinds(obj)
	if err != nil {
		return ""
	}
	name := strings.ToLower(kinds[0].Kind)
	return kinds[0].GroupVersion().String() + "/" + cmp.Or(plural[kinds[0].Kind], name+"s")
}

func nameOf(obj runtime.Object) string {
	m, _ := meta.Accessor(obj)
	return m.GetNamespace() + "/" + m.GetName()
}

// put creates or updates objects.
func (a *apiServer) put(objs ...runtime.Object) {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, obj := range objs {
		obj = obj.DeepCopyObject()
		res := resourceOf(obj)
		if a.objects[res] == nil {
			a.objects[res] = map[string]runtime.Object{}
		}
		a.rv++
		m, _ := meta.Accessor(obj)
		m.SetResourceVersion(strconv.Itoa(a.rv))
		kind := "ADDED"
		old := a.objects[res][nameOf(obj)]
		if old != nil {
			kind = "MODIFIED"
			o, _ := meta.Accessor(old)
			m.SetUID(o.GetUID())
		} else {
			m.SetUID(types.UID(fmt.Sprintf("uid-%d", a.rv)))
		}
		m.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: fmt.Sprint("somebody-", a.rv)}})
		a.objects[res][nameOf(obj)] = obj
		a.event(event{a.rv, res, kind, old, obj})
	}
}

func (a *apiServer) delete(obj runtime.Object) {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	res := resourceOf(obj)
	old := a.objects[res][nameOf(obj)]
	if old == nil {
		a.t.Fatalf("there is no %s %s", res, nameOf(obj))
	}
	delete(a.objects[res], nameOf(obj))
	a.rv++
	gone := old.DeepCopyObject()
	m, _ := meta.Accessor(gone)
	m.SetResourceVersion(strconv.Itoa(a.rv))
	a.event(event{a.rv, res, "DELETED", old, gone})
}

func (a *apiServer) event(e event) {
	a.events = append(a.events, e)
	close(a.changed)
	a.changed = make(chan struct{})
}

// setBack does as if an older backup of the datastore had been restored.
func (a *apiServer) setBack(rv int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rv, a.events = rv, nil
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.requests = append(a.requests, r.Method+" "+r.URL.RequestURI())
	status := cmp.Or(a.failing[r.URL.Path], a.status)
	a.mu.Unlock()
	if status != 0 {
		a.fail(w, r, status, metav1.StatusReason(http.StatusText(status)), nil)
		return
	}
	if r.URL.Path == "/readyz" {
		w.Header().Set("Date", "Mon, 02 Jan 2006 15:04:05 GMT")
		io.WriteString(w, "ok")
		return
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	gv, rest := "v1", parts[2:]
	if parts[0] == "apis" {
		gv, rest = parts[1]+"/"+parts[2], parts[3:]
	}
	namespace := ""
	if rest[0] == "namespaces" && len(rest) > 2 {
		namespace, rest = rest[1], rest[2:]
	}
	res := gv + "/" + rest[0]
	query := r.URL.Query()
	switch {
	case r.Method == http.MethodPost && len(rest) == 3 && rest[2] == "token":
		a.token(w, r, namespace, rest[1])
	case r.Method == http.MethodPost || r.Method == http.MethodPut:
		body, err := io.ReadAll(r.Body)
		obj, _, derr := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
		if err != nil || derr != nil {
			a.fail(w, r, 400, metav1.StatusReasonBadRequest, nil)
			return
		}
		a.put(obj)
		a.mu.Lock()
		obj = a.objects[resourceOf(obj)][nameOf(obj)]
		a.mu.Unlock()
		a.answer(w, r, map[string]int{http.MethodPost: 201}[r.Method], obj)
	case r.Method == http.MethodPatch && res == podResource && len(rest) == 3 && rest[2] == "status":
		a.patch(w, r, namespace+"/"+rest[1])
	case r.Method != http.MethodGet:
		a.fail(w, r, 405, metav1.StatusReasonMethodNotAllowed, nil)
	case len(rest) == 2:
		a.mu.Lock()
		obj := a.objects[res][namespace+"/"+rest[1]]
		a.mu.Unlock()
		if obj == nil {
			a.fail(w, r, 404, metav1.StatusReasonNotFound, nil)
			return
		}
		a.answer(w, r, 200, obj)
	case query.Get("watch") != "":
		a.watch(w, r, res, namespace)
	default:
		a.list(w, r, res, namespace)
	}
}

// patch changes a pod's status.
func (a *apiServer) patch(w http.ResponseWriter, r *http.Request, name string) {
	patch, err := io.ReadAll(r.Body)
	if err != nil {
		a.t.Error(err)
	}
	a.mu.Lock()
	was, err := json.Marshal(a.objects[podResource][name])
	a.mu.Unlock()
	if err != nil {
		a.t.Error(err)
	}
	now, err := strategicpatch.StrategicMergePatch(was, patch, corev1.Pod{})
	var p corev1.Pod
	if err != nil || json.Unmarshal(now, &p) != nil {
		a.fail(w, r, 400, metav1.StatusReasonBadRequest, nil)
		return
	}
	a.put(&p)
	a.answer(w, r, 200, &p)
}

func (a *apiServer) fits(r *http.Request, namespace string, obj runtime.Object) bool {
	if obj == nil {
		return false
	}
	m, _ := meta.Accessor(obj)
	if namespace != "" && m.GetNamespace() != namespace {
		return false
	}
	l, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		return false
	}
	f, err := fields.ParseSelector(r.URL.Query().Get("fieldSelector"))
	if err != nil {
		return false
	}
	set := fields.Set{"metadata.name": m.GetName(), "metadata.namespace": m.GetNamespace()}
	switch o := obj.(type) {
	case *corev1.Pod:
		set["spec.nodeName"] = o.Spec.NodeName
	case *corev1.Service:
		set["spec.clusterIP"] = o.Spec.ClusterIP
	}
	return l.Matches(labels.Set(m.GetLabels())) && f.Matches(set)
}

// matching is for those that hold mu.
func (a *apiServer) matching(r *http.Request, res, namespace string) []runtime.Object {
	var objs []runtime.Object
	for _, name := range slices.Sorted(maps.Keys(a.objects[res])) {
		if obj := a.objects[res][name]; a.fits(r, namespace, obj) {
			objs = append(objs, obj)
		}
	}
	return objs
}

func kindFor(res string) string {
	for gvk := range scheme.Scheme.AllKnownTypes() {
		if gvk.GroupVersion().String()+"/"+strings.ToLower(gvk.Kind)+"s" == res {
			return gvk.Kind
		}
	}
	return ""
}

func (a *apiServer) list(w http.ResponseWriter, r *http.Request, res, namespace string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tooNew(w, r) {
		return
	}
	objs := a.matching(r, res, namespace)
	m := metav1.ListMeta{ResourceVersion: strconv.Itoa(a.rv)}
	if a.pageSize > 0 {
		from, _ := strconv.Atoi(r.URL.Query().Get("continue"))
		to := min(from+a.pageSize, len(objs))
		if to < len(objs) {
			m.Continue = strconv.Itoa(to)
		}
		objs = objs[from:to]
	}
	gv := strings.TrimSuffix(res, res[strings.LastIndex(res, "/"):])
	list := newList(gv, kindFor(res))
	for i, obj := range objs {
		objs[i] = obj.DeepCopyObject()
	}
	if err := meta.SetList(list, objs); err != nil {
		a.t.Error(err)
	}
	l, _ := meta.ListAccessor(list)
	l.SetResourceVersion(m.ResourceVersion)
	l.SetContinue(m.Continue)
	a.answer(w, r, 200, list)
}

func newList(gv, kind string) runtime.Object {
	for gvk := range scheme.Scheme.AllKnownTypes() {
		if gvk.GroupVersion().String() == gv && gvk.Kind == kind+"List" {
			obj, _ := scheme.Scheme.New(gvk)
			return obj
		}
	}
	return nil
}

// tooNew answers a request for a resourceVersion that there is not yet.
func (a *apiServer) tooNew(w http.ResponseWriter, r *http.Request) bool {
	rv, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if rv <= a.rv {
		return false
	}
	a.fail(w, r, 504, metav1.StatusReasonTimeout, []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}})
	return true
}

func (a *apiServer) watch(w http.ResponseWriter, r *http.Request, res, namespace string) {
	send := func(kind string, obj runtime.Object) {
		text, contentType := form(r, obj)
		e := metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Raw: text}}
		if contentType == "application/json" {
			b, _ := json.Marshal(e)
			w.Write(append(b, '\n'))
		} else {
			b, _ := e.Marshal()
			w.Write([]byte{byte(len(b) >> 24), byte(len(b) >> 16), byte(len(b) >> 8), byte(len(b))})
			w.Write(b)
		}
		w.(http.Flusher).Flush()
	}
	query := r.URL.Query()
	from, _ := strconv.Atoi(query.Get("resourceVersion"))
	initial := query.Get("sendInitialEvents") == "true"

	a.mu.Lock()
	if initial && a.tooNew(w, r) {
		a.mu.Unlock()
		return
	}
	w.Header().Set("Date", "Mon, 02 Jan 2006 15:04:05 GMT")
	w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf;stream=watch")
	if wantsJSON(r) {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(200)
	w.(http.Flusher).Flush()
	if initial || from == 0 {
		for _, obj := range a.matching(r, res, namespace) {
			send("ADDED", obj)
		}
		from = a.rv
	} else if from < a.forgot {
		send("ERROR", &metav1.Status{Status: "Failure", Code: 410, Reason: metav1.StatusReasonExpired, Message: "too old resource version"})
		a.mu.Unlock()
		return
	}
	if initial {
		gv := res[:strings.LastIndex(res, "/")]
		for gvk := range scheme.Scheme.AllKnownTypes() {
			if gvk.GroupVersion().String() == gv && gvk.Kind == kindFor(res) {
				obj, _ := scheme.Scheme.New(gvk)
				m, _ := meta.Accessor(obj)
				m.SetResourceVersion(strconv.Itoa(a.rv))
				m.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
				send("BOOKMARK", obj)
			}
		}
	}
	for {
		for _, e := range a.events {
			if e.rv <= from || e.resource != res {
				continue
			}
			from = e.rv
			was, is := a.fits(r, namespace, e.old), a.fits(r, namespace, e.obj) && e.kind != "DELETED"
			switch {
			case is && was:
				send("MODIFIED", e.obj)
			case is:
				send("ADDED", e.obj)
			case was:
				send("DELETED", e.obj)
			}
		}
		changed := a.changed
		a.mu.Unlock()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
		a.mu.Lock()
	}
}

func (a *apiServer) token(w http.ResponseWriter, r *http.Request, namespace, account string) {
	body, _ := io.ReadAll(r.Body)
	obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	req, ok := obj.(*authenticationv1.TokenRequest)
	if err != nil || !ok {
		a.fail(w, r, 400, metav1.StatusReasonBadRequest, nil)
		return
	}
	a.mu.Lock()
	a.tokens++
	req.Status.Token = fmt.Sprintf("token-%d-of-%s/%s", a.tokens, namespace, account)
	a.mu.Unlock()
	req.Status.ExpirationTimestamp = metav1.NewTime(time.Now().Add(-time.Minute).Truncate(time.Second))
	a.answer(w, r, 201, req)
}

func wantsJSON(r *http.Request) bool {
	return !strings.HasPrefix(r.Header.Get("Accept"), "application/vnd.kubernetes.protobuf")
}

// form writes an object as the client wants it.
func form(r *http.Request, obj runtime.Object) (text []byte, contentType string) {
	obj = obj.DeepCopyObject()
	kinds, _, err := scheme.Scheme.ObjectKinds(obj)
	if err != nil {
		panic(err)
	}
	obj.GetObjectKind().SetGroupVersionKind(kinds[0])
	if wantsJSON(r) {
		b, _ := json.Marshal(obj)
		return b, "application/json"
	}
	var b bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(obj, &b); err != nil {
		panic(err)
	}
	return b.Bytes(), "application/vnd.kubernetes.protobuf"
}

func (a *apiServer) answer(w http.ResponseWriter, r *http.Request, status int, obj runtime.Object) {
	text, contentType := form(r, obj)
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Date", "Mon, 02 Jan 2006 15:04:05 GMT")
	w.WriteHeader(cmp.Or(status, 200))
	w.Write(text)
}

func (a *apiServer) fail(w http.ResponseWriter, r *http.Request, status int, reason metav1.StatusReason, causes []metav1.StatusCause) {
	a.answer(w, r, status, &metav1.Status{
		Status: "Failure", Code: int32(status), Reason: reason, Message: http.StatusText(status),
		Details: &metav1.StatusDetails{Causes: causes},
	})
}

// line is a network of one wire, without sockets, so that it works in a bubble of
// synctest.
type line struct {
	server http.Handler

	mu    sync.Mutex
	state lineState
	ends  map[*wire]context.CancelFunc
	asked int
}

type lineState int

const (
	up lineState = iota
	// refused is a network in which nothing listens.
	refused
	// dead is one that swallows everything.
	dead
)

// dialTimeout is that of client-go.
const dialTimeout = 30 * time.Second

func newLine(server http.Handler) *line {
	return &line{server: server, ends: map[*wire]context.CancelFunc{}}
}

// become changes the state. Unless the line is up then, what is under way ends;
// in a dead one it hangs, as connections do until somebody notices.
func (l *line) become(s lineState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = s
	if s != refused {
		return
	}
	for w, cancel := range l.ends {
		w.end(io.ErrUnexpectedEOF)
		cancel()
	}
	clear(l.ends)
}

// count is how many requests there have been.
func (l *line) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

func (l *line) RoundTrip(req *http.Request) (*http.Response, error) {
	l.mu.Lock()
	l.asked++
	state := l.state
	l.mu.Unlock()
	switch state {
	case refused:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	case dead:
		select {
		case <-req.Context().Done():
			return nil, req.Context().Err()
		case <-time.After(dialTimeout):
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
		}
	}
	ctx, cancel := context.WithCancel(req.Context())
	w := newWire()
	l.mu.Lock()
	l.ends[w] = cancel
	l.mu.Unlock()
	a := &answer{header: http.Header{}, w: w, started: make(chan struct{})}
	served := req.Clone(ctx)
	served.RequestURI = req.URL.RequestURI()
	if served.Body == nil {
		served.Body = http.NoBody
	}
	go func() {
		l.server.ServeHTTP(a, served)
		a.WriteHeader(200)
		w.end(io.EOF)
		l.mu.Lock()
		delete(l.ends, w)
		l.mu.Unlock()
	}()
	select {
	case <-a.started:
	case <-ctx.Done():
		w.end(ctx.Err())
		cancel()
		return nil, ctx.Err()
	}
	// The end of the request's context ends its body, too.
	context.AfterFunc(ctx, func() { w.end(context.Canceled) })
	return &http.Response{
		Status: http.StatusText(a.status), StatusCode: a.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: a.sent, Body: &wireBody{w, cancel}, ContentLength: -1, Request: req,
	}, nil
}

// wire is a pipe that holds any number of bytes.
type wire struct {
	mu   sync.Mutex
	more *sync.Cond
	buf  bytes.Buffer
	err  error // what ends it
}

func newWire() *wire {
	w := new(wire)
	w.more = sync.NewCond(&w.mu)
	return w
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, w.err
	}
	w.more.Broadcast()
	return w.buf.Write(p)
}

func (w *wire) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.buf.Len() == 0 && w.err == nil {
		w.more.Wait()
	}
	if w.buf.Len() == 0 {
		return 0, w.err
	}
	return w.buf.Read(p)
}

func (w *wire) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	w.more.Broadcast()
}

type wireBody struct {
	*wire
	cancel context.CancelFunc
}

func (b *wireBody) Close() error {
	b.cancel()
	b.end(http.ErrBodyReadAfterClose)
	return nil
}

// answer is the ResponseWriter of a line.
type answer struct {
	header, sent http.Header
	status       int
	w            *wire
	started      chan struct{}
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status, a.sent = status, a.header.Clone()
		close(a.started)
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(200)
	return a.w.Write(p)
}

func (a *answer) Flush() { a.WriteHeader(200) }

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// openStore opens a store in the folder, which is closed at the test's end unless
// the test has done so.
func openStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(Config{Dir: dir, Node: "edge-1", Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func closeStore(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("close the store: %v", err)
	}
}

func flush(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
}

// clientOf is a client of the kind that the kubelet has. The store may be nil.
func clientOf(t *testing.T, rt http.RoundTripper, s *Store, asJSON bool) *kubernetes.Clientset {
	t.Helper()
	cfg := &rest.Config{Host: "http://127.0.0.1:6443", QPS: -1, Transport: rt}
	cfg.ContentType, cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	if asJSON {
		cfg.ContentType, cfg.AcceptContentTypes = "application/json", "application/json"
	}
	if s != nil {
		cfg.WrapTransport = s.Wrap
	}
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
