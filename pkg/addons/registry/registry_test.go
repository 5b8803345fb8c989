package registry

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/knarr-dev/knarr/tests/harness/imageclient"
)

// start runs a registry until the test or stop ends it.
func start(t *testing.T, cfg Config) (addr string, r *Registry, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return startAt(t, l.Addr().String(), cfg)
}

// startAt is start at an address.
func startAt(t *testing.T, addr string, cfg Config) (_ string, r *Registry, stop func()) {
	t.Helper()
	cfg.Listen = addr
	r = New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- r.Run(ctx, ready) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("the registry ended: %v", err)
	}
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return addr, r, stop
}

func image(t *testing.T) imageclient.Image {
	t.Helper()
	layers := make([][]byte, 3)
	for i := range layers {
		layers[i] = make([]byte, 64<<10)
		rand.Read(layers[i]) // never fails, see its documentation
	}
	img, err := imageclient.New(ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func push(t *testing.T, name string, img imageclient.Image) {
	t.Helper()
	repository, tag := imageclient.Parse(name)
	if err := repository.Push(t.Context(), img, tag); err != nil {
		t.Fatal(err)
	}
}

// wantImage pulls all of an image and compares it.
func wantImage(t *testing.T, name string, want imageclient.Image) {
	t.Helper()
	repository, tag := imageclient.Parse(name)
	got, err := repository.Digest(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	if d := want.Digest(); d != got {
		t.Errorf("%s has the digest %s, want %s", name, got, d)
	}
}

func TestImagesArePushedPulledAndKept(t *testing.T) {
	dir := t.TempDir()
	addr, _, stop := start(t, Config{Dir: dir})
	first, second := image(t), image(t)
	push(t, addr+"/team/app:1", first)
	push(t, addr+"/team/app:2", second)
	wantImage(t, addr+"/team/app:1", first)
	push(t, addr+"/team/app:1", second) // a tag moves
	stop()

	addr, _, _ = start(t, Config{Dir: dir})
	wantImage(t, addr+"/team/app:1", second)
	repository, _ := imageclient.Parse(addr + "/team/app:1")
	digest := first.Digest()
	if got, err := repository.Digest(t.Context(), digest); err != nil || got != digest {
		t.Errorf("by its digest the image is %s, %v", got, err)
	}
	if tags, err := repository.Tags(t.Context()); err != nil || !strings.Contains(tags, `["1","2"]`) {
		t.Errorf("the tags are %s, %v", tags, err)
	}
	if err := repository.Delete(t.Context(), digest); err != nil {
		t.Error(err)
	}
	if _, err := repository.Digest(t.Context(), digest); err == nil {
		t.Error("a deleted image is still there")
	}
}

// Container runtimes push an index with the one image that they have of it.
func TestIndexNeedNotBeComplete(t *testing.T) {
	addr, _, _ := start(t, Config{Dir: t.TempDir()})
	here, elsewhere := image(t), image(t)
	push(t, addr+"/app:here", here)
	entry := func(img imageclient.Image) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(img.Manifest), Size: int64(len(img.Manifest))}
	}
	manifest, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{entry(here), entry(elsewhere)}})
	if err != nil {
		t.Fatal(err)
	}
	repository, _ := imageclient.Parse(addr + "/app:1")
	if err := repository.PutManifest(t.Context(), "1", "application/vnd.oci.image.index.v1+json", manifest); err != nil {
		t.Error(err)
	}
}

func TestOtherNodesReachTheServersImages(t *testing.T) {
	server, r, stop := start(t, Config{Dir: t.TempDir()})
	mux := http.NewServeMux()
	mux.Handle(Prefix, r.Handler())
	api := httptest.NewServer(mux)
	defer api.Close()
	node, _, _ := start(t, Config{Remote: func() (Remote, error) {
		return Remote{Server: api.URL, Transport: http.DefaultTransport}, nil
	}})
	img := image(t)
	push(t, node+"/team/app:1", img)
	wantImage(t, server+"/team/app:1", img)
	wantImage(t, node+"/team/app:1", img)

	stop()
	resp, err := http.Get("http://" + node + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), "not running yet") {
		t.Errorf("without the server's registry the node's says %s: %s", resp.Status, body)
	}
}

func TestWebPagesAreKeptOut(t *testing.T) {
	addr, _, _ := start(t, Config{Dir: t.TempDir()})
	for what, edit := range map[string]func(*http.Request){
		"another page's script":  func(r *http.Request) { r.Header.Set("Origin", "https://example.org") },
		"a name that leads here": func(r *http.Request) { r.Host = "registry.example.org:5000" },
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		edit(req)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s is answered: %s", what, resp.Status)
		}
	}
}

func TestAbandonedUploadsAreRemovedAndOthersStay(t *testing.T) {
	dir := t.TempDir()
	upload := func(id string, began time.Time) string {
		folder := filepath.Join(dir, "docker/registry/v2/repositories/team/app/_uploads", id)
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		for file, text := range map[string]string{"startedat": began.UTC().Format(time.RFC3339), "data": "half a layer"} {
			if err := os.WriteFile(filepath.Join(folder, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return folder
	}
	old := upload("4b5c2a35-6f4b-4d0e-8f0e-3d1b1b6a7a01", time.Now().Add(-abandoned-time.Hour))
	young := upload("4b5c2a35-6f4b-4d0e-8f0e-3d1b1b6a7a02", time.Now().Add(-abandoned+time.Hour))
	New(Config{Dir: dir}).tidy(t.Context())
	if _, err := os.Stat(old); err == nil {
		t.Error("an abandoned upload is still there")
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("an upload that may go on is gone: %v", err)
	}
}

func TestTakenPortIsToldWithWhatToDo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = New(Config{Dir: t.TempDir(), Listen: l.Addr().String()}).Run(t.Context(), make(chan struct{}))
	if err == nil || !strings.Contains(err.Error(), "--registry-address") {
		t.Errorf("the error is %v", err)
	}
}

func TestFilesStayInTheirFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "registry")
	f, err := openFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.root.Close()
	if err := os.Symlink("..", filepath.Join(dir, "up")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/../outside", "/up/outside"} {
		err := f.PutContent(t.Context(), path, []byte("x"))
		if _, out := os.Stat(filepath.Join(dir, "..", "outside")); out == nil {
			t.Errorf("%s leads out of the folder (%v)", path, err)
		}
	}
	if err := f.PutContent(t.Context(), "/a/b", []byte("text")); err != nil {
		t.Fatal(err)
	}
	if data, err := f.GetContent(t.Context(), "/a/b"); err != nil || string(data) != "text" {
		t.Errorf("what was put is %q, %v", data, err)
	}
	if names, err := f.List(t.Context(), "/a"); err != nil || fmt.Sprint(names) != "[/a/b]" {
		t.Errorf("the folder holds %v, %v", names, err)
	}
}
