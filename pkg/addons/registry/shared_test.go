package registry

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestProcessesShareAFolderAndAnAddress(t *testing.T) {
	dir := t.TempDir()
	addr, _, stopFirst := start(t, Config{Dir: dir, Shared: true})
	_, _, stopSecond := startAt(t, addr, Config{Dir: dir, Shared: true})
	// Each request may be answered by either, an upload's too.
	img := image(t)
	for range 10 {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		push(t, addr+"/app:1", img)
	}
	stopFirst()
	wantImage(t, addr+"/app:1", img)
	if l, err := net.Listen("tcp", addr); err == nil {
		l.Close()
		t.Error("another program got the address")
	}
	stopSecond()
	_, _, _ = startAt(t, addr, Config{Dir: dir, Shared: true})
	wantImage(t, addr+"/app:1", img)
}

func TestAnUploadIsContinuedByAnother(t *testing.T) {
	dir := t.TempDir()
	first, _, _ := start(t, Config{Dir: dir, Shared: true})
	second, _, _ := start(t, Config{Dir: dir, Shared: true})
	answer, err := http.Post("http://"+first+"/v2/app/blobs/uploads/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	at := answer.Header.Get("Location")
	if answer.StatusCode != http.StatusAccepted || !strings.HasPrefix(at, "/") {
		t.Fatalf("%s, at %q", answer.Status, at)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, "http://"+second+at, strings.NewReader("part"))
	if err != nil {
		t.Fatal(err)
	}
	answer, err = http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if text, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusAccepted {
		t.Errorf("%s: %s", answer.Status, text)
	}
}
