package datastore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
)

// subject is a store that is asked as the API server asks its own.
type subject struct {
	name string
	*clientv3.Client
	// compacts is set if it forgets when it is told to: kine's driver does so by
	// itself only.
	compacts bool
	// versions is set if it counts the changes of a key.
	versions bool
}

// eachSubject runs a test against both drivers and etcd itself: what a test says
// of a store is what etcd does.
func eachSubject(t *testing.T, test func(*testing.T, subject)) {
	for _, name := range []string{"kine-sqlite", "sqlite", "etcd"} {
		t.Run(name, func(t *testing.T) { test(t, newSubject(t, name)) })
	}
}

func newSubject(t testing.TB, name string) subject {
	t.Helper()
	if name == "etcd" {
		return subject{name, etcd(t), true, true}
	}
	s, err := Open(t.Context(), Config{Driver: name, Path: filepath.Join(t.TempDir(), "state.db"), CompactEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	c := s.Client().Client
	t.Cleanup(func() { c.Close() })
	return subject{name, c, name == "sqlite", name == "sqlite"}
}

// etcd runs a server of etcd's, and returns a client of it that needs no network.
func etcd(t testing.TB) *clientv3.Client {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir = t.TempDir()
	cfg.LogLevel = "fatal"
	cfg.LogOutputs = []string{filepath.Join(t.TempDir(), "log")}
	local := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.ListenClientUrls, cfg.ListenPeerUrls = local, local
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	c := v3client.New(e.Server)
	t.Cleanup(func() { c.Close() })
	return c
}

// entry is a key at one time. A key that is not there has no revision.
type entry struct {
	value                 string
	mod, created, version int64
}

// past is what the store had after each revision, from that of its first entry on.
type past struct {
	base   int64
	states []map[string]entry
	events []entry // that led to each state; without a created revision if deleted
	keys   []string
}

func (p *past) now() map[string]entry { return p.states[len(p.states)-1] }

func (p *past) rev() int64 { return p.base + int64(len(p.states)) - 1 }

func (p *past) at(rev int64) map[string]entry { return p.states[rev-p.base] }

func (p *past) set(key string, e entry) {
	next := map[string]entry{}
	for k, v := range p.now() {
		next[k] = v
	}
	if e.created == 0 {
		delete(next, key)
	} else {
		next[key] = e
	}
	p.states, p.events, p.keys = append(p.states, next), append(p.events, e), append(p.keys, key)
}

func (s subject) describe(kvs []*mvccpb.KeyValue) string {
	var out []string
	for _, kv := range kvs {
		out = append(out, s.line(string(kv.Key), entry{string(kv.Value), kv.ModRevision, kv.CreateRevision, kv.Version}))
	}
	return strings.Join(out, "\n")
}

func (s subject) line(key string, e entry) string {
	if !s.versions {
		e.version = 0
	}
	return fmt.Sprintf("%s=%q at %d of %d, version %d", key, e.value, e.mod, e.created, e.version)
}

func (s subject) wanted(state map[string]entry, from, end string) []string {
	var out []string
	for k, e := range state {
		if k >= from && k < end {
			out = append(out, s.line(k, e))
		}
	}
	slices.Sort(out)
	return out
}

// shapes are the transactions of the API server.
func createTxn(c *clientv3.Client, ctx context.Context, key, value string, lease clientv3.LeaseID) (*clientv3.TxnResponse, error) {
	return c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, value, clientv3.WithLease(lease))).Commit()
}

func updateTxn(c *clientv3.Client, ctx context.Context, key, value string, mod int64) (*clientv3.TxnResponse, error) {
	return c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", mod)).Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
}

func deleteTxn(c *clientv3.Client, ctx context.Context, key string, mod int64) (*clientv3.TxnResponse, error) {
	return c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", mod)).Then(clientv3.OpDelete(key)).Else(clientv3.OpGet(key)).Commit()
}

// TestAnyHistoryIsThatOfEtcd makes random changes one after another, and compares
// every answer, lists of the past and watches with what a model says. etcd is
// asked the same, which shows that the model is right.
func TestAnyHistoryIsThatOfEtcd(t *testing.T) {
	eachSubject(t, func(t *testing.T, s subject) {
		t.Parallel()
		for seed := range uint64(4) {
			s.history(t, rand.New(rand.NewPCG(seed, 7)), fmt.Sprintf("/history/%d/", seed))
		}
	})
}

func (s subject) history(t *testing.T, rnd *rand.Rand, prefix string) {
	t.Helper()
	ctx, end := t.Context(), clientv3.GetPrefixRangeEnd(prefix)
	first, err := s.Get(ctx, prefix)
	if err != nil {
		t.Fatal(err)
	}
	p := &past{base: first.Header.Revision, states: []map[string]entry{{}}}
	compacted := p.base
	for step := range 300 {
		key := fmt.Sprintf("%s%c", prefix, 'a'+rune(rnd.IntN(6)))
		value := fmt.Sprintf("%d-%s", step, strings.Repeat("x", rnd.IntN(200)))
		was, exists := p.now()[key]
		at := max(was.mod-int64(rnd.IntN(5)/4), 0) // mostly right
		next := entry{value, p.rev() + 1, was.created, was.version + 1}
		if !exists {
			next.created = next.mod
		}
		var r *clientv3.TxnResponse
		done := at == was.mod
		switch kind := rnd.IntN(13); kind {
		case 0, 1, 2:
			r, err = createTxn(s.Client, ctx, key, value, 0)
			done = !exists
		case 3, 4, 5, 6:
			r, err = updateTxn(s.Client, ctx, key, value, at)
		case 7:
			if at == 0 {
				continue // the API server deletes what it has read
			}
			r, err = deleteTxn(s.Client, ctx, key, at)
			next = entry{mod: next.mod}
		case 8, 9:
			s.list(t, p, rnd, prefix, end, compacted)
			continue
		case 10:
			s.watch(t, p, prefix, end, compacted+rnd.Int64N(p.rev()-compacted+1))
			continue
		case 11:
			if s.compacts && rnd.IntN(3) == 0 && p.rev() > compacted {
				to := compacted + 1 + rnd.Int64N(p.rev()-compacted)
				if _, err := s.Compact(ctx, to); err != nil {
					t.Fatalf("compact at %d: %v", to, err)
				}
				if _, err := s.Compact(ctx, to); !errors.Is(err, rpctypes.ErrCompacted) {
					t.Fatalf("compact at %d once more: %v", to, err)
				}
				if _, err := s.Compact(ctx, p.rev()+1); !errors.Is(err, rpctypes.ErrFutureRev) {
					t.Fatalf("compact the future: %v", err)
				}
				compacted = to
			}
			continue
		case 12:
			r, err := s.Get(ctx, key)
			if err != nil || r.Header.Revision != p.rev() || s.describe(r.Kvs) != strings.Join(s.wanted(p.now(), key, key+"\x00"), "") {
				t.Fatalf("get %s: %v, %v", key, r, err)
			}
			continue
		}
		if err != nil || r.Succeeded != done {
			t.Fatalf("step %d: change of %s, which is %+v, at %d: %v, %v", step, key, was, at, r, err)
		}
		if done {
			if p.set(key, next); r.Header.Revision != p.rev() {
				t.Fatalf("step %d: revision %d, wanted %d", step, r.Header.Revision, p.rev())
			}
			continue
		}
		// What a refused update or delete is answered with saves the API server a read.
		if len(r.Responses) > 0 {
			if got := s.describe(r.Responses[0].GetResponseRange().Kvs); got != strings.Join(s.wanted(p.now(), key, key+"\x00"), "") {
				t.Fatalf("step %d: a refused change is answered with %s, wanted %+v", step, got, was)
			}
		}
	}
	s.watch(t, p, prefix, end, compacted)
}

func (s subject) list(t *testing.T, p *past, rnd *rand.Rand, prefix, end string, compacted int64) {
	t.Helper()
	rev := p.base + rnd.Int64N(p.rev()-p.base+2) // the future is part of it
	limit := rnd.Int64N(4)
	opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(limit)}
	present := rnd.IntN(3) == 0
	if present {
		rev = p.rev()
	} else {
		opts = append(opts, clientv3.WithRev(rev))
	}
	keysOnly := rnd.IntN(5) == 0
	if keysOnly {
		opts = append(opts, clientv3.WithKeysOnly())
	}
	r, err := s.Get(t.Context(), prefix, opts...)
	switch {
	case rev > p.rev():
		if !errors.Is(err, rpctypes.ErrFutureRev) {
			t.Fatalf("list of the future: %v, %v", r, err)
		}
		return
	case !present && rev < compacted:
		if !errors.Is(err, rpctypes.ErrCompacted) {
			t.Fatalf("list at %d, compacted at %d: %v, %v", rev, compacted, r, err)
		}
		return
	case err != nil:
		t.Fatal(err)
	}
	state := p.at(rev)
	if keysOnly {
		state = map[string]entry{}
		for k, e := range p.at(rev) {
			e.value = ""
			state[k] = e
		}
	}
	want := s.wanted(state, prefix, end)
	count, more := int64(len(want)), limit > 0 && int64(len(want)) > limit
	if more {
		want = want[:limit]
	}
	if got := s.describe(r.Kvs); got != strings.Join(want, "\n") || r.More != more || r.Count != count || r.Header.Revision != p.rev() {
		t.Fatalf("list at %d of %d, limit %d: %d, more: %v, at %d\n%s\nwanted %d, more: %v\n%s",
			rev, p.rev(), limit, r.Count, r.More, r.Header.Revision, got, count, more, strings.Join(want, "\n"))
	}
}

// watch replays the history from a revision on, up to the present, which a
// progress notification tells.
func (s subject) watch(t *testing.T, p *past, prefix, end string, from int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(t.Context()), time.Minute)
	defer cancel()
	w := s.Watch(ctx, prefix, clientv3.WithRange(end), clientv3.WithRev(from+1), clientv3.WithPrevKV())
	next := from + 1
	for next <= p.rev() {
		r, ok := <-w
		if !ok || r.Err() != nil {
			t.Fatalf("watch from %d: %v, %v", from+1, ok, r.Err())
		}
		for _, ev := range r.Events {
			i := next - p.base
			key, e := p.keys[i-1], p.events[i-1]
			want := s.line(key, e)
			if ev.Type == mvccpb.DELETE {
				ev.Kv.Value, ev.Kv.CreateRevision, ev.Kv.Version = nil, 0, 0 // kine tells those of before
			}
			if got := s.describe([]*mvccpb.KeyValue{ev.Kv}); got != want || (ev.Type == mvccpb.DELETE) != (e.created == 0) {
				t.Fatalf("event %s of %s, wanted %s", ev.Type, got, want)
			}
			// What was before the first may have been compacted.
			if was, existed := p.at(next - 1)[key]; existed && was.mod > from {
				if !s.versions && ev.PrevKv != nil {
					was.created, ev.PrevKv.CreateRevision = 0, 0 // kine does not always know
				}
				if ev.PrevKv == nil || s.describe([]*mvccpb.KeyValue{ev.PrevKv}) != s.line(key, was) {
					t.Fatalf("before event %s it was %v, wanted %s", want, ev.PrevKv, s.line(key, was))
				}
			}
			next++
		}
	}
	if from == p.rev() {
		return // etcd tells no progress before the start
	}
	for again := time.NewTicker(50 * time.Millisecond); ; {
		// etcd forgets that it was asked while it finds events of the past.
		if err := s.RequestProgress(ctx); err != nil {
			t.Fatal(err)
		}
		select {
		case r := <-w:
			if !r.IsProgressNotify() || r.Header.Revision != p.rev() {
				t.Fatalf("progress: %+v, wanted %d", r, p.rev())
			}
			return
		case <-again.C:
		}
	}
}

// TestClientsSeeOneStore has clients work on few keys at once. Their requests are
// as if they had been made one after another, in an order in which none comes
// before one that was answered earlier (linearizability); lists show the store as
// it was at their revision, and so do watches, of which none is told progress
// before it has all events up to there.
func TestClientsSeeOneStore(t *testing.T) {
	eachSubject(t, func(t *testing.T, s subject) {
		if s.name == "kine-sqlite" {
			t.Skip("kine reads a list and its revision, and the answer to a refused change, one after another")
		}
		for seed := range uint64(3) {
			s.concurrent(t, seed)
		}
	})
}

// request is what one client did to a key, as porcupine is told.
type request struct {
	key, value string
	kind       int // create, update, remove or get
	mod        int64
}

const (
	create = iota
	update
	remove
	get
)

type answer struct {
	done bool
	rev  int64 // of the change, if it was done
	is   entry // what is there otherwise, if told
	told bool
}

// register is the model of one key: its entry, of which the revision counts too.
var register = porcupine.Model{
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, o := range all {
			byKey[o.Input.(request).key] = append(byKey[o.Input.(request).key], o)
		}
		var parts [][]porcupine.Operation
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return entry{} },
	Step: func(state, input, output any) (bool, any) {
		is, in, out := state.(entry), input.(request), output.(answer)
		if in.kind == get {
			return is == out.is, is
		}
		possible := is.mod == in.mod
		if possible != out.done || out.told && out.is != is {
			return false, is
		}
		if !out.done {
			return true, is
		}
		if out.rev <= is.mod {
			return false, is
		}
		if in.kind == remove {
			return true, entry{}
		}
		return true, entry{value: in.value, mod: out.rev}
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v: %+v", input, output) },
}

func toEntry(kvs []*mvccpb.KeyValue) entry {
	if len(kvs) == 0 {
		return entry{}
	}
	return entry{value: string(kvs[0].Value), mod: kvs[0].ModRevision}
}

func (s subject) concurrent(t *testing.T, seed uint64) {
	t.Helper()
	const clients, requests, keys = 8, 150, 4
	prefix := fmt.Sprintf("/concurrent/%d/", seed)
	first, err := s.Get(t.Context(), prefix)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	watched := s.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(first.Header.Revision+1), clientv3.WithProgressNotify())

	var wg sync.WaitGroup
	var mu sync.Mutex
	var operations []porcupine.Operation
	var lists []*clientv3.GetResponse
	for client := range clients {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(client)))
			known := map[string]int64{}
			for n := range requests {
				in := request{key: fmt.Sprint(prefix, rnd.IntN(keys)), value: fmt.Sprint(client, "-", n), kind: rnd.IntN(5)}
				if in.kind > get { // the whole
					r, err := s.Get(ctx, prefix, clientv3.WithPrefix())
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					lists = append(lists, r)
					mu.Unlock()
					continue
				}
				if in.mod = known[in.key]; in.kind == create {
					in.mod = 0
				} else if in.kind == remove && in.mod == 0 {
					in.kind = get
				}
				call := time.Now().UnixNano()
				out, err := s.ask(ctx, in)
				if err != nil {
					t.Errorf("%+v: %v", in, err)
					return
				}
				switch {
				case out.done && in.kind != remove:
					known[in.key] = out.rev
				case out.done:
					known[in.key] = 0
				case out.told:
					known[in.key] = out.is.mod
				}
				mu.Lock()
				operations = append(operations, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: time.Now().UnixNano()})
				mu.Unlock()
				if n%20 == 0 {
					_ = s.RequestProgress(ctx)
				}
			}
		})
	}
	wg.Wait()
	last, err := createTxn(s.Client, ctx, prefix+"end", "", 0)
	if err != nil || t.Failed() {
		t.Fatal(err)
	}
	if !porcupine.CheckOperations(register, operations) {
		t.Errorf("seed %d: the answers fit no order of the requests", seed)
	}

	// Events, and the store after each.
	states := map[int64]map[string]entry{first.Header.Revision: {}}
	rev, told := first.Header.Revision, first.Header.Revision
	for rev < last.Header.Revision {
		r, ok := <-watched
		if !ok || r.Err() != nil {
			t.Fatalf("watch: %v, %v", ok, r.Err())
		}
		for _, ev := range r.Events {
			if ev.Kv.ModRevision != rev+1 || ev.Kv.ModRevision <= told {
				t.Fatalf("event %d comes after %d, and after progress to %d", ev.Kv.ModRevision, rev, told)
			}
			next := map[string]entry{}
			for k, e := range states[rev] {
				next[k] = e
			}
			rev++
			if delete(next, string(ev.Kv.Key)); ev.Type == mvccpb.PUT {
				next[string(ev.Kv.Key)] = entry{value: string(ev.Kv.Value), mod: ev.Kv.ModRevision}
			}
			states[rev] = next
		}
		if r.IsProgressNotify() {
			if told = r.Header.Revision; told > rev {
				t.Fatalf("progress to %d, and the last event was %d", told, rev)
			}
		}
	}
	for _, r := range lists {
		state := states[r.Header.Revision]
		if len(r.Kvs) != len(state) {
			t.Fatalf("a list at %d has %d keys, wanted %d", r.Header.Revision, len(r.Kvs), len(state))
		}
		for _, kv := range r.Kvs {
			if toEntry([]*mvccpb.KeyValue{kv}) != state[string(kv.Key)] {
				t.Fatalf("a list at %d has %v, wanted %+v", r.Header.Revision, kv, state[string(kv.Key)])
			}
		}
	}
	if !slices.IsSortedFunc(lists, func(a, b *clientv3.GetResponse) int { return cmp.Compare(a.Header.Revision, b.Header.Revision) }) {
		t.Log("lists were answered out of order, which their clients cannot tell")
	}
}

func (s subject) ask(ctx context.Context, in request) (answer, error) {
	if in.kind == get {
		r, err := s.Get(ctx, in.key)
		if err != nil {
			return answer{}, err
		}
		return answer{is: toEntry(r.Kvs), told: true}, nil
	}
	var r *clientv3.TxnResponse
	var err error
	switch in.kind {
	case create:
		r, err = createTxn(s.Client, ctx, in.key, in.value, 0)
	case update:
		r, err = updateTxn(s.Client, ctx, in.key, in.value, in.mod)
	case remove:
		r, err = deleteTxn(s.Client, ctx, in.key, in.mod)
	}
	if err != nil {
		return answer{}, err
	}
	out := answer{done: r.Succeeded, rev: r.Header.Revision}
	if !r.Succeeded && in.kind != create {
		out.is, out.told = toEntry(r.Responses[0].GetResponseRange().Kvs), true
	}
	return out, nil
}

// TestKeysEndWithTheirLease waits for what etcd takes a little longer to do.
func TestKeysEndWithTheirLease(t *testing.T) {
	eachSubject(t, func(t *testing.T, s subject) {
		t.Parallel()
		lease, err := s.Grant(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		r, err := createTxn(s.Client, t.Context(), "/lease/a", "x", lease.ID)
		if err != nil || !r.Succeeded {
			t.Fatal(r, err)
		}
		if _, err := createTxn(s.Client, t.Context(), "/lease/b", "x", 0); err != nil {
			t.Fatal(err)
		}
		w := s.Watch(t.Context(), "/lease/", clientv3.WithPrefix(), clientv3.WithRev(r.Header.Revision+2))
		if got := <-w; len(got.Events) != 1 || got.Events[0].Type != mvccpb.DELETE || string(got.Events[0].Kv.Key) != "/lease/a" {
			t.Errorf("got %+v", got)
		}
	})
}
