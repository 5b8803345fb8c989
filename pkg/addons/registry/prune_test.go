package registry

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/knarr-dev/knarr/tests/harness/imageclient"
)

// age makes all files of a folder old.
func age(t *testing.T, dir string) {
	t.Helper()
	long := time.Now().Add(-2 * recent)
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, long, long)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ask has a handler of the status socket answer.
func ask[T any](t *testing.T, h http.HandlerFunc, query string) T {
	t.Helper()
	w := httptest.NewRecorder()
	h(w, httptest.NewRequest(http.MethodPost, "/?"+query, nil))
	var said T
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil {
		t.Fatal(err)
	}
	return said
}

func TestWhatNobodyNeedsIsPruned(t *testing.T) {
	dir := t.TempDir()
	addr, r, _ := start(t, Config{Dir: dir})
	prune := func(query string) Pruned { t.Helper(); return ask[Pruned](t, r.ServePrune, query) }
	repository, _ := imageclient.Parse(addr + "/team/app:1")
	deleted, before, now, part, other := image(t), image(t), image(t), image(t), image(t)
	push(t, addr+"/team/app:gone", deleted)
	push(t, addr+"/team/app:1", before)
	push(t, addr+"/team/app:1", now)
	push(t, addr+"/other:1", other)
	// An index of which the tags lead to it alone.
	push(t, addr+"/team/app:part", part)
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(part.Manifest), Size: int64(len(part.Manifest))},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := repository.PutManifest(t.Context(), "part", ocispec.MediaTypeImageIndex, index); err != nil {
		t.Fatal(err)
	}
	if err := repository.Delete(t.Context(), deleted.Digest()); err != nil {
		t.Fatal(err)
	}
	wholeSize := func(i imageclient.Image) (n int64) {
		for _, b := range slices.Concat(i.Layers, [][]byte{i.Config, i.Manifest}) {
			n += int64(len(b))
		}
		return n
	}

	c := ask[Contents](t, r.ServeContents, "")
	if len(c.Images) != 5 || c.Unreferenced != wholeSize(deleted) {
		t.Errorf("the registry has %+v", c)
	}
	if i := c.Images[0]; i.Repository != "other" || fmt.Sprint(i.Tags) != "[1]" || i.Size != wholeSize(other) {
		t.Errorf("the first image is %+v", i)
	}
	if gone := prune("untagged=true"); gone.Blobs != 0 || len(gone.Images) != 0 {
		t.Errorf("of what was just pushed went %+v", gone)
	}

	age(t, dir)
	dry := prune("dry-run=true")
	if gone := prune(""); gone.Size != wholeSize(deleted) || gone.Size != dry.Size || len(gone.Images) != 0 {
		t.Errorf("went %+v, told before %+v", gone, dry)
	}
	wantImage(t, addr+"/team/app:1", now)
	if got, err := repository.Digest(t.Context(), before.Digest()); err != nil || got != before.Digest() {
		t.Errorf("an image by its digest: %s, %v", got, err)
	}

	age(t, dir) // the question counts as need
	if gone := prune("untagged=true"); gone.Size != wholeSize(before) || len(gone.Images) != 1 || gone.Images[0].Digest != before.Digest() {
		t.Errorf("without a tag went %+v", gone)
	}
	wantImage(t, addr+"/team/app:1", now)
	wantImage(t, addr+"/other:1", other)
	if got, err := repository.Digest(t.Context(), part.Digest()); err != nil || got != part.Digest() {
		t.Errorf("an index' image: %s, %v", got, err)
	}
	if c := ask[Contents](t, r.ServeContents, ""); c.Unreferenced != 0 || c.Size < wholeSize(now)+wholeSize(other)+wholeSize(part) {
		t.Errorf("the registry has %+v", c)
	}
	push(t, addr+"/team/app:back", deleted)
	wantImage(t, addr+"/team/app:back", deleted)
}

// A push may find what no image needs any more, while it is being pruned.
func TestPushesAndPrunesGoOnBesideEachOther(t *testing.T) {
	dir := t.TempDir()
	addr, r, _ := start(t, Config{Dir: dir})
	repository, _ := imageclient.Parse(addr + "/app:1")
	img := image(t)
	for range 6 {
		push(t, addr+"/app:1", img)
		if err := repository.Delete(t.Context(), img.Digest()); err != nil {
			t.Fatal(err)
		}
		age(t, dir)
		var pruning sync.WaitGroup
		pruning.Go(func() { ask[Pruned](t, r.ServePrune, "untagged=true") })
		push(t, addr+"/app:1", img)
		pruning.Wait()
		wantImage(t, addr+"/app:1", img)
	}
}
