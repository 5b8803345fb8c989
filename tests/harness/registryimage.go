package harness

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/knarr-dev/knarr/tests/harness/imageclient"
)

// Push puts an image into the registry: the test image, with a file /edition
// that has its name in it and what edit changes of its configuration. A name
// without a tag is given the tag latest. It returns the image's digest.
func (r *Registry) Push(t testing.TB, name string, edit ...func(*ocispec.Image)) digest.Digest {
	t.Helper()
	return r.push(t, name, 0, edit...)
}

// PushLarge is Push of an image with a file /filler of so many bytes, which can't
// be compressed.
func (r *Registry) PushLarge(t testing.TB, name string, filler int) digest.Digest {
	t.Helper()
	return r.push(t, name, filler)
}

func (r *Registry) push(t testing.TB, name string, filler int, edit ...func(*ocispec.Image)) digest.Digest {
	t.Helper()
	base, layer, err := readTestImage()
	if err != nil {
		t.Fatal(err)
	}
	repository, tag, ok := strings.Cut(name, ":")
	if !ok {
		tag = "latest"
	}
	edition := editionLayer(t, name, filler)
	base.RootFS.DiffIDs = append(base.RootFS.DiffIDs, digest.FromBytes(edition))
	for _, e := range edit {
		e(&base)
	}
	blob := func(mediaType string, data []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		r.put(t, http.MethodPost, fmt.Sprintf("/v2/%s/blobs/uploads/?digest=%s", repository, d.Digest), "application/octet-stream", data)
		return d
	}
	manifest := asJSON(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    blob(ocispec.MediaTypeImageConfig, asJSON(t, base)),
		Layers:    []ocispec.Descriptor{blob(ocispec.MediaTypeImageLayer, layer), blob(ocispec.MediaTypeImageLayer, edition)},
	})
	r.put(t, http.MethodPut, "/v2/"+repository+"/manifests/"+tag, ocispec.MediaTypeImageManifest, manifest)
	return digest.FromBytes(manifest)
}

// Build makes an image as a builder would: the test image, with a file /edition
// that has a text in it.
func Build(t testing.TB, edition string) imageclient.Image {
	t.Helper()
	config, layer, err := readTestImage()
	if err != nil {
		t.Fatal(err)
	}
	img, err := imageclient.New(config, layer, editionLayer(t, edition, 0))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Tag gives an image of a repository another tag.
func (r *Registry) Tag(t testing.TB, repository string, image digest.Digest, tag string) {
	t.Helper()
	answer := httptest.NewRecorder()
	r.store.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/v2/"+repository+"/manifests/"+image.String(), nil))
	r.put(t, http.MethodPut, "/v2/"+repository+"/manifests/"+tag, answer.Header().Get("Content-Type"), answer.Body.Bytes())
}

// editionLayer differs for each image, so that each has something to pull.
func editionLayer(t testing.TB, text string, filler int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "edition", Mode: 0o644, Size: int64(len(text) + 1)})
	if err == nil {
		_, err = io.WriteString(w, text+"\n")
	}
	if err == nil && filler > 0 {
		if err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "filler", Mode: 0o644, Size: int64(filler)}); err == nil {
			_, err = io.CopyN(w, rand.Reader, int64(filler))
		}
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// readTestImage takes the test image's configuration and layer out of its
// archive.
func readTestImage() (image ocispec.Image, layer []byte, err error) {
	p, err := findParts()
	if err != nil {
		return image, nil, err
	}
	f, err := os.Open(p.testImage)
	if err != nil {
		return image, nil, err
	}
	defer f.Close()
	files := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return image, nil, fmt.Errorf("read %s: %w", p.testImage, err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			return image, nil, fmt.Errorf("read %s: %w", p.testImage, err)
		}
	}
	var index ocispec.Index
	var manifest ocispec.Manifest
	blob := func(d ocispec.Descriptor) []byte { return files["blobs/sha256/"+d.Digest.Encoded()] }
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		return image, nil, fmt.Errorf("read %s: %w", p.testImage, err)
	}
	if err := json.Unmarshal(blob(index.Manifests[0]), &manifest); err != nil {
		return image, nil, fmt.Errorf("read %s: %w", p.testImage, err)
	}
	if err := json.Unmarshal(blob(manifest.Config), &image); err != nil {
		return image, nil, fmt.Errorf("read %s: %w", p.testImage, err)
	}
	return image, blob(manifest.Layers[0]), nil
}

func asJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// certify makes a certificate with a key of its own, signed with the parent's
// key, or by itself where that is nil.
func certify(template, parent *x509.Certificate, with *ecdsa.PrivateKey) (*x509.Certificate, []byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	if with == nil {
		with = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), with)
	if err != nil {
		return nil, nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, der, key, err
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
