package datastore

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Updates that compare a key's revision, as the API server's do; each client has
// keys of its own.
func BenchmarkUpdate(b *testing.B) {
	const objects = 9_600
	value := string(make([]byte, 1024))
	store, err := Open(b.Context(), Config{
		Path: filepath.Join(b.TempDir(), "state.db"), CompactEvery: -1,
		Seed: func() (all []KeyValue, err error) {
			for n := range objects {
				all = append(all, KeyValue{Key: fmt.Sprintf("/registry/bench/%06d", n), Value: []byte(value)})
			}
			return all, nil
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	c := store.Client().Client
	for _, clients := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			found, err := c.Get(b.Context(), "/registry/bench/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
			if err != nil {
				b.Fatal(err)
			}
			var done atomic.Int64
			ended := make(chan error, clients)
			b.ResetTimer()
			for n := range clients {
				go func() {
					ended <- func() error {
						for i := n; done.Add(1) <= int64(b.N); i += clients {
							kv := found.Kvs[i%objects/clients*clients+n]
							key := string(kv.Key)
							r, err := c.Txn(context.Background()).If(clientv3.Compare(clientv3.ModRevision(key), "=", kv.ModRevision)).
								Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
							if err != nil || !r.Succeeded {
								return fmt.Errorf("update %s: %v, %w", key, r, err)
							}
							kv.ModRevision = r.Header.Revision
						}
						return nil
					}()
				}()
			}
			for range clients {
				if err := <-ended; err != nil {
					b.Error(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
		})
	}
}
