package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	goruntime "runtime"
	"testing"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// entry is a file of an archive.
type entry struct {
	name string
	data []byte
}

func tarball(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func asJSON(t *testing.T, v any) []byte {
	t.Helper()
	blob, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

// parts makes a layer that holds content, and the image config for it.
func parts(t *testing.T, arch, content string) (layer, config []byte) {
	t.Helper()
	layer = tarball(t, entry{"hello", []byte(content)})
	return layer, asJSON(t, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	})
}

// dockerArchive is what `docker save` of old wrote.
func dockerArchive(t *testing.T, content string, tags ...string) []byte {
	t.Helper()
	layer, config := parts(t, goruntime.GOARCH, content)
	manifest := asJSON(t, []map[string]any{{"Config": "config.json", "RepoTags": tags, "Layers": []string{"layer.tar"}}})
	return tarball(t, entry{"layer.tar", layer}, entry{"config.json", config}, entry{"manifest.json", manifest})
}

// ociArchive is an OCI layout with one image.
func ociArchive(t *testing.T, arch, content string, annotations map[string]string) []byte {
	t.Helper()
	layer, config := parts(t, arch, content)
	describe := func(mediaType string, blob []byte) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	}
	manifest := asJSON(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    describe(ocispec.MediaTypeImageConfig, config),
		Layers:    []ocispec.Descriptor{describe(ocispec.MediaTypeImageLayer, layer)},
	})
	top := describe(ocispec.MediaTypeImageManifest, manifest)
	top.Annotations = annotations
	top.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	index := asJSON(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{top}})
	blob := func(b []byte) entry { return entry{"blobs/sha256/" + digest.FromBytes(b).Encoded(), b} }
	return tarball(t,
		entry{"oci-layout", asJSON(t, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})},
		entry{"index.json", index}, blob(manifest), blob(config), blob(layer))
}

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	return compressed(t, b, gzip.NewWriter(&out), &out)
}

func zstded(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	return compressed(t, b, w, &out)
}

func compressed(t *testing.T, b []byte, w io.WriteCloser, out *bytes.Buffer) []byte {
	t.Helper()
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func writeFile(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}
