// Package images brings image archives into the embedded containerd: those that
// come with Knarr, and those that users put into a folder. Nothing is pulled.
//
// An imported image is pinned, which keeps the kubelet's garbage collection
// away from it. When its archive goes, the image stays but loses the pin.
package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	ctrimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/knarr-dev/knarr/pkg/component"
)

// archiveLabel marks an image that came from the folder, with the file's name.
const archiveLabel = "knarr.dev/archive"

// Folder imports the archives of one folder (Docker or OCI layout; tar, tar.gz,
// tgz, tar.zst), at start and whenever one is complete there: closed by its
// writer, moved in, or linked. Subfolders and hidden files are left alone.
//
// A damaged archive is told once, with its name, and tried again when it
// changes; the others go on.
type Folder struct {
	dir         string
	address     string
	snapshotter string
	log         *slog.Logger

	state *state
	// refused remembers the version of each archive that could not be imported,
	// so that one mistake gives one message.
	refused map[string]stamp

	first  sync.Once
	looked chan struct{} // closed by first
}

var _ component.Component = (*Folder)(nil)

// NewFolder returns the importer for dir, which Run makes if it is missing, into
// the containerd that listens on the unix socket at address.
func NewFolder(dir, address, snapshotter string, log *slog.Logger) *Folder {
	return &Folder{dir: dir, address: address, snapshotter: snapshotter, log: log, looked: make(chan struct{})}
}

// Name implements component.Component.
func (f *Folder) Name() string { return "images" }

// Needs implements component.Component.
func (f *Folder) Needs() []string { return []string{"containerd"} }

// FirstLook is a component that is ready once every archive was tried that was there
// at start, or could not be: a pod that starts afterwards does not pull what is in
// one of them, and is not held up by a folder that fails.
func (f *Folder) FirstLook() component.Component {
	return component.Func("first-images", nil, func(ctx context.Context, ready chan<- struct{}) error {
		select {
		case <-f.looked:
			close(ready)
			<-ctx.Done()
		case <-ctx.Done():
		}
		return ctx.Err()
	})
}

// Run closes ready once it has tried every archive that was there at start. It
// fails only when containerd or the folder does.
func (f *Folder) Run(ctx context.Context, ready chan<- struct{}) error {
	ctx = namespaces.WithNamespace(ctx, namespace)
	looked := func() { f.first.Do(func() { close(f.looked) }) }
	defer looked()
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return fmt.Errorf("make the folder of image archives: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Watching begins before the first look, so that nothing falls in between.
	w, err := watch(ctx, f.dir)
	if err != nil {
		return err
	}
	f.refused = make(map[string]stamp)
	if f.state, err = loadState(f.dir); err != nil {
		return err
	}
	if err := f.all(ctx); err != nil {
		return err
	}
	looked()
	close(ready)
	for {
		select {
		case c := <-w.changes:
			if err := f.handle(ctx, c); err != nil {
				return err
			}
		case err := <-w.failed:
			return err
		}
	}
}

func (f *Folder) handle(ctx context.Context, c change) error {
	switch c.kind {
	case missed:
		return f.all(ctx)
	case left:
		return f.forget(ctx, c.name)
	}
	if !f.eligible(c.name) {
		return nil
	}
	return f.connected(func(client *containerd.Client) error { return f.one(ctx, client, c.name) })
}

// connected lends a client for a moment: an idle node keeps none.
func (f *Folder) connected(do func(*containerd.Client) error) error {
	client, err := Dial(f.address)
	if err != nil {
		return err
	}
	defer client.Close()
	return do(client)
}

// all brings containerd in line with the folder as it is now.
func (f *Folder) all(ctx context.Context) error {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return fmt.Errorf("list image archives: %w", err)
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() && f.eligible(e.Name()) {
			names = append(names, e.Name())
		}
	}
	// A lost state file leaves labels that only a look into containerd finds, so
	// it is asked also when there is no archive.
	return f.connected(func(client *containerd.Client) error {
		changed := f.state.keep(names)
		dropped, err := f.settle(ctx, client)
		if err != nil {
			return err
		}
		if changed || dropped {
			if err := f.state.save(); err != nil {
				return err
			}
		}
		for _, name := range names {
			if err := f.one(ctx, client, name); err != nil {
				return err
			}
		}
		return nil
	})
}

// endings are the file names that Folder takes; what is inside is told by the
// file's first bytes.
func endings() []string { return []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"} }

// eligible says whether a file is an archive by its name. Files of programs that
// copy (hidden, or with an ending like .part) are passed over in silence.
func (f *Folder) eligible(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	for _, e := range endings() {
		if strings.HasSuffix(name, e) {
			return true
		}
	}
	switch ext := filepath.Ext(name); {
	case strings.HasSuffix(name, "~"), ext == ".tmp", ext == ".part", ext == ".partial", ext == ".filepart", ext == ".crdownload", ext == ".swp":
	default:
		f.log.Warn("not an image archive by its name, ignored", "file", filepath.Join(f.dir, name), "want", strings.Join(endings(), " "))
	}
	return false
}

// one imports the archive of that name unless it is unchanged. What is wrong
// with the archive itself is told here and is no error.
func (f *Folder) one(ctx context.Context, client *containerd.Client, name string) error {
	path := filepath.Join(f.dir, name)
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its removal is the next thing the watch tells
	}
	if err != nil {
		return fmt.Errorf("import image archive: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("import image archive: %w", err)
	}
	now := stampOf(info)
	if r, known := f.state.Archives[name]; known && r.Stamp == now && r.Snapshotter == f.snapshotter {
		return nil
	}
	if f.refused[name] == now || !info.Mode().IsRegular() {
		return nil
	}
	if beingWritten(file) {
		f.log.Info("image archive is still being written; it is imported when its writer closes it", "file", path)
		return nil
	}

	begin := time.Now()
	list, err := Import(ctx, client, f.snapshotter, file, map[string]string{archiveLabel: name})
	if err != nil {
		if ctx.Err() != nil || errdefs.IsUnavailable(err) {
			return fmt.Errorf("import image archive %s: %w", path, err)
		}
		f.refused[name] = now
		f.log.Error("image archive not imported; put a complete `docker save` or OCI archive in its place, or touch it to try again", "file", path, "err", err)
		return nil
	}
	delete(f.refused, name)
	names := namesOf(list)
	f.log.Info("images imported", "file", path, "images", tags(names), "in", time.Since(begin).Round(time.Millisecond))

	f.state.Archives[name] = record{Stamp: now, Snapshotter: f.snapshotter, Images: names}
	// An archive that replaced another of the same name may have brought fewer.
	if _, err := f.settle(ctx, client); err != nil {
		return err
	}
	return f.state.save()
}

// forget takes the protection from the images of an archive that is gone.
func (f *Folder) forget(ctx context.Context, name string) error {
	delete(f.refused, name)
	if _, known := f.state.Archives[name]; !known {
		return nil
	}
	if _, err := os.Stat(filepath.Join(f.dir, name)); err == nil {
		return nil // back already; its arrival is the next thing the watch tells
	}
	delete(f.state.Archives, name)
	return f.connected(func(client *containerd.Client) error {
		if _, err := f.settle(ctx, client); err != nil {
			return err
		}
		f.log.Info("image archive removed; its images stay until garbage collection wants them", "file", filepath.Join(f.dir, name))
		return f.state.save()
	})
}

// settle makes the pins in containerd what the state says: the images of known
// archives have one, those of archives that are gone have not. Archives of which
// an image has vanished are dropped from the state, so that they are imported
// anew; dropped tells of that.
func (f *Folder) settle(ctx context.Context, client *containerd.Client) (dropped bool, err error) {
	store := client.ImageService()
	pinned, err := store.List(ctx, fmt.Sprintf("labels.%q", archiveLabel))
	if err != nil {
		return false, fmt.Errorf("list images in containerd: %w", err)
	}
	want := f.state.owners()
	for _, img := range pinned {
		owner := want[img.Name]
		delete(want, img.Name)
		if owner == "" {
			err = label(ctx, store, img.Name, "", "")
		} else if img.Labels[archiveLabel] != owner || img.Labels[pinnedLabel] != pinnedValue {
			err = label(ctx, store, img.Name, owner, pinnedValue)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return false, err
		}
	}
	for name, owner := range want {
		err := label(ctx, store, name, owner, pinnedValue)
		if errdefs.IsNotFound(err) {
			delete(f.state.Archives, owner)
			dropped = true
			continue
		}
		if err != nil {
			return false, err
		}
	}
	return dropped, nil
}

// label sets both labels of an image, or takes them away when empty.
func label(ctx context.Context, store ctrimages.Store, name, owner, pin string) error {
	img := ctrimages.Image{Name: name, Labels: map[string]string{archiveLabel: owner, pinnedLabel: pin}}
	if _, err := store.Update(ctx, img, "labels."+archiveLabel, "labels."+pinnedLabel); err != nil {
		return fmt.Errorf("protect image %s, or free it: %w", name, err)
	}
	return nil
}

func namesOf(list []ctrimages.Image) []string {
	names := make([]string, 0, len(list))
	for _, img := range list {
		names = append(names, img.Name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// tags leaves out the names by digest, which say nothing to a reader.
func tags(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return strings.Contains(n, "@") })
}
