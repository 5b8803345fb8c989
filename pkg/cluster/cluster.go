// Package cluster is Knarr as a Go API: a control plane in this process and,
// when it is given one, a node and add-ons beside it; or an agent, which is a
// node of a cluster whose control plane is elsewhere.
//
// The package itself links no container runtime: whoever wants a node hands it
// in, as pkg/cli does with pkg/node and pkg/addons.
package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/knarr-dev/knarr/pkg/backup"
	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/controlplane"
	"github.com/knarr-dev/knarr/pkg/part"
	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/pkg/status"
)

// Config is a cluster's configuration and its parts.
type Config struct {
	// Config must have been completed.
	Config *config.Config
	// Parts are what runs beside the control plane: the node, the add-ons.
	Parts []part.Part
	// Log defaults to slog.Default.
	Log *slog.Logger
}

// Cluster is a control plane with its parts.
type Cluster struct {
	*process
	cfg      Config
	env      *part.Env
	host     string
	certs    *certificates
	settings controlplane.Settings
}

// New checks how the parts fit together. Nothing starts, nothing is changed.
func New(cfg Config) (*Cluster, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	c := &Cluster{cfg: cfg, certs: newCertificates(cfg)}
	c.env = &part.Env{Config: cfg.Config, Log: cfg.Log, Answering: "apiserver-tls", Serving: "apiserver"}
	cp := controlplane.Config{
		Config:   cfg.Config,
		PKI:      c.pki,
		Access:   c.certs.access,
		Settings: &c.settings,
		Dir:      filepath.Join(cfg.Config.ServerDir(), "run"),
		CSI:      &c.env.CSI,
		// Known once all parts are, which is before anything runs.
		Streams: c.env.Handlers,
	}
	c.host = cp.Host()
	c.certs.host = c.host
	members := c.membership()
	cp.Admit = members.Handler
	cp.Handlers = map[string]http.Handler{}
	for _, path := range HealthPaths() {
		cp.Handlers[path] = healthHandler(func() status.Report { return c.Status() })
	}

	api := controlplane.NewAPIServer(cp, cfg.Log)
	specs := []component.Spec{
		{Component: component.Func("pki", nil, c.ensurePKI), Class: component.Retried},
		{Component: component.Func("kubeconfig", []string{"pki"}, c.writeKubeconfig), Class: component.Retried},
		{Component: api, Class: component.Retried, StopsAfter: []string{api.Answering().Name()}, FinishStart: true},
		{Component: api.Answering(), Class: component.Retried},
		{Component: controlplane.NewControllerManager(cp), Class: component.Retried},
		{Component: controlplane.NewScheduler(cp), Class: component.Retried},
		{Component: members, Class: component.Retried},
		{Component: component.Func("cluster-info", []string{"apiserver"}, c.publish), Class: component.Retried},
		{Component: component.Func("node-token", []string{"apiserver"}, c.keepNodeToken), Class: component.Retried},
	}
	if when := cfg.Config.Backup.Schedule; when != "" {
		specs = append(specs, component.Spec{Component: &backup.Schedule{
			Config:  func() (backup.Config, error) { return backup.New(cfg.Config) },
			When:    when,
			Metrics: legacyregistry.Registerer(),
			Log:     cfg.Log,
		}, Class: component.Retried})
	}
	if to := cfg.Config.Backup.ReplicateTo; to != "" {
		specs = append(specs, component.Spec{Component: &backup.Replica{
			Config: func() (backup.Config, error) { return backup.NewReplica(cfg.Config, to) },
			Log:    cfg.Log,
		}, Class: component.Retried})
	}
	for _, p := range cfg.Parts {
		s, err := p.Components(c.env)
		if err != nil {
			return nil, err
		}
		specs = append(specs, s...)
	}
	group, err := component.NewGroup(cfg.Log, specs...)
	if err != nil {
		return nil, fmt.Errorf("put the cluster together: %w", err)
	}
	c.env.SetGroup(group)
	c.process = newProcess(group, func() error {
		if err := os.MkdirAll(filepath.Join(cfg.Config.ServerDir(), "run"), 0o700); err != nil {
			return fmt.Errorf("create data dir (--data-dir): %w", err)
		}
		return nil
	})
	c.metrics = &metrics{report: c.Status, certificates: func() ([]pki.Entry, error) {
		return pki.Inventory(time.Now(), c.certs.cfg.Dir, filepath.Join(cfg.Config.AgentDir(), "identity"), filepath.Join(cfg.Config.AgentDir(), "kubelet-pki"))
	}}
	return c, nil
}

// RESTConfig is an administrator's access to the API, once Ready is closed.
func (c *Cluster) RESTConfig() *rest.Config {
	p := c.pki()
	return p.RESTConfig(p.Admin, c.host)
}

// pki returns the certificates, once the component pki is ready.
func (c *Cluster) pki() *pki.PKI { return c.certs.current() }

// access is that of the control plane's own machine.
func (c *Cluster) access() part.Access {
	p := c.pki()
	return part.Access{
		REST:           func(r part.Role) *rest.Config { return c.certs.access(clientOf(r)) },
		ClientCA:       p.ClientCA.CertPath,
		KubeletServing: p.KubeletServing.Path,
	}
}

func (c *Cluster) ensurePKI(ctx context.Context, ready chan<- struct{}) error {
	if err := c.certs.ensure(false); err != nil {
		return err
	}
	c.env.SetAccess(c.access())
	close(ready)
	c.certs.renew(ctx)
	return nil
}

func (c *Cluster) writeKubeconfig(ctx context.Context, ready chan<- struct{}) error {
	k := c.cfg.Config.Kubeconfig
	gid, err := k.GID()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(k.Path), 0o755); err != nil {
		return fmt.Errorf("create folder of kubeconfig (--write-kubeconfig): %w", err)
	}
	for first := true; ; first = false {
		p, renewed := c.certs.follow()
		if err := pki.WriteKubeconfig(k.Path, p.Kubeconfig(p.Admin, c.host), os.FileMode(k.Mode), gid); err != nil {
			return err
		}
		if first {
			close(ready)
		}
		select {
		case <-renewed:
		case <-ctx.Done():
			return nil
		}
	}
}
