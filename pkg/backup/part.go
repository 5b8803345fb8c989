package backup

import (
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/part"
)

// Part is what a server does about backups by itself: those by its schedule, and
// the copy of its store. It is a part, and not of every control plane, so that a
// program that wants one for its tests links neither.
type Part struct{}

var _ part.Part = Part{}

// Components implements part.Part.
func (Part) Components(env *part.Env) ([]component.Spec, error) {
	c := env.Config
	var specs []component.Spec
	if when := c.Backup.Schedule; when != "" {
		specs = append(specs, component.Spec{Component: &Schedule{
			Config:  func() (Config, error) { return New(c) },
			When:    when,
			Metrics: legacyregistry.Registerer(),
			Log:     env.Log,
		}, Class: component.Retried})
	}
	if to := c.Backup.ReplicateTo; to != "" {
		specs = append(specs, component.Spec{Component: &Replica{
			Config: func() (Config, error) { return NewReplica(c, to) },
			Log:    env.Log,
		}, Class: component.Retried})
	}
	return specs, nil
}
