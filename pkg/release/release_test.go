package release

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// made is a release in a folder.
type made struct {
	dir string
	key []byte
}

func makeRelease(t *testing.T) made {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	m := made{dir: t.TempDir(), key: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	sums := ""
	for name, text := range map[string]string{"knarr-amd64": "the program", "knarr-crictl-amd64": "the tool"} {
		packed := z.EncodeAll([]byte(text), nil)
		m.write(t, name+".zst", packed)
		sums += fmt.Sprintf("%x  %s\n%x  %s.zst\n", sha256.Sum256([]byte(text)), name, sha256.Sum256(packed), name)
	}
	m.write(t, sumsFile, []byte(sums))
	hash := sha256.Sum256([]byte(sums))
	signature, err := ecdsa.SignASN1(rand.Reader, private, hash[:])
	if err != nil {
		t.Fatal(err)
	}
	m.write(t, signatureFile, signature)
	return m
}

func (m made) write(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (m made) damage(t *testing.T, name string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(m.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 1
	m.write(t, name, content)
}

func TestReleaseIsFetchedFromFoldersFilesAndURLs(t *testing.T) {
	m := makeRelease(t)
	server := httptest.NewServer(http.FileServer(http.Dir(m.dir)))
	defer server.Close()
	for _, from := range []string{m.dir, filepath.Join(m.dir, "knarr-amd64.zst"), server.URL + "/", server.URL + "/knarr-amd64.zst"} {
		dir := t.TempDir()
		if err := (Source{From: from, Key: m.key, Arch: "amd64"}).Fetch(t.Context(), dir); err != nil {
			t.Errorf("%s: %v", from, err)
			continue
		}
		for name, want := range map[string]string{"knarr": "the program", "knarr-crictl": "the tool"} {
			got, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil || string(got) != want {
				t.Errorf("%s: %s is %q, %v", from, name, got, err)
			}
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
			t.Errorf("%s left %v, %v", from, entries, err)
		}
	}
}

func TestWhatIsNotAsReleasedIsRefused(t *testing.T) {
	for name, want := range map[string]string{
		"knarr-amd64.zst": "not what was released", sumsFile: "not signed", signatureFile: "not signed",
	} {
		m := makeRelease(t)
		m.damage(t, name)
		dir := t.TempDir()
		err := Source{From: m.dir, Key: m.key, Arch: "amd64"}.Fetch(t.Context(), dir)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s damaged: %v", name, err)
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 0 {
			t.Errorf("%s damaged: %v is there", name, entries)
		}
	}
	m := makeRelease(t)
	other := makeRelease(t)
	for what, s := range map[string]Source{
		"not signed":     {From: m.dir, Key: other.key, Arch: "amd64"},
		"no PEM":         {From: m.dir, Arch: "amd64"},
		"has no knarr-x": {From: m.dir, Key: m.key, Arch: "x"},
		"to verify":      {From: filepath.Join(t.TempDir(), "knarr"), Key: m.key, Arch: "amd64"},
	} {
		if err := s.Fetch(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAnExecutableOfOnesOwnNeedsNoChecksumsWhenToldSo(t *testing.T) {
	own := filepath.Join(t.TempDir(), "knarr")
	if err := os.WriteFile(own, []byte("mine"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := (Source{From: own, SkipSignature: true, Arch: "amd64"}).Fetch(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "knarr")); err != nil || string(got) != "mine" {
		t.Errorf("%q, %v", got, err)
	}
}
