// Package edge lets a node live without a server: it keeps on disk what the
// node's parts read from the API server, and answers them from there while no
// server can be reached. A machine that starts with no server in reach thereby
// starts the pods that it last had, with their ConfigMaps, Secrets, volumes,
// Services and DNS.
//
// [Store.Wrap] goes into rest.Config.WrapTransport of each client. While a server
// answers, it changes nothing: requests and answers pass as they are, and what
// the client reads of them is looked at when it has read it. Once no server can
// be reached,
//
//   - a GET, LIST or WATCH of what was read before is answered as the server last
//     did; anything else fails as it does without us.
//   - a watch is silent until a server answers. Then one that goes on from what a
//     server told ends, and the client resumes it there, missing nothing; one that
//     follows an answer of ours ends as expired (410), and the client lists anew,
//     after the second that client-go's reflector waits. So a client ends up with
//     what the server has, and is told only the differences.
//   - a TokenRequest gets the last token that the same pod had, expired or not,
//     since no volume is mounted without one.
//   - writes fail. But where a kubelet says that a pod has another address, the
//     EndpointSlices that are told have it from then on, also those of open watches.
//
// No server can be reached when a request fails in the transport or with a status
// of 500 or more and a probe does too. Any answer below 500 counts as a server: a
// deleted node has to hear its 401 and 403.
//
// What is kept of the cluster's Secrets is what this node's pods use. All of the
// file is sealed with a key that lies beside it, readable by root alone: that
// protects a copy of the file, a backup or a card's left-over blocks, and not from
// one who takes the whole card.
package edge

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/knarr-dev/knarr/pkg/durable"
	"github.com/knarr-dev/knarr/pkg/edge/sealed"
)

// Config is what a store is told.
type Config struct {
	// Dir is the store's own folder; it is made when missing, mode 0700.
	Dir string
	// Node is the node's name. What was kept for another is dropped.
	Node string
	Log  *slog.Logger
	// MaxBytes is the most that is kept, in bytes of contents. Default: 64 MiB.
	// Beyond it, the list that takes the most room is not kept, with a warning;
	// those of the node's pods, and of what they name, are.
	MaxBytes int64
}

const (
	fileName   = "objects"
	keyName    = "key"
	asideName  = "objects.damaged"
	defaultMax = 64 << 20
)

// Store keeps what clients read. It writes behind: see [Store.Flush].
type Store struct {
	cfg  Config
	lim  limits
	log  *slog.Logger
	link *link
	jobs *queue
	age  atomic.Uint64 // rises when everything is forgotten
	done chan struct{} // closed once the worker has ended
	shut atomic.Bool
	// What was written since Open, and the file's length.
	batches, bytes, size atomic.Int64

	mu sync.RWMutex // only the worker changes what it guards
	x  *index
	// file is where contents are; it is replaced when it is rewritten.
	file *sealed.File

	watchMu   sync.Mutex
	watched   map[string]int    // open watches of a selection
	offered   map[string]string // the resourceVersion that was told offline
	excluded  map[string]bool   // selections that are too big to be kept
	addresses addresses

	// The worker's own.
	due     time.Time // when to write next; zero if there is nothing to write
	wrote   time.Time // when it was written last
	sweepAt time.Time
	swept   bool
	failing bool // writes fail
	pages   map[string]*page
}

// Open opens the store in the folder, or makes it. A store that can't be read is
// put aside, with a warning, and begun anew: a node without one waits for its
// server, as it would without this package.
func Open(cfg Config) (*Store, error) { return openWith(cfg, defaultLimits()) }

func openWith(cfg Config, lim limits) (*Store, error) {
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = defaultMax
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of what the node keeps: %w", err)
	}
	if err := os.Chmod(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("close the folder of what the node keeps to others: %w", err)
	}
	s := &Store{
		cfg: cfg, lim: lim, log: cfg.Log, jobs: newQueue(), done: make(chan struct{}),
		watched: map[string]int{}, offered: map[string]string{}, excluded: map[string]bool{}, pages: map[string]*page{},
		addresses: addresses{of: map[types.UID]podAddresses{}, open: map[*silence]question{}},
		sweepAt:   time.Now().Add(lim.settled),
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	s.link = newLink(lim, cfg.Log)
	s.link.contact = s.x.contact
	go s.work()
	return s, nil
}

func (s *Store) path(name string) string { return filepath.Join(s.cfg.Dir, name) }

func (s *Store) open() error {
	key, err := s.key()
	if err != nil {
		return err
	}
	x := newIndex()
	f, err := sealed.Open(s.path(fileName), key, x.replay)
	if errors.Is(err, sealed.ErrDamaged) {
		s.log.Warn("what this node keeps for when no server can be reached can't be read; beginning anew",
			"aside", s.path(asideName), "err", err)
		if err := os.Rename(s.path(fileName), s.path(asideName)); err != nil {
			return fmt.Errorf("put a damaged file aside: %w", err)
		}
		x = newIndex()
		f, err = sealed.Open(s.path(fileName), key, x.replay)
	}
	if err != nil {
		return fmt.Errorf("open what the node keeps: %w; remove the folder %s to begin anew", err, s.cfg.Dir)
	}
	if n := f.Torn(); n > 0 {
		s.log.Info("the last change to what this node keeps was not written to its end, and is dropped", "bytes", n)
	}
	s.file, s.x = f, x
	s.size.Store(f.Size())
	if x.node != "" && x.node != s.cfg.Node {
		s.log.Info("what was kept is of a node with another name, and is dropped", "was", x.node, "is", s.cfg.Node)
		return s.reset()
	}
	x.node = s.cfg.Node
	x.loaded(time.Now())
	return nil
}

// key reads the key, or makes it. Without the key that a file was sealed with,
// the file is as good as damaged.
func (s *Store) key() (key [sealed.KeySize]byte, err error) {
	path := s.path(keyName)
	text, err := os.ReadFile(path)
	switch {
	case err == nil && len(text) == len(key):
		if err := os.Chmod(path, 0o600); err != nil {
			return key, fmt.Errorf("close the key of what the node keeps to others: %w", err)
		}
		return [sealed.KeySize]byte(text), nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return key, fmt.Errorf("read the key of what the node keeps: %w", err)
	}
	if _, err := rand.Read(key[:]); err != nil {
		return key, fmt.Errorf("make a key: %w", err)
	}
	if err := durable.Replace(path, 0o600, bytes.NewReader(key[:])); err != nil {
		return key, fmt.Errorf("write the key of what the node keeps: %w", err)
	}
	return key, nil
}

// Wrap returns a transport that asks by rt, keeps what it reads, and answers from
// what was kept while no server can be reached. It is for rest.Config's
// WrapTransport. After Close, it only passes requests on.
func (s *Store) Wrap(rt http.RoundTripper) http.RoundTripper { return &transport{store: s, inner: rt} }

// Offline tells whether no server can be reached.
func (s *Store) Offline() bool {
	off, _ := s.link.offline()
	return off
}

// Changed returns a channel that is closed when what Offline tells changes next.
func (s *Store) Changed() <-chan struct{} {
	_, changed := s.link.offline()
	return changed
}

// Probe has it found out now whether a server can be reached, if none could: for
// one who knows that the network has changed.
func (s *Store) Probe() { s.link.hurry() }

// Status is what there is to tell of a store.
type Status struct {
	// Offline is set while no server can be reached; Since is from when.
	Offline bool      `json:"offline"`
	Since   time.Time `json:"since,omitzero"`
	// LastContact is when a server answered last. From before this start it is
	// known only as of the last write.
	LastContact time.Time `json:"lastContact,omitzero"`
	// Error is why no server can be reached.
	Error string `json:"error,omitempty"`
	// Objects and Selections are how many are kept, of tokens too.
	Objects    int `json:"objects"`
	Selections int `json:"selections"`
	// Bytes is the length of the file; Written is how many were written since
	// Open.
	Bytes   int64 `json:"bytes"`
	Written int64 `json:"written"`
	// Failing is set while what is to be kept can't be written.
	Failing bool `json:"failing,omitempty"`
}

// Status returns how the store does.
func (s *Store) Status() Status {
	var st Status
	s.link.mu.Lock()
	st.LastContact = s.link.contact
	if s.link.state == offline {
		st.Offline, st.Since = true, s.link.since
		if s.link.err != nil {
			st.Error = s.link.err.Error()
		}
	}
	s.link.mu.Unlock()
	s.mu.RLock()
	defer s.mu.RUnlock()
	st.Objects, st.Selections = len(s.x.objects), len(s.x.selections)
	st.Failing, st.Written, st.Bytes = s.failing, s.bytes.Load(), s.size.Load()
	return st
}

// Flush writes what has changed, and returns when it is on disk. By itself, the
// store writes a new pod or Secret after two seconds, Nodes and EndpointSlices
// after 30, and after ten minutes what no pod needs to start, such as statuses;
// and never twice within ten seconds.
func (s *Store) Flush() error { return s.do(s.write) }

// ForgetAll drops everything, also on disk, and the key, without which the disk's
// old blocks tell nothing: for a node that leaves its cluster.
func (s *Store) ForgetAll() error { return s.do(s.reset) }

// do has the worker do something, after what it has to do.
func (s *Store) do(f func() error) error {
	result := make(chan error, 1)
	if !s.jobs.push(job{do: func() urgency {
		result <- f()
		return none
	}}) {
		return errors.New("the store is closed")
	}
	return <-result
}

// Close writes what has changed and ends everything. It may be called twice.
func (s *Store) Close() error {
	if s.shut.Swap(true) {
		<-s.done
		return nil
	}
	s.link.close()
	err := s.do(s.write)
	s.jobs.close()
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	err = errors.Join(err, s.file.Close())
	s.file = nil
	return err
}

func (s *Store) isClosed() bool { return s.shut.Load() }

// reset is the worker's, or Open's.
func (s *Store) reset() error {
	s.age.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.file.Close()
	s.x, s.due, s.pages = newIndex(), time.Time{}, map[string]*page{}
	s.x.node = s.cfg.Node
	for _, name := range []string{fileName, keyName, asideName} {
		if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget what the node keeps: %w", err)
		}
	}
	key, err := s.key()
	if err != nil {
		return err
	}
	if s.file, err = sealed.Open(s.path(fileName), key, s.x.replay); err != nil {
		return fmt.Errorf("begin anew: %w", err)
	}
	s.size.Store(s.file.Size())
	return nil
}
