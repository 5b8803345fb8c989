package containerd

import (
	"testing"

	"github.com/containerd/containerd/v2/core/transfer"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPartsOfAPullAddUp(t *testing.T) {
	var done, total int64
	heard := 0
	c := &transfer.Config{Progress: func(transfer.Progress) { heard++ }}
	sum := &tally{parts: map[string]progress{}, tell: func(d, t int64) { done, total = d, t }}
	sum.option(c)
	d := &ocispec.Descriptor{}
	for _, p := range []transfer.Progress{
		{Event: "Resolving from a registry"},
		{Event: "waiting", Name: "layer-1", Total: 100, Desc: d},
		{Event: "waiting", Name: "layer-2", Total: 50, Desc: d},
		{Event: "downloading", Name: "layer-1", Progress: 30, Total: 100, Desc: d},
		{Event: "complete", Name: "layer-2", Progress: 50, Total: 50, Desc: d},
		{Event: "extracting", Name: "layer-2", Progress: 5, Total: 50, Desc: d},
	} {
		c.Progress(p)
	}
	if done != 80 || total != 150 || heard != 6 {
		t.Errorf("%d of %d, heard %d times", done, total, heard)
	}
}
