package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/knarr-dev/knarr/pkg/component"
	"sigs.k8s.io/yaml"
)

// shortDir is a folder whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "st")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// serve runs a server until the test ends or stop is called.
func serve(t *testing.T, s *Server) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, result := make(chan struct{}), make(chan error, 1)
	go func() { result <- s.Run(ctx, ready) }()
	select {
	case <-ready:
	case err := <-result:
		t.Fatal(err)
	}
	return func() {
		cancel()
		if err := <-result; err != nil {
			t.Error(err)
		}
	}
}

func TestStatusOfARunningGroupIsFetched(t *testing.T) {
	up := func(ctx context.Context, ready chan<- struct{}) error {
		close(ready)
		<-ctx.Done()
		return nil
	}
	g, err := component.NewGroup(slog.New(slog.DiscardHandler),
		component.Spec{Component: component.Func("store", nil, up)},
		component.Spec{Component: component.Func("apiserver", []string{"store"}, up), Class: component.Retried},
	)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- g.Run(ctx) }()
	<-g.AllReady()

	socket := filepath.Join(shortDir(t), "run", "status.sock")
	stop := serve(t, &Server{Socket: socket, Report: func() Report { return Of(g, "v1.36.4+knarr1") }})
	r, err := Fetch(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	if r.PID != os.Getpid() || r.Version != "v1.36.4+knarr1" || !r.Ready || r.StartedAt.IsZero() {
		t.Errorf("report: %+v", r)
	}
	if !reflect.DeepEqual(r.Components, g.Status()) {
		t.Errorf("components: %+v, want %+v", r.Components, g.Status())
	}
	for path, want := range map[string]fs.FileMode{socket: fs.ModeSocket | 0o600, filepath.Dir(socket): fs.ModeDir | 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}

	cancel()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if r, err := Fetch(t.Context(), socket); err != nil || r.Ready || r.Components[0].State != component.StateStopped {
		t.Errorf("after the group's stop: %+v, %v", r, err)
	}
	stop()
	if left, err := os.ReadDir(filepath.Dir(socket)); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestFetchSaysThatNoServerRuns(t *testing.T) {
	socket := filepath.Join(shortDir(t), "status.sock")
	if _, err := Fetch(t.Context(), socket); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), socket) {
		t.Errorf("no socket: %v", err)
	}
	leaveStaleSocket(t, socket)
	if _, err := Fetch(t.Context(), socket); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("stale socket: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	socket := filepath.Join(shortDir(t), "status.sock")
	leaveStaleSocket(t, socket)
	defer serve(t, &Server{Socket: socket, Report: func() Report { return Report{PID: 7} }})()
	if r, err := Fetch(t.Context(), socket); err != nil || r.PID != 7 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestSocketOfALivingServerIsLeftAlone(t *testing.T) {
	socket := filepath.Join(shortDir(t), "status.sock")
	defer serve(t, &Server{Socket: socket, Report: func() Report { return Report{PID: 7} }})()
	second := &Server{Socket: socket, Report: func() Report { return Report{PID: 8} }}
	if err := second.Run(t.Context(), make(chan struct{})); err == nil || !strings.Contains(err.Error(), "another knarr") {
		t.Errorf("second server: %v", err)
	}
	if r, err := Fetch(t.Context(), socket); err != nil || r.PID != 7 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestFileInTheSocketsPlaceIsLeftAlone(t *testing.T) {
	path := filepath.Join(shortDir(t), "status.sock")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := (&Server{Socket: path}).Run(t.Context(), make(chan struct{}))
	if err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("Run: %v", err)
	}
	if text, _ := os.ReadFile(path); string(text) != "mine" {
		t.Errorf("the file now holds %q", text)
	}
}

func TestLongSocketPathIsExplained(t *testing.T) {
	path := filepath.Join("/", strings.Repeat("x", 120), "status.sock")
	if _, err := Fetch(t.Context(), path); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("Fetch: %v", err)
	}
}

func TestPrintKnowsTableJSONAndYAML(t *testing.T) {
	at := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	r := &Report{Version: "v1", PID: 3, At: at, Components: []component.Status{
		{Name: "store", State: component.StateReady, Since: at.Add(-192 * time.Second), ReadyAfter: component.Duration{Duration: 62 * time.Millisecond}},
		{Name: "apiserver", State: component.StateRetrying, Since: at.Add(-2 * time.Second), LastError: "port 6443\n is taken", Class: component.Retried},
		{Name: "dns", State: component.StateWaiting, Since: at.Add(-100 * time.Hour), WaitsFor: []string{"apiserver"}},
	}}
	var out bytes.Buffer
	if err := Print(&out, r, "table"); err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		"NAME       STATE            READY AFTER  SINCE  LAST ERROR",
		"store      ready            0.062s       3m12s  -",
		"apiserver  failed-retrying  -            2s     port 6443 is taken",
		"dns        waiting          -            4d4h   (waits for apiserver)",
		"",
	}, "\n")
	if out.String() != want {
		t.Errorf("table:\n%s\nwant:\n%s", out.String(), want)
	}
	for format, read := range map[string]func([]byte, any) error{
		"json": json.Unmarshal,
		"yaml": func(b []byte, v any) error { return yaml.Unmarshal(b, v) },
	} {
		out.Reset()
		var got Report
		if err := Print(&out, r, format); err != nil {
			t.Fatal(err)
		}
		if err := read(out.Bytes(), &got); err != nil || !reflect.DeepEqual(&got, r) {
			t.Errorf("%s: %v\n%s", format, err, out.String())
		}
	}
	if err := Print(&out, r, "xml"); err == nil || !strings.Contains(err.Error(), "table, json, yaml") {
		t.Errorf("Print xml: %v", err)
	}
}

// leaveStaleSocket leaves what a killed server leaves: a socket nobody serves.
func leaveStaleSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStatusIsToldAgainAtEachChange(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	s := &Server{Socket: socket, Report: func() Report { return Report{} }, Routes: func(mux *http.ServeMux) {
		mux.HandleFunc("GET /watch", func(w http.ResponseWriter, _ *http.Request) {
			for pid := range 3 {
				_ = json.NewEncoder(w).Encode(Report{PID: pid + 1})
				_ = http.NewResponseController(w).Flush()
			}
		})
	}}
	ready, done := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- s.Run(ctx, ready) }()
	<-ready
	var seen []int
	err := Watch(t.Context(), socket, "/watch", func(r *Report) error { seen = append(seen, r.PID); return nil })
	if err == nil || !strings.Contains(err.Error(), "has ended") || !reflect.DeepEqual(seen, []int{1, 2, 3}) {
		t.Errorf("%v, %v", seen, err)
	}
	if err := Watch(t.Context(), socket, "/none", nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("of a server that knows no watch: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
