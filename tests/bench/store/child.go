package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"golang.org/x/sync/errgroup"

	"github.com/knarr-dev/knarr/pkg/datastore"
)

// spec is what a process measures.
type spec struct {
	System, Phase, Dir string
	Objects, History   int
}

const (
	prefix    = "/registry/bench/"
	valueSize = 1024
	// writing is how long each number of clients writes.
	writing  = 4 * time.Second
	watchers = 100
)

func keyOf(n int) string { return fmt.Sprintf("%s%07d", prefix, n) }

// value is of bytes that do not compress.
func value(n int) []byte {
	v := make([]byte, valueSize)
	for i := range v {
		v[i] = byte((n*31 + i*7919) >> (i % 5))
	}
	return v
}

func (s spec) run(ctx context.Context) error {
	logrus.SetOutput(io.Discard)
	slog.SetDefault(slog.New(slog.DiscardHandler))
	figures := map[string]float64{}
	c, stop, started, err := s.start(ctx)
	if err != nil {
		return err
	}
	defer stop()
	switch s.Phase {
	case "load":
		err = s.load(ctx, c, figures)
	case "start":
		figures["start"] = ms(started)
		runtime.GC()
		figures["memory"], err = anonymous()
	case "long":
		err = s.long(ctx, c, figures, stop)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(figures)
}

// start opens the store and tells how long it takes until it has answered.
func (s spec) start(ctx context.Context) (*clientv3.Client, func(), time.Duration, error) {
	began := time.Now()
	c, stop, err := s.open(ctx)
	if err != nil {
		return nil, nil, 0, err
	}
	if _, err := c.Get(ctx, keyOf(0)); err != nil {
		stop()
		return nil, nil, 0, fmt.Errorf("read the first object: %w", err)
	}
	return c, stop, time.Since(began), nil
}

// open starts the store, with its objects if it is new.
func (s spec) open(ctx context.Context) (*clientv3.Client, func(), error) {
	if s.System != "etcd" {
		store, err := datastore.Open(ctx, datastore.Config{
			Path: filepath.Join(s.Dir, "state.db"), Driver: s.System, CompactEvery: 24 * time.Hour,
			Seed: func() ([]datastore.KeyValue, error) {
				var all []datastore.KeyValue
				for n := range s.Objects {
					all = append(all, datastore.KeyValue{Key: keyOf(n), Value: value(n)})
				}
				return all, nil
			},
		})
		if err != nil {
			return nil, nil, err
		}
		c := store.Client().Client
		return c, sync.OnceFunc(func() { c.Close(); store.Close() }), nil
	}
	cfg := embed.NewConfig()
	cfg.Dir = s.Dir
	cfg.LogLevel, cfg.LogOutputs = "fatal", []string{"/dev/null"}
	cfg.QuotaBackendBytes = 8 << 30
	local := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.ListenClientUrls, cfg.ListenPeerUrls = local, local
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, nil, err
	}
	<-e.Server.ReadyNotify()
	c := v3client.New(e.Server)
	stop := sync.OnceFunc(func() { c.Close(); e.Close() })
	first, err := c.Get(ctx, keyOf(0), clientv3.WithSerializable())
	for n := 0; err == nil && first.Count == 0 && n < s.Objects; n += 100 {
		var puts []clientv3.Op
		for i := n; i < min(n+100, s.Objects); i++ {
			puts = append(puts, clientv3.OpPut(keyOf(i), string(value(i))))
		}
		_, err = c.Txn(ctx).Then(puts...).Commit()
	}
	return c, stop, err
}

func (s spec) load(ctx context.Context, c *clientv3.Client, figures map[string]float64) error {
	for _, limit := range []int{500, 0} {
		var took []time.Duration
		for range 3 {
			began := time.Now()
			r, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(int64(limit)))
			if err != nil {
				return err
			}
			took = append(took, time.Since(began))
			if r.Count != int64(s.Objects) {
				return fmt.Errorf("a list counts %d of %d objects", r.Count, s.Objects)
			}
		}
		name := map[int]string{500: "list-500", 0: "list-all"}[limit]
		figures[name] = ms(percentile(took, 50))
	}
	// Before the many updates: kine's watches fall minutes behind them, and then take
	// all memory while they catch up.
	if err := s.watch(ctx, c, figures); err != nil {
		return err
	}
	for _, clients := range []int{1, 16, 64} {
		took, err := s.update(ctx, c, clients, writing, 0)
		if err != nil {
			return err
		}
		figures[fmt.Sprint("updates-", clients)] = float64(len(took)) / writing.Seconds()
		figures[fmt.Sprint("p99-", clients)] = ms(percentile(took, 99))
	}
	if err := s.backup(ctx, c, figures); err != nil {
		return err
	}
	return s.compact(ctx, c, figures)
}

// update has clients change objects of their own, one after another, as the API
// server does, for a time or until there were so many changes.
func (s spec) update(ctx context.Context, c *clientv3.Client, clients int, limit time.Duration, changes int) ([]time.Duration, error) {
	known, err := s.read(ctx, c)
	if err != nil {
		return nil, err
	}
	return s.updateKnown(ctx, c, known, clients, limit, changes)
}

// read tells the objects' revisions, which the API server knows when it updates one,
// too.
func (s spec) read(ctx context.Context, c *clientv3.Client) (*clientv3.GetResponse, error) {
	known, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, fmt.Errorf("read the revisions: %w", err)
	}
	return known, nil
}

func (s spec) updateKnown(ctx context.Context, c *clientv3.Client, known *clientv3.GetResponse, clients int, limit time.Duration, changes int) ([]time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	var g errgroup.Group
	until := time.Now().Add(limit)
	for n := range clients {
		g.Go(func() error {
			var took []time.Duration
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				all = append(all, took...)
			}()
			for i := n; ; i += clients {
				if changes > 0 && len(took) >= changes/clients || changes == 0 && time.Now().After(until) || ctx.Err() != nil {
					return nil
				}
				key, at := keyOf(i%s.Objects), &known.Kvs[i%s.Objects].ModRevision
				v := value(i)
				began := time.Now()
				// What is asked for is waited for: written later it would meet those who
				// come next with a revision that they do not know.
				r, err := c.Txn(context.WithoutCancel(ctx)).If(clientv3.Compare(clientv3.ModRevision(key), "=", *at)).
					Then(clientv3.OpPut(key, string(v))).Else(clientv3.OpGet(key)).Commit()
				if err != nil || !r.Succeeded {
					return fmt.Errorf("update %s: %v, %w", key, r, err)
				}
				took = append(took, time.Since(began))
				*at = r.Header.Revision
				if i%s.Objects+clients >= s.Objects {
					i = n - clients // from the first again
				}
			}
		})
	}
	err := g.Wait()
	return all, err
}

// backup measures updates while the store is copied as a backup does it.
func (s spec) backup(ctx context.Context, c *clientv3.Client, figures map[string]float64) error {
	if s.System == "etcd" {
		return nil // its snapshots are another thing
	}
	to := filepath.Join(s.Dir, "copy.db")
	for _, clients := range []int{1, 16} {
		known, err := s.read(ctx, c)
		if err != nil {
			return err
		}
		writing, stop := context.WithCancel(ctx)
		took := make(chan []time.Duration, 1)
		failed := make(chan error, 1)
		go func() {
			all, err := s.updateKnown(writing, c, known, clients, time.Hour, 0)
			took <- all
			failed <- err
		}()
		began := time.Now()
		err = datastore.Copy(ctx, filepath.Join(s.Dir, "state.db"), to)
		copied := time.Since(began)
		stop()
		all := <-took
		if err := errors.Join(err, <-failed, os.Remove(to)); err != nil {
			return err
		}
		if len(all) == 0 {
			return errors.New("the copy was done before anything could be written: give more --objects")
		}
		figures[fmt.Sprint("backup-p99-", clients)] = ms(percentile(all, 99))
		figures[fmt.Sprint("backup-max-", clients)] = ms(slices.Max(all))
		figures["backup-took"] = ms(copied)
	}
	return nil
}

// watch measures how long it takes from a put to its event, for each of many
// watches.
func (s spec) watch(ctx context.Context, c *clientv3.Client, figures map[string]float64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	const puts = 300
	var mu sync.Mutex
	sent := map[int64]time.Time{}
	var took []time.Duration
	var ready, done sync.WaitGroup
	for range watchers {
		ready.Add(1)
		done.Go(func() {
			// A stream each, as the API server has for its resources.
			w := c.Watch(context.WithValue(ctx, new(int), 0), prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
			<-w
			ready.Done()
			for had := 0; had < puts; {
				r, ok := <-w
				now := time.Now()
				if !ok {
					return
				}
				mu.Lock()
				for _, ev := range r.Events {
					n, _ := strconv.ParseInt(string(bytes.TrimRight(ev.Kv.Value[:12], " ")), 10, 64)
					took = append(took, now.Sub(sent[n]))
					had++
				}
				mu.Unlock()
			}
		})
	}
	ready.Wait()
	r, err := c.Get(ctx, keyOf(0))
	if err != nil {
		return err
	}
	rev := r.Kvs[0].ModRevision
	for n := range int64(puts) {
		v := append(fmt.Appendf(nil, "%-12d", n), value(int(n))...)
		mu.Lock()
		sent[n] = time.Now()
		mu.Unlock()
		t, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(keyOf(0)), "=", rev)).Then(clientv3.OpPut(keyOf(0), string(v))).
			Else(clientv3.OpGet(keyOf(0))).Commit()
		if err != nil || !t.Succeeded {
			return fmt.Errorf("put for watches: %v, %w", t, err)
		}
		rev = t.Header.Revision
		time.Sleep(5 * time.Millisecond) // the next one is to meet idle watches
	}
	done.Wait()
	figures["watch-p50"], figures["watch-p99"] = ms(percentile(took, 50)), ms(percentile(took, 99))
	return nil
}

// compact forgets the history of 100,000 updates while a client goes on writing.
func (s spec) compact(ctx context.Context, c *clientv3.Client, figures map[string]float64) error {
	if s.System == "kine-sqlite" {
		figures["files"] = s.files()
		return nil // it compacts by its own clock
	}
	if _, err := s.update(ctx, c, 64, 0, 100_000); err != nil {
		return err
	}
	r, err := c.Get(ctx, keyOf(0))
	if err != nil {
		return err
	}
	writing, stop := context.WithCancel(ctx)
	defer stop()
	took := make(chan []time.Duration, 1)
	failed := make(chan error, 1)
	go func() {
		all, err := s.update(writing, c, 1, time.Hour, 0)
		took <- all
		failed <- err
	}()
	time.Sleep(time.Second)
	if _, err := c.Compact(ctx, r.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		return err
	}
	time.Sleep(time.Second)
	stop()
	all := <-took
	if err := <-failed; err != nil {
		return err
	}
	figures["stall"] = ms(slices.Max(all))
	figures["files"] = s.files()
	return nil
}

// long makes a long history, closes the store and measures the next start.
func (s spec) long(ctx context.Context, c *clientv3.Client, figures map[string]float64, stop func()) error {
	if _, err := s.update(ctx, c, 64, 0, s.History); err != nil {
		return err
	}
	stop()
	figures["files-long"] = s.files()
	_, stop, started, err := s.start(ctx)
	if err != nil {
		return err
	}
	defer stop()
	figures["start-long"] = ms(started)
	return nil
}

// files is the size of the store's files, in MB.
func (s spec) files() float64 {
	var sum int64
	_ = filepath.WalkDir(s.Dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				sum += info.Size()
			}
		}
		return nil
	})
	return float64(sum) / 1e6
}

// anonymous is this process' memory that no file backs, in MB.
func anonymous() (float64, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(text, []byte("RssAnon:"))
	var kib float64
	if _, err := fmt.Sscan(string(rest), &kib); err != nil {
		return 0, fmt.Errorf("read RssAnon of /proc/self/status: %w", err)
	}
	return kib * 1024 / 1e6, nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func percentile(all []time.Duration, p int) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[min(len(all)*p/100, len(all)-1)]
}
