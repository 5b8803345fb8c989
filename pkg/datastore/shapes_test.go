package datastore

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// FuzzTransactionShapes makes transactions of any shape. What the store takes it
// answers as etcd does, but for the numbers of revisions; what it does not know it
// refuses, and changes nothing.
func FuzzTransactionShapes(f *testing.F) {
	for seed := range uint64(300) {
		f.Add(seed)
	}
	ours, theirs := newSubject(f, "sqlite"), newSubject(f, "etcd")
	tests := 0
	f.Fuzz(func(t *testing.T, seed uint64) {
		tests++
		prefix := fmt.Sprintf("/shapes/%d/", tests)
		rnd := rand.New(rand.NewPCG(seed, 3))
		base := [2]int64{}
		for i, s := range []subject{ours, theirs} {
			for _, key := range []string{"a", "b"} {
				if r, err := createTxn(s.Client, t.Context(), prefix+key, key, 0); err != nil || !r.Succeeded {
					t.Fatal(r, err)
				}
			}
			r, err := s.Get(t.Context(), prefix)
			if err != nil {
				t.Fatal(err)
			}
			base[i] = r.Header.Revision - 2 // a has 1, b has 2
		}
		for range 4 {
			shape := rnd.Uint64()
			before := contents(t, ours, prefix, base[0])
			got, err := ours.Do(t.Context(), anyTxn(rand.New(rand.NewPCG(shape, 4)), prefix, base[0]))
			if err != nil {
				if after := contents(t, ours, prefix, base[0]); after != before {
					t.Fatalf("a refused transaction (%v) changed\n%sto\n%s", err, before, after)
				}
				continue
			}
			want, err := theirs.Do(t.Context(), anyTxn(rand.New(rand.NewPCG(shape, 4)), prefix, base[1]))
			if err != nil {
				t.Fatalf("etcd refuses what we take: %v", err)
			}
			if g, w := answered(got, base[0]), answered(want, base[1]); g != w {
				t.Fatalf("shape %+v is answered\n%swanted\n%s", anyTxn(rand.New(rand.NewPCG(shape, 4)), prefix, base[0]), g, w)
			}
			if g, w := contents(t, ours, prefix, base[0]), contents(t, theirs, prefix, base[1]); g != w {
				t.Fatalf("shape %+v leads to\n%swanted\n%s", anyTxn(rand.New(rand.NewPCG(shape, 4)), prefix, base[0]), g, w)
			}
		}
	})
}

// anyTxn returns a transaction, more often than not of the API server's shapes.
func anyTxn(rnd *rand.Rand, prefix string, base int64) clientv3.Op {
	key := func() string { return prefix + string("aabc"[rnd.IntN(4)]) }
	rev := func() int64 {
		if n := rnd.Int64N(5); n > 0 {
			return base + n
		}
		return 0
	}
	one := key()
	if rnd.IntN(3) > 0 { // all of them are about one key
		key = func() string { return one }
	}
	compare := func() clientv3.Cmp {
		op := []string{"=", "=", "=", ">", "<", "!="}[rnd.IntN(6)]
		switch rnd.IntN(8) {
		case 0:
			return clientv3.Compare(clientv3.CreateRevision(key()), op, rev())
		case 1:
			return clientv3.Compare(clientv3.Version(key()), op, rnd.IntN(3))
		case 2:
			return clientv3.Compare(clientv3.Value(key()), op, "a")
		}
		return clientv3.Compare(clientv3.ModRevision(key()), op, rev())
	}
	do := func() clientv3.Op {
		switch rnd.IntN(12) {
		case 0, 1, 2:
			return clientv3.OpPut(key(), fmt.Sprint(rnd.IntN(100)))
		case 3, 4, 5:
			return clientv3.OpDelete(key())
		case 6, 7, 8:
			return clientv3.OpGet(key())
		case 9:
			return clientv3.OpDelete(key(), clientv3.WithPrefix())
		case 10:
			return clientv3.OpPut(key(), "x", clientv3.WithPrevKV())
		}
		return clientv3.OpGet(key(), []clientv3.OpOption{clientv3.WithKeysOnly(), clientv3.WithCountOnly(), clientv3.WithPrefix()}[rnd.IntN(3)])
	}
	some := func(n int) (ops []clientv3.Op) {
		for range n {
			ops = append(ops, do())
		}
		return ops
	}
	var compares []clientv3.Cmp
	for range []int{1, 1, 1, 0, 2}[rnd.IntN(5)] {
		compares = append(compares, compare())
	}
	return clientv3.OpTxn(compares, some([]int{1, 1, 1, 0, 2}[rnd.IntN(5)]), some([]int{1, 1, 0, 2}[rnd.IntN(4)]))
}

func relative(kvs []*mvccpb.KeyValue, base int64) (out string) {
	for _, kv := range kvs {
		out += fmt.Sprintf("%s=%s at %d of %d, version %d\n", kv.Key, kv.Value, kv.ModRevision-base, kv.CreateRevision-base, kv.Version)
	}
	return out
}

func contents(t *testing.T, s subject, prefix string, base int64) string {
	t.Helper()
	r, err := s.Get(t.Context(), prefix, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("revision %d\n%s", r.Header.Revision-base, relative(r.Kvs, base))
}

func answered(r clientv3.OpResponse, base int64) string {
	txn := r.Txn()
	out := fmt.Sprintf("%v at %d\n", txn.Succeeded, txn.Header.Revision-base)
	for _, op := range txn.Responses {
		switch a := op.Response.(type) {
		case *etcdserverpb.ResponseOp_ResponsePut:
			out += "put\n"
		case *etcdserverpb.ResponseOp_ResponseDeleteRange:
			out += fmt.Sprintf("deleted %d\n", a.ResponseDeleteRange.Deleted)
		case *etcdserverpb.ResponseOp_ResponseRange:
			out += fmt.Sprintf("%d found\n%s", a.ResponseRange.Count, relative(a.ResponseRange.Kvs, base))
		}
	}
	return out
}
