package datastore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestCopyIsOfOneMomentAndHoldsNobodyUp: a store that is written to all the time
// is copied, and the copy has all that was acknowledged before it began.
func TestCopyIsOfOneMomentAndHoldsNobodyUp(t *testing.T) {
	eachDriver(t, func(t *testing.T) {
		dir := t.TempDir()
		path, to := filepath.Join(dir, "state.db"), filepath.Join(dir, "copy.db")
		_, c := open(t, path)
		value := strings.Repeat("x", 2000)
		for n := range 1000 {
			put(t, c, fmt.Sprint("/registry/pods/default/", n), value)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		acknowledged := make(chan int64, 1) // the last revision
		first := make(chan struct{})
		go func() {
			var last int64
			var took []time.Duration
			defer func() {
				slices.Sort(took)
				t.Logf("%d writes meanwhile, the slowest but 1 %% took %s", len(took), took[len(took)*99/100])
				acknowledged <- last
			}()
			for n := 0; ctx.Err() == nil; n++ {
				began := time.Now()
				r, err := c.Put(context.WithoutCancel(ctx), fmt.Sprint("/registry/pods/busy/", n%100), value)
				took = append(took, time.Since(began))
				if err != nil {
					t.Error(err)
					return
				}
				if last = r.Header.Revision; n == 0 {
					close(first)
				}
			}
		}()
		<-first
		before, err := c.Get(t.Context(), "/registry/")
		if err != nil {
			t.Fatal(err)
		}
		if err := Copy(t.Context(), path, to); err != nil {
			t.Fatal(err)
		}
		stop()
		last := <-acknowledged

		i, err := Inspect(t.Context(), to)
		if err != nil {
			t.Fatal(err)
		}
		defer i.Close()
		if faults, err := i.Check(t.Context()); err != nil || len(faults) > 0 {
			t.Errorf("faults %v, %v", faults, err)
		}
		s, err := i.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if s.Revision < before.Header.Revision || s.Revision > last {
			t.Errorf("the copy has revision %d; it began after %d and ended before %d", s.Revision, before.Header.Revision, last)
		}
		if last <= before.Header.Revision {
			t.Errorf("nothing was written while the copy was made")
		}
		if info, err := os.Stat(to); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		if err := Copy(t.Context(), path, to); err == nil {
			t.Error("a file that was there is overwritten")
		}
	})
}

// TestRenewedStoreTellsWhoHasSeenMoreToListAnew is what an agent's informers do
// whose server was restored from a backup older than what they have seen.
func TestRenewedStoreTellsWhoHasSeenMoreToListAnew(t *testing.T) {
	eachDriver(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state.db")
		s, c := open(t, path)
		for n := range 30 {
			if _, err := c.Put(t.Context(), fmt.Sprint("/registry/pods/default/", n%10), fmt.Sprint(n)); err != nil {
				t.Fatal(err)
			}
		}
		was, err := c.Get(t.Context(), "/registry/pods/", clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		const by = 1_000_000_000
		for range 2 { // a restored store is restored again
			if err := Renew(t.Context(), path, by); err != nil {
				t.Fatal(err)
			}
		}
		i, err := Inspect(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if faults, err := i.Check(t.Context()); err != nil || len(faults) > 0 {
			t.Errorf("faults %v, %v", faults, err)
		}
		i.Close()

		_, c = open(t, path)
		is, err := c.Get(t.Context(), "/registry/pods/", clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		if is.Header.Revision < was.Header.Revision+2*by || len(is.Kvs) != 10 {
			t.Errorf("it was at %d and is at %d, with %d keys", was.Header.Revision, is.Header.Revision, len(is.Kvs))
		}
		for n, kv := range is.Kvs {
			if kv.ModRevision != was.Kvs[n].ModRevision || string(kv.Value) != string(was.Kvs[n].Value) {
				t.Errorf("%s was %v and is %v", kv.Key, was.Kvs[n], kv)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := <-c.Watch(ctx, "/registry/pods/", clientv3.WithPrefix(), clientv3.WithRev(was.Header.Revision+5))
		if !errors.Is(r.Err(), rpctypes.ErrCompacted) {
			t.Errorf("a watch from what the lost store may have had: %v", r.Err())
		}
		if _, err := c.Put(t.Context(), "/registry/pods/default/3", "new"); err != nil {
			t.Fatal(err)
		}
		got, err := c.Get(t.Context(), "/registry/pods/default/3")
		if err != nil || string(got.Kvs[0].Value) != "new" || got.Kvs[0].ModRevision <= is.Header.Revision {
			t.Errorf("after a write: %v, %v", got, err)
		}
	})
}
