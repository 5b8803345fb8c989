package containerd

import (
	"context"

	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
)

// containerd's own transfer service is there, but switched off: one that wraps
// it has its place, since the CRI service takes the only one of its kind.
const (
	transferID         = "redirected"
	localTransfer      = string(plugins.TransferPlugin) + ".local"
	redirectedTransfer = string(plugins.TransferPlugin) + "." + transferID
)

type pullsKey struct{}

// pulls is what a containerd was told about pulls; both may be nil.
type pulls struct {
	redirect func(context.Context, any) (any, error)
	observe  func(context.Context, string) func(done, total int64)
}

// withPulls is how the plugin, which the whole process has one of, learns what
// the containerd that it becomes part of was told.
func withPulls(ctx context.Context, p pulls) context.Context {
	return context.WithValue(ctx, pullsKey{}, p)
}

// registerRedirected makes the wrapping service known to containerd, once.
func registerRedirected() {
	replace(localTransfer, transferID, func(ic *plugin.InitContext, local any) (any, error) {
		p, _ := ic.Context.Value(pullsKey{}).(pulls)
		return transferrer{local.(transfer.Transferrer), p}, nil
	})
}

// transferrer pulls images from where redirect says, and tells how far it is.
type transferrer struct {
	transfer.Transferrer
	pulls pulls
}

func (t transferrer) Transfer(ctx context.Context, source, destination any, opts ...transfer.Opt) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if image, ok := source.(*registry.OCIRegistry); ok && t.pulls.observe != nil {
		sum := &tally{tell: t.pulls.observe(ctx, image.Image()), parts: map[string]progress{}}
		opts = append(opts, sum.option) // behind the one that it adds to
	}
	if t.pulls.redirect != nil {
		var err error
		if source, err = t.pulls.redirect(ctx, source); err != nil {
			return err
		}
	}
	return t.Transferrer.Transfer(ctx, source, destination, opts...)
}
