package edge

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// BenchmarkWatchEvent is what one event of a watch costs beside the client: to be
// read, compared, and found to change nothing.
func BenchmarkWatchEvent(b *testing.B) {
	s, err := Open(Config{Dir: b.TempDir(), Node: "edge-1", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	q := question{verb: watch, gv: schema.GroupVersion{Version: "v1"}, selection: "/api/v1/pods", id: objectID{resource: podResource}, query: map[string][]string{"sendInitialEvents": {"true"}}}
	p := pod("web-1", "edge-1")
	p.ResourceVersion = "7"
	text, err := encode(p, schema.GroupVersionKind{Version: "v1", Kind: "Pod"}, false)
	if err != nil {
		b.Fatal(err)
	}
	event, err := encodeEvent("ADDED", text, false)
	if err != nil {
		b.Fatal(err)
	}
	w := s.watching(q, false)
	b.ReportAllocs()
	for b.Loop() {
		w.write(event)
	}
	if err := s.Flush(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkMemory tells what a store holds in memory for each object that is on
// disk.
func BenchmarkMemory(b *testing.B) {
	const n = 2000
	for b.Loop() {
		b.StopTimer()
		s, err := Open(Config{Dir: b.TempDir(), Node: "edge-1", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		b.StartTimer()
		q := question{verb: watch, gv: discoveryv1.SchemeGroupVersion, selection: "/apis/discovery.k8s.io/v1/endpointslices", id: objectID{resource: endpointSliceResource}, query: map[string][]string{"sendInitialEvents": {"true"}}}
		w := s.watching(q, false)
		for i := range n {
			text, err := encode(slice(fmt.Sprintf("web-%d", i), "10.42.0.1"), discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), false)
			if err != nil {
				b.Fatal(err)
			}
			event, err := encodeEvent("ADDED", text, false)
			if err != nil {
				b.Fatal(err)
			}
			w.write(event)
		}
		if err := s.Flush(); err != nil {
			b.Fatal(err)
		}
		w.end(true)
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/object")
		b.ReportMetric(float64(s.file.Size())/n, "file-B/object")
		s.Close()
		b.StartTimer()
	}
}

// BenchmarkRoundTrip is what the store adds to a request that it could answer.
func BenchmarkRoundTrip(b *testing.B) {
	s, err := Open(Config{Dir: b.TempDir(), Node: "edge-1", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	n := node("edge-1")
	text, err := encode(n, schema.GroupVersionKind{Version: "v1", Kind: "Node"}, false)
	if err != nil {
		b.Fatal(err)
	}
	inner := fixed{text}
	for name, rt := range map[string]http.RoundTripper{"without": inner, "with": s.Wrap(inner)} {
		b.Run(name, func(b *testing.B) {
			req, err := http.NewRequest(http.MethodGet, "http://x/api/v1/nodes/edge-1", nil)
			if err != nil {
				b.Fatal(err)
			}
			req.Header.Set("Accept", protobufType)
			b.ReportAllocs()
			for b.Loop() {
				resp, err := rt.RoundTrip(req)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					b.Fatal(err)
				}
				resp.Body.Close()
			}
		})
	}
}

// fixed always answers the same.
type fixed struct{ text []byte }

func (f fixed) RoundTrip(req *http.Request) (*http.Response, error) {
	return respond(req, question{}, http.StatusOK, f.text), nil
}
