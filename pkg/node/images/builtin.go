package images

import (
	"context"

	"github.com/knarr-dev/knarr/pkg/component"
)

// Builtin imports the archives that come with Knarr, such as the pause image,
// without which no pod starts.
type Builtin struct {
	address     string
	snapshotter string
	list        []Embedded
}

var _ component.Component = (*Builtin)(nil)

// NewBuiltin returns the importer of list into the containerd that listens on
// the unix socket at address.
func NewBuiltin(address, snapshotter string, list ...Embedded) *Builtin {
	return &Builtin{address: address, snapshotter: snapshotter, list: list}
}

// Name implements component.Component.
func (b *Builtin) Name() string { return "builtin-images" }

// Needs implements component.Component.
func (b *Builtin) Needs() []string { return []string{"containerd"} }

// Run closes ready once all images are there.
func (b *Builtin) Run(ctx context.Context, ready chan<- struct{}) error {
	if err := b.ensure(ctx); err != nil {
		return err
	}
	close(ready)
	<-ctx.Done()
	return ctx.Err()
}

func (b *Builtin) ensure(ctx context.Context) error {
	client, err := Dial(b.address)
	if err != nil {
		return err
	}
	defer client.Close()
	for _, e := range b.list {
		if err := Ensure(ctx, client, b.snapshotter, e); err != nil {
			return err
		}
	}
	return nil
}
