package ocitar_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
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
	ctx := t.Context()
	var buf bytes.Buffer
	if err := ocitar.Write(&buf, example()); err != nil {
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
	if len(ids) != 1 || ids[0] != m.Layers[0].Digest {
		t.Errorf("layers %v do not match %v", ids, m.Layers)
	}
	if _, err := content.ReadBlob(ctx, store, m.Layers[0]); err != nil {
		t.Errorf("layer: %v", err)
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
