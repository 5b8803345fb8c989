// Package registries makes image pulls go as /etc/knarr/registries.yaml says,
// in k3s' format: mirrors of a registry, other names for images on a mirror,
// certificates and credentials.
//
// containerd reads such things from folders of its own, but knows no rewrites
// there, and credentials only in a configuration that it reads at its start.
// Since it lives in this process, each pull is handed another source instead:
// containerd's own resolver with endpoints, credentials and names from the file
// as it is at that moment. Nothing is restarted, and nothing is written.
package registries

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/dial"
)

// settle is how long the file must stay as it is before it is looked at, so that
// one save of an editor gives one message. Pulls don't wait for that.
const settle = 100 * time.Millisecond

// Registries knows what the file says. A mistake in it is told once and leaves
// what it said before in force; when there is no before, pulls fail and say why.
type Registries struct {
	// Dial, if set, makes the connections of every pull. It is set before Run.
	Dial dial.Func
	// Peers, if set, carries the requests of one pull from a registry, as images
	// name it, to the other nodes of the cluster, at a host that stands for all of
	// them. It is set before Run.
	Peers func(registry string) (host string, t http.RoundTripper)

	path string
	log  *slog.Logger

	mu    sync.Mutex
	stamp stamp
	file  *file // of the last text without mistakes; nil says nothing
	wrong error // what is wrong with the text there is now
}

var _ component.Component = (*Registries)(nil)

// New returns what path says, which need not exist.
func New(path string, log *slog.Logger) *Registries {
	return &Registries{path: path, log: log}
}

// Name implements component.Component.
func (r *Registries) Name() string { return "registries" }

// Needs implements component.Component.
func (r *Registries) Needs() []string { return nil }

// Run tells what changes in the file, and mistakes the moment they are made.
// Pulls need none of that: they look for themselves.
func (r *Registries) Run(ctx context.Context, ready chan<- struct{}) error {
	folder := filepath.Dir(r.path)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("make the folder of %s to watch it: %w", r.path, err)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w (raise sysctl fs.inotify.max_user_instances)", folder, err)
	}
	defer w.Close()
	if err := w.Add(folder); err != nil {
		return fmt.Errorf("watch %s: %w", folder, err)
	}
	r.look()
	close(ready)
	settled := time.NewTimer(0)
	defer settled.Stop()
	for {
		select {
		case e := <-w.Events:
			if e.Name == r.path {
				settled.Reset(settle)
			}
		case err := <-w.Errors:
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("watch %s: %w", folder, err)
			}
			settled.Reset(settle)
		case <-settled.C:
			r.look()
		case <-ctx.Done():
			return nil
		}
	}
}

// Shared tells whether nodes share the images of a registry: mirrors of the file
// has an entry for it, or one for all.
func (r *Registries) Shared(registry string) bool {
	f, err := r.current()
	return err == nil && f != nil && f.lists(registry)
}

// look reads the file if it has changed.
func (r *Registries) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refresh()
}

// current is what counts for a pull that begins now; nil says nothing.
func (r *Registries) current() (*file, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refresh()
	if r.file == nil {
		return nil, r.wrong
	}
	return r.file, nil
}

// refresh takes note of the file as it is. A text with a mistake is read each
// time, since what it misses may lie outside: a certificate's file.
func (r *Registries) refresh() {
	now, err := stampOf(r.path)
	if err == nil && now == r.stamp && r.wrong == nil {
		return
	}
	before := r.stamp
	r.stamp = now
	if errors.Is(err, fs.ErrNotExist) {
		if before != (stamp{}) {
			r.log.Info("registries file removed: images are pulled without it", "file", r.path)
		}
		r.file, r.wrong = nil, nil
		return
	}
	var f *file
	if err == nil {
		f, err = load(r.path)
	}
	if err == nil {
		r.file, r.wrong = f, nil
		r.log.Info("registries file applied", "file", r.path, "mirrors", names(f.mirrors), "configs", names(f.configs))
		return
	}
	told := r.wrong != nil && r.wrong.Error() == err.Error()
	r.wrong = err
	if told {
		return
	}
	if r.file != nil {
		r.log.Error("registries file not applied; what it said before stays in force", "err", err)
		return
	}
	r.log.Error("registries file not applied; images can't be pulled until it is mended or removed", "err", err)
}

// stamp tells one version of the file from another without reading it.
type stamp struct {
	inode uint64
	size  int64
	mtime int64 // nanoseconds since 1970
	ctime int64
}

func stampOf(path string) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return stamp{}, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return stamp{inode: st.Ino, size: st.Size, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano()}, nil
}

// names are the keys of a map, in order.
func names[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
