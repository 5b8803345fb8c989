// Package imageclient speaks to registries as the OCI distribution specification
// says, by plain HTTP requests, so that tests of registries trust no other client.
package imageclient

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Repository is one of a registry that is reached without TLS.
type Repository struct {
	// Host is the registry's, with its port.
	Host string
	// Name is what images in it begin with, behind the host.
	Name string
	// Client defaults to http.DefaultClient.
	Client *http.Client
}

// Parse takes an image's name apart: host:port/name:tag.
func Parse(image string) (Repository, string) {
	host, rest, _ := strings.Cut(image, "/")
	name, tag, _ := strings.Cut(rest, ":")
	return Repository{Host: host, Name: name}, tag
}

// Image is one for one kind of machine, in the OCI's form.
type Image struct {
	// Layers are uncompressed tars.
	Layers           [][]byte
	Config, Manifest []byte
}

// New makes an image of a configuration, whose layers are filled in here.
func New(config ocispec.Image, layers ...[]byte) (Image, error) {
	img := Image{Layers: layers}
	config.RootFS = ocispec.RootFS{Type: "layers"}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		d := descriptor(ocispec.MediaTypeImageLayer, l)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest)
		manifest.Layers = append(manifest.Layers, d)
	}
	var err error
	if img.Config, err = json.Marshal(config); err != nil {
		return img, err
	}
	manifest.Config = descriptor(ocispec.MediaTypeImageConfig, img.Config)
	img.Manifest, err = json.Marshal(manifest)
	return img, err
}

func descriptor(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// Digest is the image's.
func (i Image) Digest() string { return digest.FromBytes(i.Manifest).String() }

// Save writes the image under a name, in full, as an archive in OCI layout.
func (i Image) Save(w io.Writer, name string) error {
	manifest := descriptor(ocispec.MediaTypeImageManifest, i.Manifest)
	manifest.Annotations = map[string]string{"io.containerd.image.name": name}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{manifest}})
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	put := func(name string, data []byte) {
		if err == nil {
			err = t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))})
		}
		if err == nil {
			_, err = t.Write(data)
		}
	}
	put(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	put("index.json", index)
	for _, blob := range slices.Concat(i.Layers, [][]byte{i.Config, i.Manifest}) {
		put("blobs/sha256/"+digest.FromBytes(blob).Encoded(), blob)
	}
	return errors.Join(err, t.Close())
}

// Push sends an image, each part of it in two pieces, and gives it a tag.
func (r Repository) Push(ctx context.Context, img Image, tag string) error {
	for _, blob := range append(slices.Clone(img.Layers), img.Config) {
		if err := r.upload(ctx, blob); err != nil {
			return err
		}
	}
	return r.PutManifest(ctx, tag, ocispec.MediaTypeImageManifest, img.Manifest)
}

// PutManifest sends a manifest or an index.
func (r Repository) PutManifest(ctx context.Context, tag, mediaType string, data []byte) error {
	_, _, err := r.do(ctx, http.MethodPut, r.url("manifests/"+tag), mediaType, data)
	return err
}

// upload begins an upload, sends two pieces where it is told to, and ends it.
func (r Repository) upload(ctx context.Context, data []byte) error {
	_, header, err := r.do(ctx, http.MethodPost, r.url("blobs/uploads/"), "", nil)
	if err != nil {
		return err
	}
	next, err := r.next(header)
	if err != nil {
		return err
	}
	half := len(data) / 2
	if _, header, err = r.do(ctx, http.MethodPatch, next, "application/octet-stream", data[:half]); err != nil {
		return err
	}
	if next, err = r.next(header); err != nil {
		return err
	}
	query := "?"
	if strings.Contains(next, "?") {
		query = "&"
	}
	_, _, err = r.do(ctx, http.MethodPut, next+query+"digest="+url.QueryEscape(digest.FromBytes(data).String()), "application/octet-stream", data[half:])
	return err
}

// Digest is that of the image of a tag, all of whose content it has fetched and
// verified.
func (r Repository) Digest(ctx context.Context, tag string) (string, error) {
	data, _, err := r.do(ctx, http.MethodGet, r.url("manifests/"+tag), "", nil)
	if err != nil {
		return "", err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(data, &manifest); err != nil {
		return "", err
	}
	for _, d := range append(manifest.Layers, manifest.Config) {
		blob, _, err := r.do(ctx, http.MethodGet, r.url("blobs/"+d.Digest.String()), "", nil)
		if err != nil {
			return "", err
		}
		if got := digest.FromBytes(blob); got != d.Digest {
			return "", fmt.Errorf("blob %s has the digest %s", d.Digest, got)
		}
	}
	return digest.FromBytes(data).String(), nil
}

// Delete removes a manifest by its digest.
func (r Repository) Delete(ctx context.Context, digest string) error {
	_, _, err := r.do(ctx, http.MethodDelete, r.url("manifests/"+digest), "", nil)
	return err
}

// Tags are those of the repository, as the registry lists them.
func (r Repository) Tags(ctx context.Context) (string, error) {
	data, _, err := r.do(ctx, http.MethodGet, r.url("tags/list"), "", nil)
	return string(data), err
}

func (r Repository) url(rest string) string {
	return "http://" + r.Host + "/v2/" + r.Name + "/" + rest
}

// next is where an upload goes on, which may be told without a host.
func (r Repository) next(h http.Header) (string, error) {
	base, err := url.Parse("http://" + r.Host)
	if err != nil {
		return "", err
	}
	to, err := base.Parse(h.Get("Location"))
	if err != nil {
		return "", err
	}
	return to.String(), nil
}

func (r Repository) do(ctx context.Context, method, to, contentType string, body []byte) ([]byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, */*")
	client := r.Client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", method, to, resp.Status, bytes.TrimSpace(data))
	}
	return data, resp.Header, err
}
