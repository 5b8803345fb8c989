package backup

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/klauspost/compress/zstd"

	"github.com/knarr-dev/knarr/pkg/archive"
	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/datastore"
)

const (
	// changesFormat is the first field of every file of changes.
	changesFormat = "knarr-changes/1"
	changesEnding = ".changes.zst"
	// gatherTime is how long changes are gathered after the first.
	gatherTime = 250 * time.Millisecond
	// A replica begins anew, with a whole backup, after so many files of changes, or
	// so long.
	largestReplica = 5000
	oldestReplica  = 24 * time.Hour
	// replicaRetry is the time until a storage that failed is tried again.
	replicaRetry = 2 * time.Second
)

// lookAgain are the pauses after a write to the store's log was seen: the first one
// gathers changes, the later ones find those that the disk was slow to take.
var lookAgain = [...]time.Duration{gatherTime, time.Second, 5 * time.Second}

// Replica copies a store's changes to a storage as they are made: a backup first, and
// then, a fraction of a second after each change, a small file with what is new.
//
// It reads beside the server, which does not wait for it, and learns from the log
// of the store's file that there is something to read. A key or a certificate that
// changes has it begin anew.
type Replica struct {
	// Config is made when it runs. Its storage is the replica's own.
	Config func() (Config, error)
	Log    *slog.Logger
}

var _ component.Component = (*Replica)(nil)

// Name implements component.Component.
func (r *Replica) Name() string { return "replica" }

// Needs implements component.Component.
func (r *Replica) Needs() []string { return []string{"apiserver"} }

// Run implements component.Component.
func (r *Replica) Run(ctx context.Context, ready chan<- struct{}) error {
	cfg, err := r.Config()
	if err != nil {
		return err
	}
	if cfg.Keys.PassphraseFile != "" {
		return errors.New("--replicate-to: a passphrase would have to be worked on each second: give --backup-recipients-file in its place")
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("follow the store's log: %w (raise sysctl fs.inotify.max_user_instances)", err)
	}
	defer w.Close()
	if err := w.Add(cfg.store() + "-wal"); err != nil {
		return fmt.Errorf("follow the store's log: %w", err)
	}
	close(ready)
	c := &copying{cfg: cfg, log: r.Log}
	return c.follow(ctx, w)
}

// copying is one run of a replica.
type copying struct {
	cfg    Config
	log    *slog.Logger
	base   Stored // what the changes follow; without a name there is none yet
	last   int64  // revision that is stored
	files  int    // of changes, since base
	state  string // of the server's files, as of base
	failed bool   // the last time
}

func (c *copying) follow(ctx context.Context, w *fsnotify.Watcher) error {
	step := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Events:
			if !ok {
				return errors.New("follow the store's log: it ended")
			}
			if e.Has(fsnotify.Remove | fsnotify.Rename) {
				return errors.New("follow the store's log: it was removed")
			}
			if step != 0 && !c.failed { // else the timer runs that gathers
				step = 0
				timer.Reset(lookAgain[0])
			}
			continue
		case <-w.Errors: // an overflow: there is something to read
			if step != 0 && !c.failed {
				step = 0
				timer.Reset(lookAgain[0])
			}
			continue
		case <-timer.C:
		}
		err := c.copy(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if !c.failed {
				c.log.Error("the store's changes are not copied", "to", c.cfg.Storage.String(), "err", err)
			}
			c.failed, step = true, len(lookAgain)
			timer.Reset(replicaRetry)
			continue
		}
		if c.failed {
			c.log.Info("the store's changes are copied again", "to", c.cfg.Storage.String())
			c.failed = false
		}
		if step++; step < len(lookAgain) {
			timer.Reset(lookAgain[step])
		}
	}
}

// copy stores what is new, or begins anew where that has to be.
func (c *copying) copy(ctx context.Context) error {
	state, err := stateOf(c.cfg.serverDir())
	if err != nil {
		return err
	}
	if c.base.Name == "" || state != c.state || c.files >= largestReplica || c.cfg.now().Sub(c.base.Created) > oldestReplica {
		return c.begin(ctx, state)
	}
	err = c.changes(ctx)
	if errors.Is(err, datastore.ErrForgotten) {
		return c.begin(ctx, state)
	}
	return err
}

// begin stores a backup, and removes all but the one before.
func (c *copying) begin(ctx context.Context, state string) error {
	m, stored, err := Create(ctx, c.cfg)
	if err != nil {
		return err
	}
	before := c.base.Name
	c.base, c.last, c.files, c.state = stored, m.Revision, 0, state
	objects, err := c.cfg.Storage.List(ctx)
	if err != nil {
		return err
	}
	for _, o := range objects {
		base, is := baseOf(o.Name)
		if !is || !(Stored{Name: o.Name}).isOf(m.Cluster) || base == stem(stored.Name) || before != "" && base == stem(before) {
			continue
		}
		if err := c.cfg.Storage.Delete(ctx, o.Name); err != nil {
			return err
		}
	}
	return nil
}

// stem is a backup's name without its endings, which the names of its changes begin with.
func stem(name string) string {
	return strings.TrimSuffix(strings.TrimSuffix(name, sealedEnding), ".tar.zst")
}

// baseOf tells which backup a file is of, or of which it has changes.
func baseOf(name string) (string, bool) {
	if _, ok := parseName(name); ok {
		return stem(name), true
	}
	rest, ok := strings.CutSuffix(strings.TrimSuffix(name, sealedEnding), changesEnding)
	if i := strings.LastIndexByte(rest, '.'); ok && i > 0 {
		_, ok = parseName(rest[:i] + ".tar.zst")
		return rest[:i], ok
	}
	return "", false
}

// header is the first line of a file of changes.
type header struct {
	Format string `json:"format"`
	// After is the revision that the changes follow; they end with Last.
	After int64 `json:"after"`
	Last  int64 `json:"last"`
}

// changes stores those that are not yet.
func (c *copying) changes(ctx context.Context) error {
	i, err := datastore.Inspect(ctx, c.cfg.store())
	if err != nil {
		return err
	}
	defer i.Close()
	var lines []byte
	last, err := i.Changes(ctx, c.last, func(change datastore.Change) error {
		line, err := encodeChange(change)
		lines = append(append(lines, line...), '\n')
		return err
	})
	if err != nil || last == c.last {
		return err
	}
	head, err := json.Marshal(header{changesFormat, c.last, last})
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(c.cfg.serverDir(), ".*.changes") // a name that is not backed up
	if err != nil {
		return fmt.Errorf("copy changes: %w", err)
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if err := c.write(file, append(head, '\n'), lines); err != nil {
		return fmt.Errorf("copy changes: %w", err)
	}
	name := fmt.Sprintf("%s.%08d%s", stem(c.base.Name), c.files+1, changesEnding)
	if c.cfg.Keys.Sealed() {
		name += sealedEnding
	}
	if err := c.cfg.Storage.Put(ctx, name, file); err != nil {
		return err
	}
	c.last = last
	c.files++
	return nil
}

func (c *copying) write(file *os.File, texts ...[]byte) error {
	sealed, err := c.cfg.Keys.seal(file)
	if err != nil {
		return err
	}
	z, err := zstd.NewWriter(sealed, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(archive.WindowSize))
	if err != nil {
		return err
	}
	for _, text := range texts {
		if _, err := z.Write(text); err != nil {
			return err
		}
	}
	if err := errors.Join(z.Close(), sealed.Close()); err != nil {
		return err
	}
	_, err = file.Seek(0, io.SeekStart)
	return err
}

// column is a value with its kind, of which JSON has too few.
type column struct {
	N *int64  `json:"n,omitempty"`
	S *string `json:"s,omitempty"`
	B []byte  `json:"b,omitempty"`
	E bool    `json:"e,omitempty"` // bytes, of which there are none
}

func encodeChange(change datastore.Change) ([]byte, error) {
	columns := make([]column, len(change))
	for n, v := range change {
		switch v := v.(type) {
		case nil:
		case int64:
			columns[n].N = &v
		case string:
			columns[n].S = &v
		case []byte:
			columns[n].B, columns[n].E = v, len(v) == 0
		default:
			return nil, fmt.Errorf("copy changes: a column of type %T", v)
		}
	}
	return json.Marshal(columns)
}

func decodeChange(line []byte) (datastore.Change, error) {
	var columns []column
	if err := json.Unmarshal(line, &columns); err != nil {
		return nil, err
	}
	change := make(datastore.Change, len(columns))
	for n, c := range columns {
		switch {
		case c.N != nil:
			change[n] = *c.N
		case c.S != nil:
			change[n] = *c.S
		case c.E:
			change[n] = []byte{}
		case c.B != nil:
			change[n] = c.B
		}
	}
	return change, nil
}

// stateOf tells a server's files, but for the store, from what becomes of them when
// one changes.
func stateOf(dir string) (string, error) {
	var text strings.Builder
	found, err := list(dir)
	if err != nil {
		return "", err
	}
	for _, s := range found {
		info, err := os.Stat(s.From)
		if err != nil {
			return "", fmt.Errorf("look for changes: %w", err)
		}
		fmt.Fprintln(&text, s.Path, info.Size(), info.ModTime().UnixNano())
	}
	return text.String(), nil
}

// latestReplica finds the newest backup of a replica and the files of its changes,
// in order.
func latestReplica(ctx context.Context, c Config) (string, []string, error) {
	all, err := List(ctx, c)
	if err != nil {
		return "", nil, err
	}
	if len(all) == 0 {
		return "", nil, fmt.Errorf("there is no replica in %s", c.Storage)
	}
	base := all[len(all)-1].Name
	objects, err := c.Storage.List(ctx)
	if err != nil {
		return "", nil, err
	}
	has := map[string]bool{}
	for _, o := range objects {
		has[strings.TrimSuffix(o.Name, sealedEnding)] = true
	}
	var files []string
	for n := 1; has[fmt.Sprintf("%s.%08d%s", stem(base), n, changesEnding)]; n++ {
		name := fmt.Sprintf("%s.%08d%s", stem(base), n, changesEnding)
		if strings.HasSuffix(base, sealedEnding) {
			name += sealedEnding
		}
		files = append(files, name)
	}
	return base, files, nil
}

// replay brings an unpacked backup on by the changes that follow it, and returns the
// last revision.
func (c Config) replay(ctx context.Context, dir string, after int64, files []string) (int64, error) {
	r := &changesReader{cfg: c, ctx: ctx, files: files, last: after}
	defer r.close()
	if err := datastore.Replay(ctx, filepath.Join(dir, filepath.FromSlash(storePath)), r.next); err != nil {
		return 0, err
	}
	return r.last, nil
}

// changesReader reads the files of a replica one after the other.
type changesReader struct {
	cfg   Config
	ctx   context.Context
	files []string
	name  string
	last  int64

	file  io.Closer
	z     *zstd.Decoder
	lines *bufio.Reader
}

func (r *changesReader) close() {
	if r.file != nil {
		r.z.Close()
		r.file.Close()
		r.file = nil
	}
}

func (r *changesReader) next() (datastore.Change, error) {
	for {
		if r.file == nil {
			if len(r.files) == 0 {
				return nil, nil
			}
			if err := r.open(r.files[0]); err != nil {
				return nil, fmt.Errorf("replica %s: %w", r.files[0], err)
			}
			r.files = r.files[1:]
		}
		line, err := r.lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			r.close()
			continue
		}
		var change datastore.Change
		if err == nil {
			change, err = decodeChange(line)
		}
		if err != nil {
			return nil, fmt.Errorf("replica %s: %w", r.name, damaged(err))
		}
		return change, nil
	}
}

func (r *changesReader) open(name string) error {
	r.name = name
	file, err := r.cfg.Storage.Open(r.ctx, name)
	if err != nil {
		return err
	}
	opened, err := r.cfg.Keys.open(file)
	if err != nil {
		file.Close()
		return err
	}
	z, err := zstd.NewReader(opened, zstd.WithDecoderConcurrency(1))
	if err != nil {
		file.Close()
		return damaged(err)
	}
	r.file, r.z, r.lines = file, z, bufio.NewReader(z)
	line, err := r.lines.ReadBytes('\n')
	var h header
	if err == nil {
		err = json.Unmarshal(line, &h)
	}
	if err == nil && (h.Format != changesFormat || h.After != r.last || h.Last <= h.After) {
		err = fmt.Errorf("it has changes from revision %d to %d in the form %q, and not those after %d", h.After, h.Last, h.Format, r.last)
	}
	if err != nil {
		return damaged(err)
	}
	r.last = h.Last
	return nil
}
