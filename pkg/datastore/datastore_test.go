package datastore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// eachDriver runs a test with each of the drivers.
func eachDriver(t *testing.T, test func(*testing.T)) {
	for _, d := range []string{"kine-sqlite", "sqlite"} {
		t.Run(d, test)
	}
}

// driverOf is the one of the test that runs.
func driverOf(t *testing.T) string { return strings.Split(t.Name(), "/")[1] }

func open(t *testing.T, path string, seed ...KeyValue) (*Store, *clientv3.Client) {
	t.Helper()
	s, err := Open(t.Context(), Config{Driver: driverOf(t), Path: path, Seed: func() ([]KeyValue, error) { return seed, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	c := s.Client().Client
	t.Cleanup(func() { c.Close() })
	return s, c
}

func TestNewStoreHasItsSeed(t *testing.T) { eachDriver(t, testNewStoreHasItsSeed) }

func testNewStoreHasItsSeed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db", "state.db")
	s, c := open(t, path, KeyValue{Key: "/registry/a", Value: []byte("1")}, KeyValue{Key: "/registry/b", Value: []byte("2")})
	r, err := c.Get(t.Context(), "/registry/b")
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "2" {
		t.Fatalf("got %v", r.Kvs)
	}
	s.Close()

	// The seed is for new stores alone, and the file is free again after Close.
	_, c = open(t, path, KeyValue{Key: "/registry/c", Value: []byte("3")})
	for key, want := range map[string]int{"/registry/a": 1, "/registry/c": 0} {
		r, err := c.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Kvs) != want {
			t.Errorf("%s: %d entries, want %d", key, len(r.Kvs), want)
		}
	}
}

func TestBrokenStoreIsToldAndLeftAlone(t *testing.T) {
	eachDriver(t, testBrokenStoreIsToldAndLeftAlone)
}

func testBrokenStoreIsToldAndLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	garbage := bytes.Repeat([]byte("not a database "), 1000)
	if err := os.WriteFile(path, garbage, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), Config{Driver: driverOf(t), Path: path})
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("error %v does not name the file", err)
	}
	if left, err := os.ReadFile(path); err != nil || !bytes.Equal(left, garbage) {
		t.Fatalf("the damaged file was changed (%v)", err)
	}
}

func TestEngineTakesKinesFileOverForGood(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	open := func(driver string) (*Store, error) {
		return Open(t.Context(), Config{Driver: driver, Path: path, CompactEvery: 50 * time.Millisecond, Seed: func() ([]KeyValue, error) {
			return []KeyValue{{Key: "/a/seed", Value: []byte("0")}, {Key: "/a/gone", Value: []byte("0")}}, nil
		}})
	}
	s, err := open("kine-sqlite")
	if err != nil {
		t.Fatal(err)
	}
	c := s.Client().Client
	put := func(key, value string) int64 {
		t.Helper()
		r, err := c.Put(t.Context(), key, value)
		if err != nil {
			t.Fatal(err)
		}
		return r.Header.Revision
	}
	for i := range 3000 {
		put(fmt.Sprint("/a/", i%50), fmt.Sprint(i))
	}
	r, err := c.Txn(t.Context()).Then(clientv3.OpGet("/a/gone"), clientv3.OpDelete("/a/gone")).Commit()
	if err != nil || !r.Succeeded {
		t.Fatal(r, err)
	}
	last := r.Header.Revision
	before, err := c.Get(t.Context(), "/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()

	if s, err = open("sqlite"); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c = s.Client().Client
	after, err := c.Get(t.Context(), "/", clientv3.WithPrefix())
	if err != nil || after.Header.Revision != last || len(after.Kvs) != len(before.Kvs) || len(after.Kvs) != 52 {
		t.Fatalf("revision %d of %d, %d keys of %d: %v", after.Header.Revision, last, len(after.Kvs), len(before.Kvs), err)
	}
	for i, kv := range after.Kvs {
		b := before.Kvs[i]
		if !bytes.Equal(kv.Key, b.Key) || !bytes.Equal(kv.Value, b.Value) || kv.ModRevision != b.ModRevision || kv.CreateRevision != b.CreateRevision {
			t.Errorf("%s=%s of %d, %d; it was %s=%s of %d, %d", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, b.Key, b.Value, b.CreateRevision, b.ModRevision)
		}
	}
	if r := <-c.Watch(t.Context(), "/a/", clientv3.WithPrefix(), clientv3.WithRev(last-1)); r.CompactRevision != last {
		t.Errorf("a watch from before: %+v", r)
	}
	if rev := put("/a/next", "1"); rev != last+1 {
		t.Errorf("after %d comes %d", last, rev)
	}
	s.Close()
	if _, err := open("kine-sqlite"); err == nil || !strings.Contains(err.Error(), "--datastore-driver=sqlite") {
		t.Errorf("kine opens a file that is the engine's: %v", err)
	}
}

func TestWrongSynchronousIsRefused(t *testing.T) {
	_, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "x"), Synchronous: "off"})
	if err == nil || !strings.Contains(err.Error(), "full or normal") {
		t.Fatalf("got %v", err)
	}
}

func TestWatchTellsEachChangeOnceAndInOrder(t *testing.T) {
	eachDriver(t, testWatchTellsEachChangeOnceAndInOrder)
}

func testWatchTellsEachChangeOnceAndInOrder(t *testing.T) {
	_, c := open(t, filepath.Join(t.TempDir(), "state.db"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	create := func(key, value string) int64 {
		t.Helper()
		r, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, value)).Commit()
		if err != nil || !r.Succeeded {
			t.Fatalf("create %s: %v, %v", key, r, err)
		}
		return r.Header.Revision
	}
	first := create("/a/0", "0")
	live := c.Watch(ctx, "/a/", clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithProgressNotify())
	const n = 200
	var last int64
	go func() {
		for i := 1; i <= n; i++ {
			key := fmt.Sprintf("/a/%d", i)
			if _, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, "x")).Commit(); err != nil {
				t.Errorf("create %s: %v", key, err)
			}
		}
	}()
	for seen := 0; seen <= n; {
		r := <-live
		if err := r.Err(); err != nil {
			t.Fatal(err)
		}
		for _, e := range r.Events {
			if want := fmt.Sprintf("/a/%d", seen); string(e.Kv.Key) != want || e.Kv.ModRevision <= last {
				t.Fatalf("event %d is %s at revision %d after %d, want %s", seen, e.Kv.Key, e.Kv.ModRevision, last, want)
			}
			last = e.Kv.ModRevision
			seen++
		}
	}

	// A progress request is answered without an event, with the current revision.
	if err := c.RequestProgress(ctx); err != nil {
		t.Fatal(err)
	}
	for {
		r := <-live
		if r.IsProgressNotify() {
			if r.Header.Revision < last {
				t.Fatalf("progress tells revision %d, events came to %d", r.Header.Revision, last)
			}
			break
		}
	}

	// From an old revision, history and what is new make one sequence.
	again := c.Watch(ctx, "/a/", clientv3.WithPrefix(), clientv3.WithRev(first))
	for seen := 0; seen <= n; {
		for _, e := range (<-again).Events {
			if want := fmt.Sprintf("/a/%d", seen); string(e.Kv.Key) != want {
				t.Fatalf("got %s, want %s", e.Kv.Key, want)
			}
			seen++
		}
	}
}

func TestClosingTheStoreEndsWatchesAndRefusesNewOnes(t *testing.T) {
	eachDriver(t, testClosingTheStoreEndsWatchesAndRefusesNewOnes)
}

func testClosingTheStoreEndsWatchesAndRefusesNewOnes(t *testing.T) {
	s, c := open(t, filepath.Join(t.TempDir(), "state.db"))
	watch := c.Watch(t.Context(), "/a/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if r := <-watch; !r.Created {
		t.Fatalf("got %v", r)
	}
	s.Close()
	for r := range watch {
		if r.Err() == nil {
			t.Errorf("the last word of a watch is %v", r)
		}
	}
	// A new stream is refused for good, so that the channel is closed too.
	for r := range s.Client().Watch(t.Context(), "/a/", clientv3.WithPrefix()) {
		if r.Err() == nil {
			t.Errorf("a closed store sent %v", r)
		}
	}
	if _, err := c.Get(t.Context(), "/a/1"); err == nil {
		t.Error("a closed store answered")
	}
}

func TestWatchEndsWithItsClientAlone(t *testing.T) { eachDriver(t, testWatchEndsWithItsClientAlone) }

func testWatchEndsWithItsClientAlone(t *testing.T) {
	s, c := open(t, filepath.Join(t.TempDir(), "state.db"))
	other := s.Client()
	left := c.Watch(t.Context(), "/a/", clientv3.WithPrefix())
	stays := other.Watch(t.Context(), "/a/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if r := <-stays; !r.Created {
		t.Fatalf("got %v", r)
	}
	if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for range left {
	}
	if _, err := other.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision("/a/1"), "=", 0)).Then(clientv3.OpPut("/a/1", "x")).Commit(); err != nil {
		t.Fatal(err)
	}
	if r := <-stays; len(r.Events) != 1 {
		t.Fatalf("got %v", r)
	}
}

func TestWatchesThatEndAllAtOnceHoldUpNoOther(t *testing.T) {
	eachDriver(t, testWatchesThatEndAllAtOnceHoldUpNoOther)
}

func testWatchesThatEndAllAtOnceHoldUpNoOther(t *testing.T) {
	s, c := open(t, filepath.Join(t.TempDir(), "state.db"))
	many, end := context.WithCancel(t.Context())
	defer end()
	for range 500 {
		if r := <-c.Watch(many, "/a/", clientv3.WithPrefix(), clientv3.WithCreatedNotify()); !r.Created {
			t.Fatalf("got %v", r)
		}
	}
	// The writer is another client: this one's stream is busy.
	writing, stop := context.WithCancel(t.Context())
	var writer sync.WaitGroup
	writer.Go(func() {
		other := s.Client()
		for i := 0; writing.Err() == nil; i++ {
			key := fmt.Sprintf("/a/%d", i)
			_, _ = other.Txn(writing).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, "x")).Commit()
			if i == 20 {
				end()
			}
		}
	})
	defer writer.Wait()
	defer stop()
	<-many.Done()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for r := range c.Watch(ctx, "/a/", clientv3.WithPrefix()) {
		if len(r.Events) > 0 {
			return
		}
	}
	t.Error("a watch of the same client was told nothing")
}
