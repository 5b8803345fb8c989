package registries

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/google/go-containerregistry/pkg/registry"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPushesGoToTheRegistryItselfWithTheFilesCredentials(t *testing.T) {
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "anna" || password != "right" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		store.ServeHTTP(w, r)
	}))
	defer srv.Close()
	mirror := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the mirror was asked") }))
	defer mirror.Close()
	host := strings.TrimPrefix(srv.URL, "https://")
	push := func(text, password string) error {
		path := filepath.Join(t.TempDir(), "registries.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		resolver, err := Pusher(path, func(string) (string, string, error) {
			if password == "" {
				return "", "", nil
			}
			return "anna", password, nil
		})
		if err != nil {
			return err
		}
		p, err := resolver.Pusher(t.Context(), host+"/app:1")
		if err != nil {
			return err
		}
		data := []byte("a layer of " + t.Name())
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(data), Size: int64(len(data))}
		w, err := p.Push(t.Context(), desc)
		if err != nil {
			return err
		}
		defer w.Close()
		return content.Copy(t.Context(), w, bytes.NewReader(data), desc.Size, desc.Digest)
	}
	tls := "configs:\n  " + host + ":\n    tls: {insecure_skip_verify: true}\n"
	file := "mirrors:\n  " + host + ":\n    endpoint: [\"" + mirror.URL + "\"]\n" + tls
	if err := push(file, ""); err == nil {
		t.Error("a push without credentials is taken")
	}
	if err := push(file+"    auth: {username: anna, password: right}\n", ""); err != nil {
		t.Errorf("with the file's credentials: %v", err)
	}
	if err := push(file+"    auth: {username: anna, password: wrong}\n", "right"); err != nil && !strings.Contains(err.Error(), "exists") {
		t.Errorf("with the caller's credentials: %v", err)
	}
	if err := push("mirors: {}\n", ""); err == nil || !strings.Contains(err.Error(), "did you mean mirrors?") {
		t.Errorf("a mistake in the file: %v", err)
	}
}
