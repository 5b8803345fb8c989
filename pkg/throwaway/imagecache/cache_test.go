package imagecache

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/logs"
	"github.com/knarr-dev/knarr/tests/harness/imageclient"
)

func TestMain(m *testing.M) {
	logs.Setup(io.Discard, logs.Options{})
	if dir := os.Getenv(victim); dir != "" {
		loadUntilKilled(dir)
	}
	os.Exit(m.Run())
}

// layer is a tar that differs by its text and takes some room.
func layer(text string, size int) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	data := bytes.Repeat([]byte(text+"\n"), size/(len(text)+1)+1)
	if err := w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(data))}); err != nil {
		panic(err)
	}
	w.Write(data)
	w.Close()
	return b.Bytes()
}

// ociArchive has an image of those layers.
func ociArchive(name string, layers ...[]byte) []byte {
	img, err := imageclient.New(ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}}, layers...)
	var b bytes.Buffer
	if err = errors.Join(err, img.Save(&b, name)); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// dockerArchive has the same as Docker wrote it of old: no name is a digest.
func dockerArchive(name, arch string, layers ...[]byte) []byte {
	img, err := imageclient.New(ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: arch}}, layers...)
	if err != nil {
		panic(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(name string, data []byte) string {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			panic(err)
		}
		w.Write(data)
		return name
	}
	var files []string
	for i, l := range layers {
		files = append(files, put(fmt.Sprintf("%d/layer.tar", i), l))
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": put("config.json", img.Config), "RepoTags": []string{name}, "Layers": files}})
	if err != nil {
		panic(err)
	}
	put("manifest.json", manifest)
	w.Close()
	return b.Bytes()
}

// A source for a test counts how often it is read.
type sourceForTest struct {
	Source
	reads int
}

func source(name, version string, archive []byte) *sourceForTest {
	s := &sourceForTest{}
	s.Source = Source{
		Name:    name,
		Version: func(context.Context) string { return version },
		Read: func(_ context.Context, to io.Writer) (string, error) {
			s.reads++
			_, err := to.Write(archive)
			return version, err
		},
	}
	return s
}

// use loads a source into something that verifies each blob, as a node does.
func use(ctx context.Context, c *Cache, src Source) error {
	return c.Use(ctx, src, func(index ocispec.Index) (err error) {
		check := func(desc ocispec.Descriptor) []byte {
			blob, rerr := content.ReadBlob(ctx, c, desc)
			if rerr == nil && digest.FromBytes(blob) != desc.Digest {
				rerr = fmt.Errorf("%s is damaged", desc.Digest)
			}
			err = errors.Join(err, rerr)
			return blob
		}
		if len(index.Manifests) == 0 {
			return errors.New("there is no image")
		}
		var manifest ocispec.Manifest
		if json.Unmarshal(check(index.Manifests[0]), &manifest) != nil || err != nil {
			return err
		}
		check(manifest.Config)
		for _, l := range manifest.Layers {
			check(l)
		}
		return err
	})
}

func open(t *testing.T, dir string) *Cache {
	t.Helper()
	c, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// once opens the cache, uses a source and closes the cache.
func once(t *testing.T, dir string, src Source) error {
	t.Helper()
	c := open(t, dir)
	return errors.Join(use(t.Context(), c, src), c.Close())
}

func blobs(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "blobs", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestDamagedBlobsAreReadAnew(t *testing.T) {
	rot := func(path string) error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		data[len(data)/2] ^= 1
		return errors.Join(os.Remove(path), os.WriteFile(path, data, 0o600))
	}
	for damage, do := range map[string]func(path string) error{
		"flipped": rot, "cut": func(path string) error { return os.Truncate(path, 10) },
		"empty": func(path string) error { return os.Truncate(path, 0) }, "gone": os.Remove,
	} {
		for kind, archive := range map[string][]byte{
			"oci":    ociArchive("docker.io/library/app:1", layer("a", 5000), layer("b", 5000)),
			"docker": dockerArchive("docker.io/library/app:1", runtime.GOARCH, layer("a", 5000), layer("b", 5000)),
		} {
			t.Run(damage+" "+kind, func(t *testing.T) {
				dir := t.TempDir()
				src := source("app", "1", archive)
				stdin := source("", "", archive)
				if err := once(t, dir, src.Source); err != nil {
					t.Fatal(err)
				}
				all := blobs(t, dir)
				for i, blob := range all {
					if err := do(blob); err != nil {
						t.Fatal(err)
					}
					from := src
					if i%2 == 1 { // what can be read only once
						from = stdin
					}
					if err := once(t, dir, from.Source); err != nil {
						t.Errorf("%s of %d blobs: %v", filepath.Base(blob), len(all), err)
					}
				}
				reads := src.reads
				if err := once(t, dir, src.Source); err != nil || src.reads != reads {
					t.Errorf("read %d times instead of %d: %v", src.reads, reads, err)
				}
				if now := blobs(t, dir); strings.Join(now, " ") != strings.Join(all, " ") {
					t.Errorf("there were %s, and are %s", all, now)
				}
			})
		}
	}
}

func TestArchivesThatCannotBeLoadedLeaveNothing(t *testing.T) {
	good := ociArchive("docker.io/library/app:1", layer("good", 5000))
	for what, archive := range map[string][]byte{
		"cut":     good[:len(good)/2],
		"empty":   nil,
		"text":    []byte("<html>404</html>"),
		"flipped": bytes.Replace(good, []byte("good\ngood"), []byte("good\nevil"), 1),
		"foreign": dockerArchive("docker.io/library/app:1", "s390x", layer("a", 5000)),
		"unnamed": ociArchive("", layer("a", 5000)),
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			if err := once(t, dir, source("app", "1", archive).Source); err == nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("told was: %v", err)
			}
			if err := once(t, dir, Source{Name: "no", Read: func(context.Context, io.Writer) (string, error) { return "", errNoImage }}); !errors.Is(err, errNoImage) {
				t.Errorf("told was: %v", err)
			}
			open(t, dir).Close()
			left, _ := filepath.Glob(filepath.Join(dir, "*", "*"))
			for _, path := range left {
				if files, err := os.ReadDir(path); err != nil || len(files) > 0 {
					t.Errorf("%s is left, with %v", path, files)
				}
			}
			// A good image in its place, and the flipped one after it.
			if err := once(t, dir, source("app", "2", good).Source); err != nil {
				t.Error(err)
			}
			if err := once(t, dir, source("app", "1", archive).Source); err == nil {
				t.Error("it is loaded after a good one")
			}
			if err := once(t, dir, source("app", "2", nil).Source); err != nil {
				t.Errorf("the good one is not there any more: %v", err)
			}
		})
	}
}

var errNoImage = errors.New("image app from Docker: 404")

func TestLayersThatAreThereAreNotWrittenAgain(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	base := layer("base", 1<<20)
	if err := use(t.Context(), c, source("", "", ociArchive("docker.io/library/app:1", base)).Source); err != nil {
		t.Fatal(err)
	}
	largest := func() (found os.FileInfo) {
		for _, path := range blobs(t, dir) {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if found == nil || info.Size() > found.Size() {
				found = info
			}
		}
		return found
	}
	before, files := largest(), len(blobs(t, dir))
	if err := use(t.Context(), c, source("", "", ociArchive("docker.io/library/other:1", base, layer("top", 1000))).Source); err != nil {
		t.Fatal(err)
	}
	if after := largest(); !os.SameFile(before, after) || len(blobs(t, dir)) <= files {
		t.Errorf("%s is another file now, or nothing was written", after.Name())
	}
}

func TestImagesThatNobodyLoadsGo(t *testing.T) {
	dir := t.TempDir()
	shared := layer("shared", 5000)
	old := source("old", "1", ociArchive("docker.io/library/old:1", shared, layer("old", 5000)))
	young := source("young", "1", ociArchive("docker.io/library/young:1", shared, layer("young", 5000)))
	for _, s := range []*sourceForTest{young, old} {
		if err := once(t, dir, s.Source); err != nil {
			t.Fatal(err)
		}
	}
	both := len(blobs(t, dir))
	// What somebody else has put there is left alone.
	if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", "note"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	both++
	age := func(s *sourceForTest, by time.Duration) {
		t.Helper()
		c := Cache{dir: dir}
		if err := os.Chtimes(c.file(s.Name), time.Time{}, time.Now().Add(-by)); err != nil {
			t.Fatal(err)
		}
	}
	age(old, unusedFor+time.Hour)
	age(young, unusedFor-time.Hour)
	if err := once(t, dir, young.Source); err != nil || young.reads != 1 {
		t.Errorf("read %d times, %v", young.reads, err)
	}
	// Its layer, configuration, manifest and index are gone, and the shared layer is not.
	if now := len(blobs(t, dir)); now != both-4 {
		t.Errorf("there were %d blobs, and are %d", both, now)
	}
	if err := once(t, dir, old.Source); err != nil || old.reads != 2 {
		t.Errorf("read %d times, %v", old.reads, err)
	}
	// An image that takes another's place leaves nothing either.
	young.Source = source("young", "2", ociArchive("docker.io/library/young:1", shared, layer("younger", 5000))).Source
	if err := once(t, dir, young.Source); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	if now := len(blobs(t, dir)); now != both {
		t.Errorf("there were %d blobs, and are %d", both, now)
	}
}

func TestWhoUsesTheCacheLosesNothing(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	src := source("app", "1", ociArchive("docker.io/library/app:1", layer("a", 5000)))
	err := c.Use(t.Context(), src.Source, func(ocispec.Index) error {
		// As after a month of loading, while the next one begins.
		if err := os.Chtimes(c.file("app"), time.Time{}, time.Now().Add(-2*unusedFor)); err != nil {
			return err
		}
		before := len(blobs(t, dir))
		open(t, dir)
		if now := len(blobs(t, dir)); now != before {
			return fmt.Errorf("there were %d blobs, and are %d", before, now)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestManyUseTheCacheAtOnce(t *testing.T) {
	dir := t.TempDir()
	shared := layer("shared", 1<<20)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for round := range 5 {
				c, err := Open(t.Context(), dir)
				if err != nil {
					t.Error(err)
					return
				}
				name := fmt.Sprint("docker.io/library/app:", (i+round)%3)
				archive := ociArchive(name, shared, layer(name, 1000))
				if i%2 == 0 {
					archive = dockerArchive(name, runtime.GOARCH, shared, layer(name, 1000))
				}
				if err := use(t.Context(), c, source(name, fmt.Sprint(i%2), archive).Source); err != nil {
					t.Error(err)
				}
				c.Close()
			}
		})
	}
	all.Wait()
}

// victim is set for a process of this test that is going to be killed.
const victim = "KNARR_TEST_CACHE"

func loadUntilKilled(dir string) {
	for i := 0; ; i++ {
		c, err := Open(context.Background(), dir)
		if err == nil {
			archive := dockerArchive("docker.io/library/app:1", runtime.GOARCH, layer("base", 3<<20), layer(fmt.Sprint(i%3), 1<<20))
			err = use(context.Background(), c, source("app", fmt.Sprint(i%3), archive).Source)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		c.Close()
	}
}

func TestWhoIsKilledLeavesNoWrongImage(t *testing.T) {
	dir := t.TempDir()
	for round := range 20 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), victim+"="+dir)
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+rand.IntN(150)) * time.Millisecond) // what is tested
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if said.Len() > 0 {
			t.Fatal(said.String())
		}
		c := open(t, dir)
		for _, path := range blobs(t, dir) {
			if d := digest.NewDigestFromEncoded(digest.SHA256, filepath.Base(path)); !c.whole(t.Context(), d) {
				t.Errorf("round %d: %s is damaged", round, d)
			}
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "ingest", "*")); len(left) > 0 {
			t.Errorf("round %d: %s is left", round, left)
		}
		for i := range 3 {
			version := fmt.Sprint(i)
			if index, _, ok := c.known(t.Context(), source("app", version, nil).Source); ok && !strings.Contains(string(must(content.ReadBlob(t.Context(), c, layerOf(t, c, index)))), version+"\n") {
				t.Errorf("round %d: another image has version %s", round, version)
			}
		}
		c.Close()
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// layerOf is the last layer of an image.
func layerOf(t *testing.T, c *Cache, index ocispec.Index) ocispec.Descriptor {
	t.Helper()
	var manifest ocispec.Manifest
	if err := json.Unmarshal(must(content.ReadBlob(t.Context(), c, index.Manifests[0])), &manifest); err != nil {
		t.Fatal(err)
	}
	return manifest.Layers[len(manifest.Layers)-1]
}

func TestFullAndReadOnlyDisksAreTold(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	// Only this thread sees the disk, and ends with the test.
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNS)
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err == nil {
		err = unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m")
	}
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	large := source("large", "1", ociArchive("docker.io/library/large:1", layer("large", 5<<20)))
	if err := once(t, dir, large.Source); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("told was: %v", err)
	}
	small := source("small", "1", ociArchive("docker.io/library/small:1", layer("small", 1<<20)))
	if err := once(t, dir, small.Source); err != nil {
		t.Error(err)
	}
	if err := once(t, dir, large.Source); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("told was: %v", err)
	}
	if err := once(t, dir, small.Source); err != nil || small.reads != 1 {
		t.Errorf("read %d times, %v", small.reads, err)
	}
	err = unix.Mount(dir, dir, "", unix.MS_BIND, "")
	if err == nil {
		err = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
		defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), dir); !errors.Is(err, unix.EROFS) {
		t.Errorf("of a disk that is read-only is told: %v", err)
	}
}

func TestACacheOfItsOwnGoes(t *testing.T) {
	dir := t.TempDir()
	c, err := OpenTemp(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := use(t.Context(), c, source("app", "1", ociArchive("docker.io/library/app:1", layer("a", 5000))).Source); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

func TestASourceThatWaitsIsLeftWhenItIsCancelled(t *testing.T) {
	c := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	stdin, typed := io.Pipe()
	defer typed.Close()
	err := use(ctx, c, Source{Read: func(_ context.Context, to io.Writer) (string, error) {
		cancel()
		_, err := io.Copy(to, stdin)
		return "", err
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("told was: %v", err)
	}
}
