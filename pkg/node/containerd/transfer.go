package containerd

import (
	"context"

	"github.com/containerd/containerd/v2/core/transfer"
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

type redirectKey struct{}

type redirect = func(context.Context, any) (any, error)

// withRedirect is how the plugin, which the whole process has one of, learns
// what the containerd that it becomes part of was told.
func withRedirect(ctx context.Context, r redirect) context.Context {
	return context.WithValue(ctx, redirectKey{}, r)
}

// registerRedirected makes the wrapping service known to containerd, once.
func registerRedirected() {
	replace(localTransfer, transferID, func(ic *plugin.InitContext, local any) (any, error) {
		r, _ := ic.Context.Value(redirectKey{}).(redirect)
		if r == nil {
			return local, nil
		}
		return transferrer{local.(transfer.Transferrer), r}, nil
	})
}

// transferrer pulls images from where redirect says.
type transferrer struct {
	transfer.Transferrer
	redirect redirect
}

func (t transferrer) Transfer(ctx context.Context, source, destination any, opts ...transfer.Opt) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	source, err := t.redirect(ctx, source)
	if err != nil {
		return err
	}
	return t.Transferrer.Transfer(ctx, source, destination, opts...)
}
