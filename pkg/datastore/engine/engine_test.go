package engine

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	_ "github.com/mattn/go-sqlite3"
)

func openDB(t testing.TB, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+path+"?_journal_mode=WAL&_synchronous=FULL&_busy_timeout=5000&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// start opens a store and returns what ends it. Others run beside.
func start(t testing.TB, path string, cfg Config, beside ...func()) (*Engine, func()) {
	t.Helper()
	db := openDB(t, path)
	e, err := New(t.Context(), db, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range beside {
		go f()
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	if err := e.Start(ctx); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		cancel()
		e.Wait()
		db.Close()
	})
	t.Cleanup(stop)
	return e, stop
}

func (e *Engine) must(t testing.TB, rev int64, err error) int64 {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func (e *Engine) created(t testing.TB) func(int64, error) int64 {
	return func(rev int64, err error) int64 {
		t.Helper()
		return e.must(t, rev, err)
	}
}

// model is the state of the store after each revision.
type model []map[string]server.KeyValue

func (m model) now() map[string]server.KeyValue { return m[len(m)-1] }

func (m *model) set(rev int64, kv *server.KeyValue, key string) {
	for int64(len(*m)) <= rev {
		next := map[string]server.KeyValue{}
		for k, v := range m.now() {
			next[k] = v
		}
		*m = append(*m, next)
	}
	if kv == nil {
		delete(m.now(), key)
	} else {
		m.now()[key] = *kv
	}
}

func listed(kvs []*server.KeyValue) string {
	var out []string
	for _, kv := range kvs {
		out = append(out, describe(*kv))
	}
	return strings.Join(out, "\n")
}

func describe(kv server.KeyValue) string {
	return fmt.Sprintf("%s=%s at %d of %d, version %d", kv.Key, kv.Value, kv.ModRevision, kv.CreateRevision, kv.Version)
}

func (m model) list(rev int64, key, end string) string {
	var out []string
	for k, kv := range m[rev] {
		if within(k, key, end) {
			out = append(out, describe(kv))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// TestAnyHistoryReadsAsItWasWritten makes random changes, and compares every
// answer, every list of the past and every watch with a model; also after
// compactions and when the store has been opened anew.
func TestAnyHistoryReadsAsItWasWritten(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 1))
			path := filepath.Join(t.TempDir(), "state.db")
			// A ring that is too short for most of what is asked for.
			cfg := Config{RingBytes: 4000, CompactEvery: time.Hour, IndexLag: 6}
			e, stop := start(t, path, cfg)
			first, _ := e.CurrentRevision(t.Context())
			m := model{{}}
			_, health, err := e.Get(t.Context(), server.HealthKey, 0, false)
			if err != nil {
				t.Fatal(err)
			}
			m.set(first, health, "")
			compacted := int64(0)
			for step := range 600 {
				ctx := t.Context()
				key := fmt.Sprintf("/k/%c", 'a'+rune(rnd.IntN(6)))
				value := fmt.Appendf(nil, "%d-%s", step, strings.Repeat("x", rnd.IntN(300)))
				was, exists := m.now()[key]
				switch rnd.IntN(12) {
				case 0, 1, 2:
					rev, err := e.Create(ctx, key, value, 0)
					if exists != errors.Is(err, server.ErrKeyExists) || !exists && err != nil {
						t.Fatalf("create %s, which exists: %v: %v", key, exists, err)
					}
					if !exists {
						m.set(rev, &server.KeyValue{Key: key, Value: value, Version: 1, CreateRevision: rev, ModRevision: rev}, key)
					}
				case 3, 4, 5, 6:
					at := max(was.ModRevision-int64(rnd.IntN(4)/3), 0)
					if !exists {
						at = int64(rnd.IntN(2))
					}
					rev, kv, ok, err := e.Update(ctx, key, value, at, 0)
					if err != nil || ok != (at == was.ModRevision) {
						t.Fatalf("update %s of %d at %d: %v, %v", key, was.ModRevision, at, ok, err)
					}
					if !exists {
						was.CreateRevision = rev
					}
					if ok {
						m.set(rev, &server.KeyValue{Key: key, Value: value, Version: was.Version + 1, CreateRevision: was.CreateRevision, ModRevision: rev}, key)
					} else if exists && describe(*kv) != describe(was) {
						t.Fatalf("the answer to a wrong update: %s, wanted %s", describe(*kv), describe(was))
					}
				case 7, 8:
					at := int64(0)
					if rnd.IntN(2) == 0 {
						at = max(was.ModRevision-int64(rnd.IntN(2)), 1)
					}
					rev, kv, ok, err := e.Delete(ctx, key, at)
					if err != nil || ok != (exists && (at == 0 || at == was.ModRevision) || !exists && at == 0) {
						t.Fatalf("delete %s of %d at %d: %v, %v", key, was.ModRevision, at, ok, err)
					}
					if exists && describe(*kv) != describe(was) {
						t.Fatalf("what was deleted: %s, wanted %s", describe(*kv), describe(was))
					}
					if exists && ok {
						m.set(rev, nil, key)
					}
				case 9:
					rev := int64(rnd.IntN(len(m)))
					now, kvs, err := e.List(ctx, "/k/", "/k0", 0, rev, false)
					switch {
					case rev == 0:
						rev = now
					case rev < compacted:
						if !errors.Is(err, server.ErrCompacted) {
							t.Fatalf("list at %d, compacted at %d: %v", rev, compacted, err)
						}
						continue
					}
					if err != nil || listed(kvs) != m.list(rev, "/k/", "/k0") {
						t.Fatalf("list at %d of %d: %v\n%s\nwanted\n%s", rev, now, err, listed(kvs), m.list(rev, "/k/", "/k0"))
					}
					if _, n, err := e.Count(ctx, "/k/", "/k0", rev); err != nil || n != int64(len(kvs)) {
						t.Fatalf("count at %d: %d, %v, wanted %d", rev, n, err, len(kvs))
					}
				case 10:
					if rnd.IntN(3) == 0 {
						to := int64(rnd.IntN(len(m)))
						if _, err := e.Compact(ctx, to); err != nil && (to > compacted || !errors.Is(err, server.ErrCompacted)) {
							t.Fatal(err)
						}
						compacted = max(compacted, to)
					}
				case 11:
					if rnd.IntN(5) == 0 {
						stop()
						e, stop = start(t, path, cfg)
					}
				}
			}
			watchAll(t, e, m, max(compacted, 1))
			if _, _, err := e.List(t.Context(), "/k/", past, 0, int64(len(m)), false); !errors.Is(err, server.ErrFutureRev) {
				t.Errorf("list of the future: %v", err)
			}
		})
	}
}

// watchAll replays the history from a revision on.
func watchAll(t *testing.T, e *Engine, m model, from int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if from > 1 {
		if r := e.Watch(ctx, "/k/", "/k0", from-1); r.CompactRevision != from {
			t.Errorf("a watch from before %d: %+v", from, r)
		}
	}
	w := e.Follow(ctx, "/k/", "/k0", from)
	had := from - 1
	for rev := from; rev < int64(len(m)); {
		for _, ev := range <-w.Events {
			for ; rev < ev.KV.ModRevision; rev++ {
				if rev > from && m.list(rev, "/k/", "/k0") != m.list(rev-1, "/k/", "/k0") {
					t.Fatalf("revision %d was left out", rev)
				}
			}
			was, existed := m[rev-1][ev.KV.Key]
			is, exists := m[rev][ev.KV.Key]
			if ev.Delete == exists || ev.Create == existed && !ev.Delete || exists && describe(*ev.KV) != describe(is) {
				t.Fatalf("event %+v %s, wanted %s", ev, describe(*ev.KV), describe(is))
			}
			if existed && was.ModRevision >= from && (ev.PrevKV == nil || describe(*ev.PrevKV) != describe(was)) {
				t.Fatalf("event at %d: before it was %v, wanted %s", rev, ev.PrevKV, describe(was))
			}
			had = rev
			rev++
		}
		if !w.Behind(had) {
			break
		}
	}
	for rev := had + 1; rev < int64(len(m)); rev++ {
		if m.list(rev, "/k/", "/k0") != m.list(rev-1, "/k/", "/k0") {
			t.Fatalf("the watch is not behind, and revision %d was left out", rev)
		}
	}
}

func TestKeysEndWithTheirLeases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	e, stop := start(t, path, Config{})
	rev, err := e.Create(t.Context(), "/short", nil, 1)
	e.must(t, rev, err)
	_, err = e.Create(t.Context(), "/renewed", nil, 1)
	e.must(t, rev, err)
	_, kv, _ := e.Get(t.Context(), "/renewed", 0, false)
	if _, _, ok, err := e.Update(t.Context(), "/renewed", nil, kv.ModRevision, 100); !ok || err != nil {
		t.Fatal(ok, err)
	}
	w := e.Follow(t.Context(), "/short", "", rev+1)
	if evs := <-w.Events; len(evs) != 1 || !evs[0].Delete {
		t.Errorf("events: %+v", evs)
	}
	if _, kv, err := e.Get(t.Context(), "/renewed", 0, false); kv == nil || err != nil {
		t.Errorf("a key with a longer lease: %v, %v", kv, err)
	}
	_, err = e.Create(t.Context(), "/kept", nil, 1)
	e.must(t, 0, err)
	stop()
	e, _ = start(t, path, Config{})
	now, _ := e.CurrentRevision(t.Context())
	w = e.Follow(t.Context(), "/kept", "", now)
	for evs := range w.Events {
		if evs[0].Delete {
			return
		}
	}
	t.Error("a lease did not end in a store that was opened anew")
}

func TestManyClientsGetEachOthersChanges(t *testing.T) {
	e, _ := start(t, filepath.Join(t.TempDir(), "state.db"), Config{RingBytes: 10000, CompactEvery: time.Millisecond, CompactRetain: 100000})
	const clients, changes = 16, 100
	var wg sync.WaitGroup
	w := e.Follow(t.Context(), "/c/", "/c0", 1)
	for c := range clients {
		wg.Go(func() {
			key := fmt.Sprintf("/c/%d", c)
			rev, err := e.Create(t.Context(), key, nil, 0)
			for i := 1; err == nil && i < changes; i++ {
				var ok bool
				if rev, _, ok, err = e.Update(t.Context(), key, fmt.Append(nil, i), rev, 0); err == nil && !ok {
					err = errors.New("a change of nobody else's was refused")
				}
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	last, n := int64(0), 0
	for evs := range w.Events {
		for _, ev := range evs {
			if ev.KV.ModRevision <= last {
				t.Fatalf("revision %d comes after %d", ev.KV.ModRevision, last)
			}
			last = ev.KV.ModRevision
			n++
		}
		if n == clients*changes {
			break
		}
	}
	wg.Wait()
	_, kvs, err := e.List(t.Context(), "/c/", "/c0", 0, 0, false)
	if err != nil || len(kvs) != clients {
		t.Fatal(len(kvs), err)
	}
	for _, kv := range kvs {
		if string(kv.Value) != fmt.Sprint(changes-1) || kv.Version != changes {
			t.Errorf("%s", describe(*kv))
		}
	}
}

func TestLargeAndTooManyChangesAreRefused(t *testing.T) {
	e, stop := start(t, filepath.Join(t.TempDir(), "state.db"), Config{QueueBytes: 1000})
	if _, err := e.Create(t.Context(), "/a", make([]byte, maxRequest), 0); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large a value: %v", err)
	}
	if _, err := e.Create(t.Context(), "/a", make([]byte, 1000), 0); !errors.Is(err, ErrBusy) {
		t.Errorf("a change beyond what may wait: %v", err)
	}
	stop()
	if _, err := e.Create(t.Context(), "/a", nil, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("a change of a closed store: %v", err)
	}
}

// SQLite keeps what others write as they wrote it.
func TestValuesThatOthersWroteAsTextAreRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	e, stop := start(t, path, Config{})
	for _, key := range []string{"a", "b"} {
		if _, err := e.Create(t.Context(), key, []byte("binary"), 0); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	db := openDB(t, path)
	if _, err := db.ExecContext(t.Context(), "UPDATE log SET value = 'text' WHERE name IN ('a', 'b')"); err != nil {
		t.Fatal(err)
	}
	db.Close()
	e, _ = start(t, path, Config{})
	for _, end := range []string{"", "c"} { // by itself, and in a range
		_, kvs, err := e.List(t.Context(), "a", end, 0, 0, false)
		if err != nil || len(kvs) == 0 {
			t.Fatal(err, len(kvs))
		}
		for _, kv := range kvs {
			if string(kv.Value) != "text" {
				t.Errorf("%s is %q", kv.Key, kv.Value)
			}
		}
	}
}

// While the disk is at work the next changes are decided, upon those that are on
// their way; nobody knows of either before they have arrived.
func TestChangesAreKnownOnceTheyAreOnTheDisk(t *testing.T) {
	flushing, arrived := make(chan struct{}), make(chan error)
	e, _ := start(t, filepath.Join(t.TempDir(), "state.db"), Config{Flush: func() error {
		select {
		case flushing <- struct{}{}:
			return <-arrived
		case <-t.Context().Done():
			return nil
		}
	}}, func() {
		<-flushing
		arrived <- nil
	})
	before, _ := e.CurrentRevision(t.Context())
	type answer struct {
		rev int64
		err error
	}
	create := func(key string) <-chan answer {
		a := make(chan answer, 1)
		go func() {
			rev, err := e.Create(t.Context(), key, []byte("x"), 0)
			a <- answer{rev, err}
		}()
		return a
	}
	first := create("/a")
	<-flushing
	again, other := create("/a"), create("/b")
	if now, kv, err := e.Get(t.Context(), "/a", 0, false); now != before || kv != nil || err != nil {
		t.Errorf("before it is on the disk, revision %d has %v, %v", now, kv, err)
	}
	arrived <- nil
	if a := <-first; a.rev != before+1 || a.err != nil {
		t.Errorf("the first change: %v", a)
	}
	<-flushing
	if now, kv, err := e.Get(t.Context(), "/a", 0, false); now != before+1 || kv == nil || err != nil {
		t.Errorf("once it is on the disk, revision %d has %v, %v", now, kv, err)
	}
	w := e.Follow(t.Context(), "/b", "", before+1)
	arrived <- errors.New("input/output error")
	if a := <-other; a.err == nil || !strings.Contains(a.err.Error(), "input/output error") {
		t.Errorf("a change that may not be on the disk: %v", a)
	}
	// It was decided within the same batch, or after the disk failed.
	if a := <-again; a.err == nil {
		t.Errorf("a key was made twice: %v", a)
	}
	// From then on nothing is written, and what is known can be read.
	if a := <-create("/c"); a.err == nil || !strings.Contains(a.err.Error(), "input/output error") {
		t.Errorf("a change after the disk failed: %v", a)
	}
	if now, kvs, err := e.List(t.Context(), "/", "0", 0, 0, true); now != before+1 || len(kvs) != 2 || err != nil { // the store makes a key of its own
		t.Errorf("in the end revision %d has %d keys, %v", now, len(kvs), err)
	}
	select {
	case events := <-w.Events:
		t.Errorf("a watch was told of %v", events)
	default:
	}
}

// A watch of what seldom changes does not read what happened elsewhere meanwhile.
func TestQuietWatchesReadNothingFromTheFile(t *testing.T) {
	e, _ := start(t, filepath.Join(t.TempDir(), "state.db"), Config{RingBytes: 4000})
	w, _, err := e.Subscribe("/quiet/", "/quiet0", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	noReading, cancel := context.WithCancel(t.Context())
	cancel()
	write := func(key string, times int) (last int64) {
		for range times {
			now, _ := e.CurrentRevision(t.Context())
			last = e.created(t)(e.Create(t.Context(), fmt.Sprint(key, now), make([]byte, 100), 0))
		}
		return last
	}
	for range 3 {
		last := write("/busy/", 100)
		if events, more, err := w.Next(noReading); len(events) > 0 || more || err != nil || w.UpTo() != last {
			t.Fatalf("while it was quiet: %v, %v, %v, up to %d of %d", events, more, err, w.UpTo(), last)
		}
		write("/busy/", 100)
		last = write("/quiet/", 1)
		if events, more, err := w.Next(noReading); len(events) != 1 || more || err != nil || events[0].Kv.ModRevision != last || w.UpTo() != last {
			t.Fatalf("when something happened: %v, %v, %v, up to %d of %d", events, more, err, w.UpTo(), last)
		}
	}
}

// The next start reads what the index does not have.
func TestTheIndexFollowsWhenTheStoreHasRest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	seed := func() ([]Entry, error) {
		return []Entry{{Key: "/a", Value: []byte("1")}, {Key: "/b", Value: []byte("2")}}, nil
	}
	e, stop := start(t, path, Config{IndexLag: 10, Seed: seed})
	db := openDB(t, path)
	indexed := func() (rev int64) {
		t.Helper()
		if err := db.QueryRow("SELECT v FROM meta WHERE k = 'indexed'").Scan(&rev); err != nil {
			t.Fatal(err)
		}
		return rev
	}
	if rev := indexed(); rev != 2 {
		t.Errorf("a new store is indexed up to revision %d, want that of its seed", rev)
	}
	hot := int64(1)
	for i := range 50 {
		e.created(t)(e.Create(t.Context(), fmt.Sprint("/c/", i), nil, 0))
		switch _, kv, ok, err := e.Update(t.Context(), "/a", []byte(fmt.Sprint(i)), hot, 0); {
		case err != nil || !ok:
			t.Fatalf("update: %v, %v", ok, err)
		default:
			hot = kv.ModRevision
		}
		if i%10 == 0 {
			for _, gone := range []string{"/b", "/c/" + fmt.Sprint(i)} {
				if _, _, _, err := e.Delete(t.Context(), gone, 0); err != nil {
					t.Fatal(err)
				}
			}
			e.created(t)(e.Create(t.Context(), "/b", nil, 0))
		}
	}
	last := hot
	for limit := time.Now().Add(time.Minute); indexed() < last-10; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("indexed up to %d of %d", indexed(), last)
		}
	}
	_, want, err := e.List(t.Context(), "/", "0", 0, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	e, _ = start(t, path, Config{})
	if rev, got, err := e.List(t.Context(), "/", "0", 0, 0, false); err != nil || rev != last || listed(got) != listed(want) {
		t.Errorf("opened anew, at %d of %d: %v, %s\nbefore: %s", rev, last, err, listed(got), listed(want))
	}
}
