package addons

import (
	"github.com/knarr-dev/knarr/pkg/addons/runtimes"
	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/part"
)

// runtimes lists the component that makes RuntimeClasses.
func (a Addons) runtimes(env *part.Env) ([]component.Spec, error) {
	if !a.ControlPlane {
		return nil, nil
	}
	return []component.Spec{{
		Component: runtimes.New(runtimes.Config{Client: env.Client, Needs: []string{env.Serving}, Log: env.Log}),
		Class:     component.Retried,
	}}, nil
}
