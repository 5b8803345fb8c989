// Package deploy keeps a cluster as files in a folder of the server say: what
// they describe is applied when they come or change, and deleted when they go.
//
// What a file made is remembered in the cluster, so that a file that goes while
// the server is down is missed too. Nothing is asked or written while no file
// changes.
package deploy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/status"
)

// Name is what `--disable` calls the add-on.
const Name = "deploy"

const (
	// settle is how long files have to be left alone before they are read, and
	// settleAtMost how long at most the first change waits.
	settle       = 200 * time.Millisecond
	settleAtMost = 2 * time.Second
	// firstRetry and lastRetry bound the time to the next try of what failed.
	firstRetry = time.Second
	lastRetry  = 5 * time.Minute
)

// Config is what a Deployer works with.
type Config struct {
	// Folder has the manifests. It is made when missing.
	Folder string
	// Server is this server's name. Several may have folders; what a file of the
	// same name made goes when it is gone from all of them.
	Server string
	// REST is a client of Knarr's.
	REST func() *rest.Config
	// Needs is the component that has to be ready before the API is asked.
	Needs string
	Log   *slog.Logger
}

// Deployer is the add-on.
type Deployer struct {
	cfg Config

	mu     sync.Mutex
	states map[string]*state // by path; those of sources with troubles
}

// state is how a source that failed stands.
type state struct {
	err   error
	since time.Time
	tries int
	next  time.Time // of the next try; zero when only a change can help
	sum   string    // of the content that failed
}

var _ component.Component = (*Deployer)(nil)

// New returns the add-on. Nothing is read before Run.
func New(cfg Config) *Deployer { return &Deployer{cfg: cfg, states: map[string]*state{}} }

// Name implements component.Component.
func (d *Deployer) Name() string { return Name }

// Needs implements component.Component.
func (d *Deployer) Needs() []string { return []string{d.cfg.Needs} }

// Troubles are the files that could not be applied.
func (d *Deployer) Troubles() []status.Trouble {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []status.Trouble
	for path, s := range d.states {
		all = append(all, status.Trouble{Part: Name, Object: path, Error: s.err.Error(), Since: s.since})
	}
	slices.SortFunc(all, func(a, b status.Trouble) int { return compare(a.Object, b.Object) })
	return all
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Run implements component.Component. It is ready at once: nobody waits for
// what users deploy.
func (d *Deployer) Run(ctx context.Context, ready chan<- struct{}) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w (raise sysctl fs.inotify.max_user_instances)", d.cfg.Folder, err)
	}
	defer w.Close()
	close(ready)
	_, err = os.Stat(d.cfg.Folder)
	missing := errors.Is(err, os.ErrNotExist)
	cfg := rest.CopyConfig(d.cfg.REST())
	cfg.ContentType, cfg.AcceptContentTypes = "application/json", "application/json" // for kinds that are not known
	client, err := kubernetes.NewForConfig(d.cfg.REST())
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	p := &pass{Deployer: d, rest: cfg, client: client}
	if p.records, err = records(ctx, client); err != nil {
		return err
	}
	if missing {
		// An empty folder says that all is to go; a missing one, that this is not
		// the disk that the files were on.
		if err := p.disown(ctx); err != nil {
			return err
		}
	}
	return p.follow(ctx, w)
}

// follow applies what there is, and again what changes or failed.
func (p *pass) follow(ctx context.Context, w *fsnotify.Watcher) error {
	timer := time.NewTimer(0) // the next time to look
	defer timer.Stop()
	var changed time.Time // when the first change was seen that nobody looked at; zero if there is none
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-w.Events:
			if e.Op == fsnotify.Chmod {
				continue
			}
			if changed.IsZero() {
				changed = time.Now()
			}
			timer.Reset(min(settle, max(0, time.Until(changed.Add(settleAtMost)))))
			continue
		case err := <-w.Errors:
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("watch %s: %w", p.cfg.Folder, err)
			}
			timer.Reset(settle)
			continue
		case <-timer.C:
		}
		changed = time.Time{}
		t, err := p.look(w)
		if err != nil {
			return err
		}
		if err := p.settle(ctx, t); err != nil {
			return err
		}
		timer.Stop()
		if next := p.nextTry(); !next.IsZero() {
			timer.Reset(max(0, time.Until(next)))
		}
	}
}

// look reads the folder, and has all of it watched before.
func (p *pass) look(w *fsnotify.Watcher) (*tree, error) {
	if err := os.MkdirAll(p.cfg.Folder, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of manifests: %w", err)
	}
	for {
		t, err := readTree(p.cfg.Folder)
		if err != nil {
			return nil, err
		}
		var added bool
		watched := w.WatchList()
		for _, f := range t.folders {
			if slices.Contains(watched, f) {
				continue
			}
			if err := w.Add(f); err == nil {
				added = true
			} else if !errors.Is(err, os.ErrNotExist) {
				return nil, fmt.Errorf("watch %s: %w (sysctl fs.inotify.max_user_watches says how many folders may be)", f, err)
			}
		}
		for _, f := range watched {
			if !slices.Contains(t.folders, f) {
				_ = w.Remove(f) // it may be gone, and its watch with it
			}
		}
		if !added {
			return t, nil
		}
		// What changed between the reading and the watch is seen by the next reading.
	}
}

// nextTry is when something that failed is due; zero if nothing is.
func (d *Deployer) nextTry() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	var next time.Time
	for _, s := range d.states {
		if !s.next.IsZero() && (next.IsZero() || s.next.Before(next)) {
			next = s.next
		}
	}
	return next
}
