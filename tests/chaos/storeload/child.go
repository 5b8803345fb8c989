package storeload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/knarr-dev/knarr/pkg/datastore"
	"github.com/knarr-dev/knarr/tests/chaos/record"
)

// specEnv has a process be a load instead of what it was made for.
const specEnv = "KNARR_STORELOAD"

const (
	prefix = "/registry/chaos/"
	// end is the key that is written last.
	end = prefix + "end"
	// keysEach is how many keys a worker has.
	keysEach = 12
)

// watches are those of each load.
var watches = []string{"first", "second"}

type spec struct {
	Path         string
	Workers      int
	CompactEvery time.Duration
	Synchronous  string
	Driver       string
	Patience     time.Duration
	Seed         uint64
	Watches      map[string]int64 // those that go on, and after what
}

const (
	tellOpen    = "open"
	tellBegin   = "begin"
	tellDone    = "done"
	tellRefused = "refused"
	tellWatch   = "watch"
	tellEvent   = "event"
	tellFinal   = "final"
	tellWrong   = "wrong"
)

// line is what the process tells. It is shorter than what a pipe takes at once,
// but for the last.
type line struct {
	Tells  string
	ID     int64          `json:",omitempty"`
	Kind   record.Kind    `json:",omitempty"`
	Watch  string         `json:",omitempty"`
	Key    string         `json:",omitempty"`
	Value  string         `json:",omitempty"`
	Rev    int64          `json:",omitempty"`
	Delete bool           `json:",omitempty"`
	List   []record.Event `json:",omitempty"`
}

// MaybeRun is a load when this process was started to be, and tells whether it
// was: then main must return. Call it first thing in TestMain.
func MaybeRun() bool {
	text := os.Getenv(specEnv)
	if text == "" {
		return false
	}
	c := &child{ids: time.Now().UnixNano()}
	err := json.Unmarshal([]byte(text), &c.spec)
	if err == nil {
		err = c.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load of a store:", err)
		os.Exit(1)
	}
	return true
}

type child struct {
	spec
	client *clientv3.Client

	mu   sync.Mutex
	ids  int64 // of operations; no two processes have the same
	seen map[string]int64
	more chan struct{} // closed and replaced when seen changes
}

// tell writes a line, in one write.
func (c *child) tell(t line) {
	text, err := json.Marshal(t)
	if err != nil {
		panic(err) // of strings and numbers
	}
	if _, err := os.Stdout.Write(append(text, '\n')); err != nil {
		os.Exit(1) // nobody listens
	}
}

func (c *child) run() error {
	logrus.SetOutput(io.Discard)
	slog.SetDefault(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	store, err := datastore.Open(ctx, datastore.Config{Path: c.Path, CompactEvery: c.CompactEvery, Synchronous: c.Synchronous, Driver: c.Driver})
	if err != nil {
		return err
	}
	defer store.Close()
	c.client = store.Client().Client
	c.seen, c.more = map[string]int64{}, make(chan struct{})

	var watching sync.WaitGroup
	for _, name := range watches {
		from, err := c.begin(ctx, name)
		if err != nil {
			return err
		}
		watching.Go(func() { c.watch(ctx, name, from) })
	}
	c.tell(line{Tells: tellOpen})

	writing, stop := context.WithCancel(ctx)
	var workers sync.WaitGroup
	for n := range c.Workers {
		w := &worker{child: c, name: fmt.Sprintf("%s%d/", prefix, n), random: rand.New(rand.NewPCG(c.Seed, uint64(n)))}
		workers.Go(func() { w.run(writing) })
	}
	ordered := make(chan struct{})
	go func() {
		defer close(ordered)
		_, _ = io.Copy(io.Discard, os.Stdin) // until there are no more orders
	}()
	select {
	case <-ordered:
	case <-store.Failed():
		stop()
		workers.Wait()
		store.Close()
		return store.Err()
	}
	stop()
	workers.Wait()
	if err := c.finish(ctx); err != nil {
		return err
	}
	cancel()
	watching.Wait()
	return nil
}

// begin is from where a watch goes on, or starts.
func (c *child) begin(ctx context.Context, name string) (int64, error) {
	if from, ok := c.Watches[name]; ok {
		return from, nil
	}
	r, err := c.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("read revision to watch from: %w", err)
	}
	c.tell(line{Tells: tellWatch, Watch: name, Rev: r.Header.Revision})
	return r.Header.Revision, nil
}

// watch tells events until ctx ends. What has been compacted away meanwhile
// makes it start anew.
func (c *child) watch(ctx context.Context, name string, from int64) {
	for ctx.Err() == nil {
		for r := range c.client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(from+1)) {
			if r.CompactRevision != 0 {
				delete(c.Watches, name)
				var err error
				if from, err = c.begin(ctx, name); err != nil {
					return // finish misses it
				}
				c.saw(name, from) // which may be the last already
				break
			}
			for _, e := range r.Events {
				kv := e.Kv
				if e.Type == clientv3.EventTypeDelete {
					kv = e.PrevKv
				}
				t := line{Tells: tellEvent, Watch: name, Rev: e.Kv.ModRevision, Delete: e.Type == clientv3.EventTypeDelete, Key: string(e.Kv.Key)}
				if kv != nil {
					t.Value = c.unwrap(string(e.Kv.Key), kv.Value)
				}
				c.tell(t)
				from = max(from, t.Rev)
			}
			c.saw(name, from)
		}
	}
}

// saw notes how far a watch has come.
func (c *child) saw(name string, rev int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[name] = rev
	close(c.more)
	c.more = make(chan struct{})
}

// finish writes the last key, waits for it at every watch and tells all keys.
func (c *child) finish(ctx context.Context) error {
	w := &worker{child: c, random: rand.New(rand.NewPCG(c.Seed, 1<<32))}
	at, err := w.load(ctx, end)
	if err != nil {
		return err
	}
	if at.rev == 0 {
		at = w.write(ctx, record.Create, end, at)
	} else {
		at = w.write(ctx, record.Update, end, at)
	}
	if at.open {
		return errors.New("the last write was not acknowledged")
	}
	for _, name := range watches {
		for {
			c.mu.Lock()
			seen, more := c.seen[name], c.more
			c.mu.Unlock()
			if seen >= at.rev {
				break
			}
			select {
			case <-more:
			case <-time.After(c.Patience):
				return fmt.Errorf("watch %s came to revision %d, the last write was at %d", name, seen, at.rev)
			}
		}
	}
	r, err := c.client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("list all keys: %w", err)
	}
	t := line{Tells: tellFinal, Rev: r.Header.Revision}
	for _, kv := range r.Kvs {
		t.List = append(t.List, record.Event{Rev: kv.ModRevision, Key: string(kv.Key), Value: c.unwrap(string(kv.Key), kv.Value)})
	}
	c.tell(t)
	return nil
}

// wrap makes a value of many sizes from an operation's name.
func wrap(id string, size int) []byte {
	return []byte(id + " " + strings.Repeat(id, size/len(id)))
}

// unwrap is the operation's name in a value, which must be whole.
func (c *child) unwrap(key string, value []byte) string {
	id, rest, _ := strings.Cut(string(value), " ")
	if id == "" || rest != strings.Repeat(id, len(rest)/len(id)) {
		c.tell(line{Tells: tellWrong, Value: fmt.Sprintf("the value of %s is damaged: %.80q", key, value)})
	}
	return id
}
