package engine

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
)

// Objects of a kibibyte, written in another order than their names'.
func BenchmarkList(b *testing.B) {
	const objects = 20_000
	e, _ := start(b, filepath.Join(b.TempDir(), "state.db"), Config{})
	order := rand.New(rand.NewPCG(1, 2)).Perm(objects)
	var wg sync.WaitGroup
	for w := range 64 {
		wg.Go(func() {
			for i := w; i < objects; i += 64 {
				if _, err := e.Create(b.Context(), fmt.Sprintf("/registry/configmaps/%06d", order[i]), make([]byte, 1024), 0); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, limit := range []int64{500, 0} {
		b.Run(fmt.Sprint(limit), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, kvs, err := e.List(b.Context(), "/registry/configmaps/", "/registry/configmaps0", limit, 0, false); err != nil || len(kvs) == 0 {
					b.Fatal(err, len(kvs))
				}
			}
		})
	}
}
