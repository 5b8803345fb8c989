package throwaway

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/knarr-dev/knarr/pkg/throwaway/imagecache"
	"github.com/knarr-dev/knarr/tests/harness/imageclient"
)

// dockerForTest has one image, docker.io/library/app:1.
type dockerForTest struct {
	socket  string
	id      string
	archive []byte
	then    string // its id once it was exported, if not empty
	exports int
}

func startDocker(t *testing.T) *dockerForTest {
	t.Helper()
	d := &dockerForTest{socket: filepath.Join(t.TempDir(), "docker.sock")}
	l, err := net.Listen("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/images/docker.io/library/app:1/json":
			io.WriteString(w, `{"Id": "`+d.id+`", "RepoTags": ["app:1"]}`)
		case "/images/docker.io/library/app:1/get":
			d.exports++
			w.Write(d.archive)
			if d.then != "" {
				d.id = d.then
			}
		default:
			http.NotFound(w, r)
		}
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return d
}

// archiveForTest has an image of one layer, that differs by its text.
func archiveForTest(t *testing.T, text string) []byte {
	t.Helper()
	img, err := imageclient.New(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, Config: ocispec.ImageConfig{Cmd: []string{text}},
	}, make([]byte, 1024))
	if err != nil {
		t.Fatal(err)
	}
	var to bytes.Buffer
	if err := img.Save(&to, "docker.io/library/app:1"); err != nil {
		t.Fatal(err)
	}
	return to.Bytes()
}

// used returns the digest of the image that a source gives.
func used(t *testing.T, dir string, src imagecache.Source) string {
	t.Helper()
	cache, err := imagecache.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	got := ""
	if err := cache.Use(t.Context(), src, func(index ocispec.Index) error {
		got = index.Manifests[0].Digest.String()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestDockerExportsAnImageOnceUntilItChanges(t *testing.T) {
	d, dir := startDocker(t), t.TempDir()
	src := engines{docker(filepath.Join(dir, "none")), docker(d.socket)}.source("docker.io/library/app:1")
	d.id, d.archive = "sha256:1", archiveForTest(t, "one")
	one := used(t, dir, src)
	if again := used(t, dir, src); again != one || d.exports != 1 {
		t.Errorf("%d exports, of %s and %s", d.exports, one, again)
	}
	// The name gets another image while the second one is exported.
	d.id, d.archive, d.then = "sha256:2", archiveForTest(t, "two"), "sha256:3"
	two := used(t, dir, src)
	d.archive, d.then = archiveForTest(t, "three"), ""
	three := used(t, dir, src)
	if one == two || two == three || d.exports != 3 {
		t.Errorf("%d exports, of %s, %s and %s", d.exports, one, two, three)
	}
	if again := used(t, dir, src); again != three || d.exports != 3 {
		t.Errorf("%d exports, at last of %s", d.exports, again)
	}
	if _, err := src.Read(t.Context(), io.Discard); err != nil {
		t.Error(err)
	}
	for want, all := range map[string]engines{
		"404":             {docker(filepath.Join(dir, "none")), docker(d.socket)},
		"give an archive": {docker(filepath.Join(dir, "none")), otherContainerd(filepath.Join(dir, "none"))},
	} {
		if _, err := all.source("no:1").Read(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestAnArchiveIsReadOnceUntilItChanges(t *testing.T) {
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "app.tar")
	write := func(text string) {
		if err := os.WriteFile(path, archiveForTest(t, text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	img, err := ParseImage(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	src, reads := img.source, 0
	src.Read = func(ctx context.Context, to io.Writer) (string, error) {
		reads++
		return img.source.Read(ctx, to)
	}
	// A change right after one might not show in the file's times.
	if version, err := img.source.Read(t.Context(), io.Discard); err != nil || version != "" {
		t.Errorf("version %q, %v", version, err)
	}
	time.Sleep(2 * clockTick)
	one := used(t, dir, src)
	if again := used(t, dir, src); again != one || reads != 1 {
		t.Errorf("%d reads, of %s and %s", reads, one, again)
	}
	write("two")
	time.Sleep(2 * clockTick)
	two := used(t, dir, src)
	if again := used(t, dir, src); again != two || two == one || reads != 2 {
		t.Errorf("%d reads, of %s, %s and %s", reads, one, two, again)
	}
}

func TestWithoutAFolderForTheCacheAClusterHasItsOwn(t *testing.T) {
	c := &Cluster{Record: &Record{Name: "dev"}, folder: folder(t.TempDir())}
	if err := os.Mkdir(c.folder.dir("dev"), 0o700); err != nil {
		t.Fatal(err)
	}
	for where, own := range map[string]int{"/proc/none": 1, t.TempDir(): 0} {
		t.Setenv(CacheVariable, where)
		cache, err := c.imageCache(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if made, err := os.ReadDir(c.folder.dir("dev")); err != nil || len(made) != own {
			t.Errorf("with %s, the cluster's folder has %v, %v", where, made, err)
		}
		if err := cache.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(c.folder.dir("dev")); err != nil || len(left) > 0 {
			t.Errorf("%v is left, %v", left, err)
		}
	}
}
