package images

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/google/go-containerregistry/pkg/registry"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/knarr-dev/knarr/tests/harness/imageclient"
)

// built is an image of one empty layer, that differs by its text.
func built(t *testing.T, arch, text string) imageclient.Image {
	t.Helper()
	img, err := imageclient.New(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: arch}, Config: ocispec.ImageConfig{Cmd: []string{text}},
	}, make([]byte, 1024)) // two blocks of zeros: the end of a tar
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func archiveOf(t *testing.T, img imageclient.Image, name string) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := img.Save(&buf, name); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// storeForTest is a node's images, of which one is Knarr's own.
func storeForTest(t *testing.T) (*Store, *containerdForTest) {
	t.Helper()
	c := startContainerd(t)
	err := Ensure(c.ctx, c.client, snapshotter, Embedded{Image: "knarr.dev/own:1", ID: "1", Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(archiveOf(t, built(t, runtime.GOARCH, "own"), "knarr.dev/own:1"))), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(c.ctx, c.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, c
}

func registryForTest(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// states are the images that have a tag, with what is to be known of them.
func states(t *testing.T, s *Store, c *containerdForTest) string {
	t.Helper()
	list, err := s.List(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, i := range list {
		state := i.Name()
		if i.Pinned {
			state += " pinned"
		}
		if i.Used {
			state += " used"
		}
		all = append(all, state)
	}
	return strings.Join(all, ", ")
}

func TestImagesAreImportedPushedPulledAndPruned(t *testing.T) {
	s, c := storeForTest(t)
	host := registryForTest(t)
	pusher := docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))})
	app := built(t, runtime.GOARCH, "app")
	tags, err := s.Import(c.ctx, bytes.NewReader(archiveOf(t, app, "docker.io/team/app:1")))
	if err != nil || len(tags) != 1 || tags[0] != "docker.io/team/app:1" {
		t.Fatalf("imported %q, %v", tags, err)
	}
	pushed, err := s.Push(c.ctx, "team/app:1", host+"/team/app:2", pusher)
	if err != nil || pushed != app.Digest() {
		t.Fatalf("pushed %s, %v; want %s", pushed, err, app.Digest())
	}
	repository, _ := imageclient.Parse(host + "/team/app:2")
	if got, err := repository.Digest(c.ctx, "2"); err != nil || got != app.Digest() {
		t.Errorf("the registry has %s, %v", got, err)
	}

	if err := repository.Push(c.ctx, built(t, runtime.GOARCH, "other"), "3"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(c.ctx, host+"/team/app:3", Credentials{}); err != nil {
		t.Fatal(err)
	}
	if got, want := states(t, s, c), host+"/team/app:3, docker.io/team/app:1 pinned, knarr.dev/own:1 pinned"; got != want {
		t.Errorf("there is %s, want %s", got, want)
	}
	var out bytes.Buffer
	if err := s.Export(c.ctx, &out, host+"/team/app:3"); err != nil || !strings.Contains(out.String(), host+"/team/app:3") {
		t.Errorf("exported %d bytes, %v", out.Len(), err)
	}

	if would, err := s.Prune(c.ctx, true); err != nil || len(would) != 1 || would[0].Name() != host+"/team/app:3" {
		t.Errorf("prune would remove %v, %v", would, err)
	}
	if _, err := s.Prune(c.ctx, false); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(c.ctx, "team/app:1"); err != nil {
		t.Fatal(err)
	}
	if got, want := states(t, s, c), "knarr.dev/own:1 pinned"; got != want {
		t.Errorf("left is %s, want %s", got, want)
	}
	if err := s.Remove(c.ctx, "team/app:1"); err == nil || !strings.Contains(err.Error(), "no such image") {
		t.Errorf("removing what is not there: %v", err)
	}
}

func TestOfAnIndexTheMachinesOwnPartIsPushed(t *testing.T) {
	s, c := storeForTest(t)
	host := registryForTest(t)
	here, elsewhere := built(t, runtime.GOARCH, "here"), built(t, "s390x", "elsewhere")
	repository, _ := imageclient.Parse(host + "/app:1")
	entry := func(img imageclient.Image, arch string) ocispec.Descriptor {
		if err := repository.Push(c.ctx, img, arch); err != nil {
			t.Fatal(err)
		}
		return ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(img.Manifest), Size: int64(len(img.Manifest)),
			Platform: &ocispec.Platform{OS: "linux", Architecture: arch},
		}
	}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{entry(elsewhere, "s390x"), entry(here, runtime.GOARCH)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := repository.PutManifest(c.ctx, "1", ocispec.MediaTypeImageIndex, index); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(c.ctx, host+"/app:1", Credentials{}); err != nil {
		t.Fatal(err)
	}
	pusher := docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))})
	if pushed, err := s.Push(c.ctx, host+"/app:1", host+"/copy:1", pusher); err != nil || pushed != here.Digest() {
		t.Errorf("pushed %s, %v; want %s", pushed, err, here.Digest())
	}
}

func TestWithoutContainerdTheErrorSaysWhatToDo(t *testing.T) {
	if _, err := Open(t.Context(), t.TempDir()+"/none.sock"); err == nil || !strings.Contains(err.Error(), "is Knarr running") {
		t.Errorf("the error is %v", err)
	}
}
