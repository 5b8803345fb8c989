package ocitar_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/knarr-dev/knarr/pkg/bundle/ocitar"
)

func example() ocitar.Image {
	return ocitar.Image{
		Name: "knarr.dev/example:1", Arch: "amd64", Entrypoint: []string{"/bin/tool"},
		Files: []ocitar.File{
			{Name: "bin/tool", Mode: 0o755, Data: []byte("tool")},
			{Name: "bin/sh", Link: "tool"},
			{Name: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		},
	}
}

func TestContainerdImportsWhatWeWrite(t *testing.T) {
	for _, packed := range []bool{false, true} {
		t.Run(fmt.Sprintf("packed %v", packed), func(t *testing.T) {
			img := example()
			img.Gzip, img.Volumes, img.StopSignal = packed, []string{"/var/lib/tool"}, "SIGINT"
			imported(t, img)
		})
	}
}

func imported(t *testing.T, img ocitar.Image) {
	t.Helper()
	ctx := t.Context()
	var buf bytes.Buffer
	if err := ocitar.Write(&buf, img); err != nil {
		t.Fatal(err)
	}
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	index, err := archive.ImportIndex(ctx, store, &buf)
	if err != nil {
		t.Fatal(err)
	}
	data, err := content.ReadBlob(ctx, store, index)
	if err != nil {
		t.Fatal(err)
	}
	var ix ocispec.Index
	if err := json.Unmarshal(data, &ix); err != nil {
		t.Fatal(err)
	}
	if len(ix.Manifests) != 1 {
		t.Fatalf("%d images, want one", len(ix.Manifests))
	}
	if got := ix.Manifests[0].Annotations[images.AnnotationImageName]; got != "knarr.dev/example:1" {
		t.Errorf("name %q", got)
	}
	spec := platforms.MustParse("linux/amd64")
	m, err := images.Manifest(ctx, store, index, platforms.OnlyStrict(spec))
	if err != nil {
		t.Fatal(err)
	}
	ids, err := images.RootFS(ctx, store, m.Config)
	if err != nil {
		t.Fatal(err)
	}
	layer, err := content.ReadBlob(ctx, store, m.Layers[0])
	if err != nil {
		t.Fatalf("layer: %v", err)
	}
	unpacked, err := compression.DecompressStream(bytes.NewReader(layer))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(unpacked); err != nil || len(ids) != 1 || ids[0] != digest.FromBytes(text) {
		t.Errorf("layers %v do not match %v: %v", ids, m.Layers, err)
	}
	config, err := content.ReadBlob(ctx, store, m.Config)
	if err != nil {
		t.Fatal(err)
	}
	var about ocispec.Image
	if err := json.Unmarshal(config, &about); err != nil {
		t.Fatal(err)
	}
	if _, ok := about.Config.Volumes["/var/lib/tool"]; !ok || about.Config.StopSignal != "SIGINT" {
		t.Errorf("the image says %+v", about.Config)
	}
}

func TestEqualImagesGiveEqualBytes(t *testing.T) {
	var one, two bytes.Buffer
	for _, b := range []*bytes.Buffer{&one, &two} {
		if err := ocitar.Write(b, example()); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("two writes of one image differ")
	}
}
