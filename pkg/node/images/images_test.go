package images

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"

	ctrimages "github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// runFolder runs a Folder on dir until the test ends or stop is called, and
// returns once it is ready.
func runFolder(t *testing.T, c *containerdForTest, dir string) (log *journal, stop func()) {
	t.Helper()
	log = newJournal()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- NewFolder(dir, c.address, snapshotter, log.logger()).Run(ctx, ready) }()
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		t.Fatalf("ended before it was ready: %v", err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	}
	t.Cleanup(stop)
	return log, stop
}

func TestArchivesOfEveryKindAreImportedAtStart(t *testing.T) {
	c, dir := startContainerd(t), t.TempDir()
	arch := goruntime.GOARCH
	writeFile(t, dir, "docker.tar", dockerArchive(t, "one", "busybox:1", "quay.example/team/app:v2"))
	writeFile(t, dir, "docker.tgz", gzipped(t, dockerArchive(t, "two", "two")))
	writeFile(t, dir, "oci.tar.gz", gzipped(t, ociArchive(t, arch, "three", map[string]string{ctrimages.AnnotationImageName: "docker.io/library/three:3", ocispec.AnnotationRefName: "3"})))
	writeFile(t, dir, "oci.tar.zst", zstded(t, ociArchive(t, arch, "four", map[string]string{ocispec.AnnotationRefName: "team/four:4"})))
	writeFile(t, dir, ".hidden.tar", dockerArchive(t, "no", "hidden:1"))
	writeFile(t, dir, "copying.tar.part", dockerArchive(t, "no", "part:1"))
	if err := os.Mkdir(filepath.Join(dir, "folder.tar"), 0o700); err != nil {
		t.Fatal(err)
	}
	log, _ := runFolder(t, c, dir)

	for _, name := range []string{"docker.io/library/busybox:1", "quay.example/team/app:v2", "docker.io/library/two:latest", "docker.io/library/three:3", "docker.io/team/four:4"} {
		known := c.status(t, name)
		if known == nil || !known.Pinned {
			t.Errorf("%s: CRI knows %v, want it pinned", name, known)
			continue
		}
		if len(known.RepoDigests) == 0 || c.status(t, known.RepoDigests[0]) == nil {
			t.Errorf("%s can't be named by its digest: %v", name, known.RepoDigests)
		}
		img, err := c.client.GetImage(c.ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		if ready, err := img.IsUnpacked(c.ctx, snapshotter); err != nil || !ready {
			t.Errorf("%s is not unpacked: %v", name, err)
		}
	}
	for _, name := range []string{"hidden:1", "part:1"} {
		if c.status(t, name) != nil {
			t.Errorf("%s was imported", name)
		}
	}
	if s := log.String(); strings.Contains(s, "WARN") || strings.Contains(s, "ERROR") {
		t.Errorf("complaints:\n%s", s)
	}
}

func TestArchiveIsImportedWhenItAppearsAndFreedWhenItGoes(t *testing.T) {
	c, dir := startContainerd(t), t.TempDir()
	log, _ := runFolder(t, c, dir)

	writeFile(t, dir, "copied.tar", dockerArchive(t, "one", "copied:1"))
	log.await(t, "images imported", 1)
	outside := t.TempDir()
	writeFile(t, outside, "moved.tar", dockerArchive(t, "two", "moved:1", "shared:1"))
	if err := os.Rename(filepath.Join(outside, "moved.tar"), filepath.Join(dir, "moved.tar")); err != nil {
		t.Fatal(err)
	}
	log.await(t, "images imported", 2)
	writeFile(t, outside, "linked.tar", dockerArchive(t, "two", "linked:1", "shared:1"))
	if err := os.Symlink(filepath.Join(outside, "linked.tar"), filepath.Join(dir, "linked.tar")); err != nil {
		t.Fatal(err)
	}
	log.await(t, "images imported", 3)
	for _, name := range []string{"copied:1", "moved:1", "linked:1", "shared:1"} {
		if known := c.status(t, name); known == nil || !known.Pinned {
			t.Errorf("%s: CRI knows %v, want it pinned", name, known)
		}
	}

	for _, gone := range []string{"copied.tar", "moved.tar"} {
		if err := os.Remove(filepath.Join(dir, gone)); err != nil {
			t.Fatal(err)
		}
	}
	log.await(t, "image archive removed", 2)
	for name, want := range map[string]bool{"docker.io/library/copied:1": false, "docker.io/library/moved:1": false, "docker.io/library/linked:1": true, "docker.io/library/shared:1": true} {
		img, err := c.client.ImageService().Get(c.ctx, name)
		if err != nil {
			t.Errorf("%s should stay: %v", name, err)
		}
		if pinned := img.Labels[pinnedLabel] == pinnedValue; pinned != want {
			t.Errorf("%s pinned: %v, want %v", name, pinned, want)
		}
	}
}

func TestUnchangedArchiveIsNotReadAgainUnlessItsImageIsGone(t *testing.T) {
	c, dir := startContainerd(t), t.TempDir()
	writeFile(t, dir, "a.tar", dockerArchive(t, "one", "a:1"))
	writeFile(t, dir, "b.tar", dockerArchive(t, "two", "b:1"))
	_, stop := runFolder(t, c, dir)
	stop()

	log, stop := runFolder(t, c, dir)
	stop()
	if s := log.String(); s != "" {
		t.Errorf("second start was not silent:\n%s", s)
	}

	if err := c.client.ImageService().Delete(c.ctx, "docker.io/library/a:1"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "b.tar")); err != nil {
		t.Fatal(err)
	}
	log, stop = runFolder(t, c, dir)
	stop()
	if s := log.String(); strings.Count(s, "images imported") != 1 || !strings.Contains(s, "a:1") {
		t.Errorf("want one import, of a:1:\n%s", s)
	}
	b, err := c.client.ImageService().Get(c.ctx, "docker.io/library/b:1")
	if err != nil || b.Labels[pinnedLabel] != "" {
		t.Errorf("b:1 should be there without a pin: %v %v", b.Labels, err)
	}

	// Without the state file nothing is remembered, but nothing goes wrong.
	if err := os.WriteFile(filepath.Join(dir, stateFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	log, stop = runFolder(t, c, dir)
	stop()
	if s := log.String(); strings.Count(s, "images imported") != 1 {
		t.Errorf("want one import:\n%s", s)
	}
}

func TestDamagedArchiveIsToldOnceAndTriedAgainWhenReplaced(t *testing.T) {
	c, dir := startContainerd(t), t.TempDir()
	whole := dockerArchive(t, strings.Repeat("something to cut off ", 1000), "app:1")
	for name, half := range map[string][]byte{
		"cut.tar":    whole[:len(whole)/2],
		"cut.tar.gz": gzipped(t, whole)[:40],
		"empty.tar":  nil,
		"text.tar":   []byte("<html>404</html>"),
		"flipped.tar.zst": zstded(t, bytes.Replace(
			ociArchive(t, goruntime.GOARCH, "good", map[string]string{ocispec.AnnotationRefName: "flipped:1"}), []byte("good"), []byte("evil"), 1)),
	} {
		writeFile(t, dir, name, half)
	}
	log, _ := runFolder(t, c, dir)
	text := log.String()
	for _, name := range []string{"cut.tar ", "cut.tar.gz ", "empty.tar ", "text.tar ", "flipped.tar.zst "} {
		if strings.Count(text, filepath.Join(dir, name)) != 1 {
			t.Errorf("want one line about %s:\n%s", name, text)
		}
	}
	if list, err := c.client.ImageService().List(c.ctx); err != nil || len(list) != 0 {
		t.Errorf("images of damaged archives: %v %v", list, err)
	}

	writeFile(t, dir, "cut.tar", whole)
	log.await(t, "images imported", 1)
	if c.status(t, "app:1") == nil {
		t.Errorf("app:1 is not there")
	}
}

func TestArchiveBeingWrittenIsLeftUntilItsWriterCloses(t *testing.T) {
	c, dir := startContainerd(t), t.TempDir()
	whole := dockerArchive(t, "slow", "slow:1")
	file, err := os.Create(filepath.Join(dir, "slow.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Write(whole[:700]); err != nil {
		t.Fatal(err)
	}
	log, _ := runFolder(t, c, dir)
	if s := log.String(); !strings.Contains(s, "still being written") || strings.Contains(s, "ERROR") {
		t.Errorf("want one patient line:\n%s", s)
	}
	if _, err := file.Write(whole[700:]); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	log.await(t, "images imported", 1)
}

func TestArchiveForAnotherMachineOrWithoutNameIsRefusedWithTheWayOut(t *testing.T) {
	c := startContainerd(t)
	foreign := ociArchive(t, "riscv64", "far", map[string]string{ocispec.AnnotationRefName: "far:1"})
	if _, err := Import(c.ctx, c.client, snapshotter, bytes.NewReader(foreign), nil); err == nil || !strings.Contains(err.Error(), "--platform linux/") {
		t.Errorf("foreign image: %v", err)
	}
	for _, nameless := range [][]byte{dockerArchive(t, "nobody"), ociArchive(t, goruntime.GOARCH, "nobody", map[string]string{ocispec.AnnotationRefName: "latest"})} {
		if _, err := Import(c.ctx, c.client, snapshotter, bytes.NewReader(nameless), nil); err == nil || !strings.Contains(err.Error(), "by name and tag") {
			t.Errorf("nameless image: %v", err)
		}
	}
}

func TestReplacedArchiveMovesTheTagAndKeepsTheOldImageById(t *testing.T) {
	c, dir := startContainerd(t), t.TempDir()
	writeFile(t, dir, "app.tar", dockerArchive(t, "old", "app:1"))
	log, _ := runFolder(t, c, dir)
	old := c.status(t, "app:1")
	writeFile(t, dir, "app.tar", dockerArchive(t, "new", "app:1"))
	log.await(t, "images imported", 2)
	img, err := c.client.GetImage(c.ctx, "docker.io/library/app:1")
	if err != nil {
		t.Fatal(err)
	}
	desc, err := img.Config(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if desc.Digest.String() == old.Id {
		t.Errorf("app:1 is still the old image")
	}
	if c.status(t, old.Id) == nil {
		t.Errorf("the old image is gone though containers may use it")
	}
}

func TestEmbeddedImageIsReadOnlyWhenItIsMissing(t *testing.T) {
	c := startContainerd(t)
	opened := 0
	pause := func(id string) Embedded {
		return Embedded{Image: "registry.k8s.io/pause:3.10", ID: id, Open: func() (io.ReadCloser, error) {
			opened++
			return io.NopCloser(bytes.NewReader(dockerArchive(t, id, "registry.k8s.io/pause:3.10"))), nil
		}}
	}
	for i, id := range []string{"a", "a", "b", "b"} {
		ctx, cancel := context.WithCancel(context.Background())
		ready, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- NewBuiltin(c.address, snapshotter, pause(id)).Run(ctx, ready) }()
		select {
		case <-ready:
		case err := <-ended:
			t.Fatal(err)
		}
		if want := i/2 + 1; opened != want {
			t.Errorf("start %d: archive opened %d times so far, want %d", i, opened, want)
		}
		cancel()
		<-ended
	}
	if known := c.status(t, "registry.k8s.io/pause:3.10"); known == nil || !known.Pinned {
		t.Errorf("CRI knows %v, want it pinned", known)
	}
}

func TestFirstLookEndsWhateverItFinds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // no folder
		t.Fatal(err)
	}
	f := NewFolder(dir, "", snapshotter, newJournal().logger())
	ready, ended := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { ended <- f.FirstLook().Run(ctx, ready) }()
	if err := f.Run(ctx, make(chan struct{})); err == nil {
		t.Error("a file is taken for a folder")
	}
	select {
	case <-ready:
	case err := <-ended:
		t.Errorf("it ended with %v", err)
	}
}
