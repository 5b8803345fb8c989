// Package cluster is Knarr as a Go API: a control plane in this process and,
// when it is given one, a node and add-ons beside it.
//
// The package itself links no container runtime: whoever wants a node hands it
// in, as pkg/cli does with pkg/node and pkg/addons.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/controlplane"
	"github.com/knarr-dev/knarr/pkg/part"
	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/pkg/status"
	"github.com/knarr-dev/knarr/pkg/version"
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
	cfg   Config
	env   *part.Env
	group *component.Group

	cancel context.CancelFunc
	done   chan struct{}
	err    chan error
}

// New checks how the parts fit together. Nothing starts, nothing is changed.
func New(cfg Config) (*Cluster, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	c := &Cluster{cfg: cfg, done: make(chan struct{}), err: make(chan error, 1)}
	c.env = &part.Env{Config: cfg.Config, Log: cfg.Log}
	cp := controlplane.Config{
		Config: cfg.Config,
		PKI:    c.env.PKI,
		Dir:    filepath.Join(cfg.Config.ServerDir(), "run"),
		CSI:    &c.env.CSI,
	}
	c.env.Host = cp.Host()

	api := controlplane.NewAPIServer(cp, cfg.Log)
	specs := []component.Spec{
		{Component: component.Func("pki", nil, c.ensurePKI), Class: component.Retried},
		{Component: component.Func("kubeconfig", []string{"pki"}, c.writeKubeconfig), Class: component.Retried},
		{Component: api, Class: component.Retried, StopsAfter: []string{api.Answering().Name()}, FinishStart: true},
		{Component: api.Answering(), Class: component.Retried},
		{Component: controlplane.NewControllerManager(cp), Class: component.Retried},
		{Component: controlplane.NewScheduler(cp), Class: component.Retried},
	}
	for _, p := range cfg.Parts {
		s, err := p.Components(c.env)
		if err != nil {
			return nil, err
		}
		specs = append(specs, s...)
	}
	var err error
	if c.group, err = component.NewGroup(cfg.Log, specs...); err != nil {
		return nil, fmt.Errorf("put the cluster together: %w", err)
	}
	c.env.SetGroup(c.group)
	return c, nil
}

// Start begins to start everything and returns. A cluster starts once.
func (c *Cluster) Start(ctx context.Context) error {
	if c.cancel != nil {
		return errors.New("start cluster: it was started before")
	}
	if err := version.Apply(); err != nil {
		return fmt.Errorf("set version of Kubernetes: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(c.cfg.Config.ServerDir(), "run"), 0o700); err != nil {
		return fmt.Errorf("create data dir (--data-dir): %w", err)
	}
	ctx, c.cancel = context.WithCancel(ctx)
	go func() {
		defer close(c.done)
		if err := c.group.Run(ctx); err != nil {
			c.err <- err
		}
		close(c.err)
	}()
	return nil
}

// Ready is closed when every component that is not optional has been ready.
func (c *Cluster) Ready() <-chan struct{} { return c.group.AllReady() }

// Err tells why the cluster stopped, and is closed when it has.
func (c *Cluster) Err() <-chan error { return c.err }

// Close stops everything and waits. It may be called twice, and before Start.
func (c *Cluster) Close() {
	if c.cancel == nil {
		return
	}
	c.cancel()
	<-c.done
}

// Status tells the state of every component.
func (c *Cluster) Status() status.Report { return status.Of(c.group, version.Get().Knarr) }

// Group gives the components' states to those who wait for one of them.
func (c *Cluster) Group() *component.Group { return c.group }

// RESTConfig is an administrator's access to the API, once Ready is closed.
func (c *Cluster) RESTConfig() *rest.Config {
	p := c.env.PKI()
	return p.RESTConfig(p.Admin, c.env.Host)
}

func (c *Cluster) ensurePKI(ctx context.Context, ready chan<- struct{}) error {
	cfg := c.cfg.Config
	p, err := pki.Ensure(pki.Config{
		Dir:           filepath.Join(cfg.ServerDir(), "tls"),
		NodeName:      cfg.Node.Name,
		NodeIPs:       append(cfg.Node.IPs[:len(cfg.Node.IPs):len(cfg.Node.IPs)], cfg.API.AdvertiseAddress),
		Names:         cfg.API.TLSSANs,
		ServiceIP:     cfg.APIServiceIP(),
		ClusterDomain: cfg.Network.ClusterDomain,
	})
	if err != nil {
		return err
	}
	for _, change := range p.Changes {
		c.cfg.Log.Debug("certificate", "change", change)
	}
	c.env.SetPKI(p)
	close(ready)
	<-ctx.Done()
	return nil
}

func (c *Cluster) writeKubeconfig(ctx context.Context, ready chan<- struct{}) error {
	k, p := c.cfg.Config.Kubeconfig, c.env.PKI()
	gid, err := k.GID()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(k.Path), 0o755); err != nil {
		return fmt.Errorf("create folder of kubeconfig (--write-kubeconfig): %w", err)
	}
	if err := pki.WriteKubeconfig(k.Path, p.Kubeconfig(p.Admin, c.env.Host), os.FileMode(k.Mode), gid); err != nil {
		return err
	}
	close(ready)
	<-ctx.Done()
	return nil
}
