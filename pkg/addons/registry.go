package addons

import (
	"fmt"
	"path/filepath"

	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/pkg/addons/registry"
	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/part"
)

// registry lists the component that serves images, if the cluster has it: on a
// server those that it keeps, elsewhere the server's.
func (a Addons) registry(env *part.Env) ([]component.Spec, error) {
	c := env.Config
	if !c.Registry.Enabled {
		return nil, nil
	}
	cfg := registry.Config{
		Dir:    filepath.Join(c.DataDir, "registry"),
		Listen: c.Registry.Address,
		Needs:  []string{env.Serving},
		Log:    env.Log,
	}
	if !a.ControlPlane {
		cfg.Remote = func() (registry.Remote, error) {
			to := env.Access().REST(part.Knarr)
			transport, err := rest.TransportFor(to)
			if err != nil {
				return registry.Remote{}, fmt.Errorf("connect to the API server: %w", err)
			}
			return registry.Remote{Server: to.Host, Transport: transport}, nil
		}
	}
	r := registry.New(cfg)
	if a.ControlPlane {
		env.Handle(registry.Prefix, r.Handler())
		env.HandleLocal("GET "+registry.ContentsPath, r.ServeContents)
		env.HandleLocal("POST "+registry.PrunePath, r.ServePrune)
	}
	return []component.Spec{{Component: r, Class: component.Optional}}, nil
}
