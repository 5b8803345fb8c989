package containerd

import (
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

// replace makes a plugin known to containerd, once in a process, which is what
// wrap makes of one that is there. That one has to be switched off.
func replace(original, id string, wrap func(ic *plugin.InitContext, made any) (any, error)) {
	var wrapped plugin.Registration
	for _, r := range registry.Graph(nil) {
		switch r.URI() {
		case string(r.Type) + "." + id:
			return
		case original:
			wrapped = r
		}
	}
	inner := wrapped.InitFn
	wrapped.ID = id
	wrapped.InitFn = func(ic *plugin.InitContext) (any, error) {
		made, err := inner(ic)
		if err != nil {
			return nil, err
		}
		return wrap(ic, made)
	}
	registry.Register(&wrapped)
}
