package addons

import (
	"path/filepath"
	"slices"

	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/pkg/addons/deploy"
	"github.com/knarr-dev/knarr/pkg/addons/helm"
	"github.com/knarr-dev/knarr/pkg/addons/metrics"
	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/part"
)

// controllers are the add-ons that a control plane needs once, wherever its
// nodes are. They begin when the API serves, so that no node and no pod waits
// for them.
func controllers(env *part.Env) []component.Spec {
	c := env.Config
	knarr := func() *rest.Config { return env.RESTConfig(part.Knarr) }
	var specs []component.Spec
	add := func(c component.Component) {
		specs = append(specs, component.Spec{Component: c, Class: component.Retried})
	}
	if slices.Contains(c.Disable, metrics.Name) {
		add(metrics.Off(knarr, env.Serving))
	} else {
		m := metrics.New(knarr, env.Serving, env.Log)
		env.Extend(m.Install)
		add(m)
	}
	if !slices.Contains(c.Disable, deploy.Name) {
		d := deploy.New(deploy.Config{
			Folder: filepath.Join(c.ServerDir(), "manifests"), Server: c.Node.Name,
			REST: knarr, Needs: env.Serving, Log: env.Log,
		})
		env.TellTroubles(d.Troubles)
		add(d)
	}
	if !slices.Contains(c.Disable, helm.Name) {
		h := helm.New(helm.Config{
			REST: knarr, Needs: env.Serving,
			Dir: filepath.Join(c.ServerDir(), "helm"), Static: filepath.Join(c.ServerDir(), "static"),
			Log: env.Log,
		})
		env.TellTroubles(h.Troubles)
		add(h)
	}
	return specs
}
