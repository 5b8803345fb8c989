// Package ocitar writes small container images as OCI-layout archives that
// containerd, docker and podman import. It needs no daemon, and equal inputs
// give equal bytes.
package ocitar

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
)

// Image is an image of one layer for Linux.
type Image struct {
	Name       string // full reference, such as knarr.dev/pause:1
	Arch       string // as GOARCH
	Entrypoint []string
	Cmd        []string
	Env        []string
	// Volumes are folders that outlive a container's own files.
	Volumes []string
	// StopSignal asks a container to end. Default: whatever the runtime sends, SIGTERM.
	StopSignal string
	Files      []File
	// Gzip has the layer packed, for images that travel. Containerd imports one
	// that is not faster.
	Gzip bool
}

// File is a file, a folder (Mode has fs.ModeDir) or, if Link is set, a
// symbolic link. Name is relative to the image's root.
type File struct {
	Name string
	Mode fs.FileMode
	Data []byte
	Link string
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    map[string]string `json:"platform,omitempty"`
}

// Write writes img to w.
func Write(w io.Writer, img Image) error {
	layer, diffID, err := layerOf(img)
	if err != nil {
		return fmt.Errorf("image %s: %w", img.Name, err)
	}
	blobs := map[string][]byte{}
	var order []string
	add := func(mediaType string, data []byte) descriptor {
		sum := sha256.Sum256(data)
		hex := hex.EncodeToString(sum[:])
		blobs[hex], order = data, append(order, hex)
		return descriptor{MediaType: mediaType, Digest: "sha256:" + hex, Size: len(data)}
	}
	const kind = "application/vnd.oci.image."
	layerType := kind + "layer.v1.tar"
	if img.Gzip {
		layerType += "+gzip"
	}
	layerDesc := add(layerType, layer)
	config := add(kind+"config.v1+json", mustJSON(map[string]any{
		"created": "1970-01-01T00:00:00Z", "architecture": img.Arch, "os": "linux",
		"config": img.config(),
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{diffID}},
	}))
	manifest := add(kind+"manifest.v1+json", mustJSON(map[string]any{
		"schemaVersion": 2, "mediaType": kind + "manifest.v1+json",
		"config": config, "layers": []descriptor{layerDesc},
	}))
	manifest.Platform = map[string]string{"architecture": img.Arch, "os": "linux"}
	manifest.Annotations = map[string]string{
		"io.containerd.image.name":          img.Name,
		"org.opencontainers.image.ref.name": img.Name[strings.LastIndex(img.Name, ":")+1:],
	}
	blob := func(d descriptor) string { return "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:") }

	var files []File
	for _, hex := range order {
		files = append(files, File{Name: "blobs/sha256/" + hex, Mode: 0o644, Data: blobs[hex]})
	}
	files = append(files,
		File{Name: "index.json", Mode: 0o644, Data: mustJSON(map[string]any{
			"schemaVersion": 2, "mediaType": kind + "index.v1+json", "manifests": []descriptor{manifest},
		})},
		// docker load, before it knew OCI layouts, reads this one.
		File{Name: "manifest.json", Mode: 0o644, Data: mustJSON([]any{map[string]any{
			"Config": blob(config), "RepoTags": []string{img.Name}, "Layers": []string{blob(layerDesc)},
		}})},
		File{Name: "oci-layout", Mode: 0o644, Data: []byte(`{"imageLayoutVersion":"1.0.0"}`)})
	if err := writeTar(w, files); err != nil {
		return fmt.Errorf("image %s: %w", img.Name, err)
	}
	return nil
}

// config is what a runtime starts a container by. What is not set is left out.
func (img Image) config() map[string]any {
	c := map[string]any{"Entrypoint": img.Entrypoint, "Cmd": img.Cmd, "Env": img.Env}
	if len(img.Volumes) > 0 {
		volumes := map[string]any{}
		for _, v := range img.Volumes {
			volumes[v] = map[string]any{}
		}
		c["Volumes"] = volumes
	}
	if img.StopSignal != "" {
		c["StopSignal"] = img.StopSignal
	}
	return c
}

// layerOf is the one layer, and the digest of what it unpacks to.
func layerOf(img Image) (layer []byte, diffID string, err error) {
	var buf bytes.Buffer
	sum := sha256.New()
	if img.Gzip {
		packed, err := gzip.NewWriterLevel(&buf, gzip.DefaultCompression)
		if err != nil {
			return nil, "", err
		}
		if err := errors.Join(writeTar(io.MultiWriter(packed, sum), img.Files), packed.Close()); err != nil {
			return nil, "", err
		}
	} else if err := writeTar(io.MultiWriter(&buf, sum), img.Files); err != nil {
		return nil, "", err
	}
	return buf.Bytes(), "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

// mustJSON encodes maps of strings and numbers, which cannot fail.
func mustJSON(v any) []byte {
	b, _ := json.Marshal(v)
	return b
}

// writeTar keeps the order it is given, adds missing parent folders and fixes
// every time and owner.
func writeTar(w io.Writer, files []File) error {
	tw := tar.NewWriter(w)
	made := map[string]bool{".": true}
	var add func(f File) error
	add = func(f File) error {
		if parent := path.Dir(f.Name); !made[parent] {
			if err := add(File{Name: parent, Mode: fs.ModeDir | 0o755}); err != nil {
				return err
			}
		}
		h := &tar.Header{Name: f.Name, Mode: int64(f.Mode.Perm()), Size: int64(len(f.Data)), ModTime: time.Unix(0, 0)}
		if f.Mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
		case f.Mode.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, f.Name+"/"
			made[f.Name] = true
		default:
			h.Typeflag = tar.TypeReg
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		_, err := tw.Write(f.Data)
		return err
	}
	for _, f := range files {
		if err := add(f); err != nil {
			return err
		}
	}
	return tw.Close()
}
