package storeload

import (
	"context"
	"fmt"
	"math/rand/v2"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/knarr-dev/knarr/tests/chaos/record"
)

// worker does one operation after the other on keys that nobody else writes.
type worker struct {
	*child
	name   string
	random *rand.Rand
	failed bool // a request of its: what a failing disk shows may be too old
}

// held is what a worker knows of a key.
type held struct {
	rev   int64 // 0: it is not there
	value string
	open  bool // the last operation may have happened
}

func (w *worker) run(ctx context.Context) {
	keys := map[string]held{}
	for ctx.Err() == nil {
		key := fmt.Sprintf("%s%d", w.name, w.random.IntN(keysEach))
		at, known := keys[key]
		if !known || at.open {
			var err error
			if at, err = w.load(ctx, key); err != nil {
				continue // a store that is damaged is found by the checks
			}
		}
		switch {
		case at.rev == 0:
			at = w.write(ctx, record.Create, key, at)
		case w.random.IntN(5) == 0:
			at = w.write(ctx, record.Delete, key, at)
		default:
			at = w.write(ctx, record.Update, key, at)
		}
		keys[key] = at
		if !at.open && w.random.IntN(4) == 0 {
			w.verify(ctx, key, at)
		}
	}
}

func (w *worker) load(ctx context.Context, key string) (held, error) {
	r, err := w.client.Get(ctx, key)
	if err != nil || len(r.Kvs) == 0 {
		return held{}, err
	}
	return held{rev: r.Kvs[0].ModRevision, value: w.unwrap(key, r.Kvs[0].Value)}, nil
}

// verify reads what was just acknowledged.
func (w *worker) verify(ctx context.Context, key string, want held) {
	got, err := w.load(ctx, key)
	if err == nil && got != want {
		w.tell(line{Tells: tellWrong, Value: fmt.Sprintf("%s was read as %+v after %+v was acknowledged", key, got, want)})
	}
}

// write does one operation as the API server does.
func (w *worker) write(ctx context.Context, kind record.Kind, key string, at held) held {
	w.mu.Lock()
	w.ids++
	id := w.ids
	w.mu.Unlock()
	now := held{value: fmt.Sprint(id)}
	named := now.value
	if kind == record.Delete {
		now, named = held{}, at.value
	}
	// Most objects are small, a few fill many pages.
	size := 20 << w.random.IntN(7)
	if w.random.IntN(50) == 0 {
		size = 100 << 10
	}
	w.tell(line{Tells: tellBegin, ID: id, Kind: kind, Key: key, Value: named})
	txn := w.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", at.rev))
	switch kind {
	case record.Create:
		txn = txn.Then(clientv3.OpPut(key, string(wrap(named, size))))
	case record.Update:
		txn = txn.Then(clientv3.OpPut(key, string(wrap(named, size)))).Else(clientv3.OpGet(key))
	case record.Delete:
		txn = txn.Then(clientv3.OpDelete(key)).Else(clientv3.OpGet(key))
	}
	r, err := txn.Commit()
	switch {
	case err != nil:
		w.failed, at.open = true, true
		return at
	case !r.Succeeded:
		w.tell(line{Tells: tellRefused, ID: id})
		if !w.failed {
			w.tell(line{Tells: tellWrong, Value: fmt.Sprintf("%s of %s at %+v was refused, and nobody else writes it", kind, key, at)})
		}
		at.open = true
		return at
	}
	w.tell(line{Tells: tellDone, ID: id, Rev: r.Header.Revision})
	if kind != record.Delete {
		now.rev = r.Header.Revision
	}
	return now
}
