package addons

import (
	"github.com/knarr-dev/knarr/pkg/addons/storage"
	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/part"
)

// localStorage gives claims folders of their pods' nodes.
func (a Addons) localStorage(env *part.Env) ([]component.Spec, error) {
	c := env.Config
	if !a.ControlPlane {
		return []component.Spec{{Class: component.Retried, Component: storage.NewAgent(storage.AgentConfig{
			Client: env.Client, Needs: []string{env.Serving}, Node: c.Node.Name, Log: env.Log,
		})}}, nil
	}
	cfg := storage.Config{Client: env.Client, Needs: []string{env.Serving}, Path: c.LocalStoragePath, Log: env.Log}
	if !c.DisableAgent {
		cfg.Node = c.Node.Name
	}
	return []component.Spec{
		{Class: component.Retried, Component: component.Func("local-storage-roles", []string{env.Serving}, applier(env, storage.Objects(), nil))},
		{Class: component.Retried, Component: storage.New(cfg)},
	}, nil
}
