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
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/controlplane"
	"github.com/knarr-dev/knarr/pkg/part"
	"github.com/knarr-dev/knarr/pkg/pki"
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
	cfg   Config
	env   *part.Env
	host  string
	certs atomic.Pointer[pki.PKI]
}

// New checks how the parts fit together. Nothing starts, nothing is changed.
func New(cfg Config) (*Cluster, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	c := &Cluster{cfg: cfg}
	c.env = &part.Env{Config: cfg.Config, Log: cfg.Log, Answering: "apiserver-tls", Serving: "apiserver"}
	cp := controlplane.Config{
		Config: cfg.Config,
		PKI:    c.pki,
		Dir:    filepath.Join(cfg.Config.ServerDir(), "run"),
		CSI:    &c.env.CSI,
	}
	c.host = cp.Host()
	members := c.membership()
	cp.Admit = members.Handler

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
	return c, nil
}

// RESTConfig is an administrator's access to the API, once Ready is closed.
func (c *Cluster) RESTConfig() *rest.Config {
	p := c.pki()
	return p.RESTConfig(p.Admin, c.host)
}

// pki returns the certificates, once the component pki is ready.
func (c *Cluster) pki() *pki.PKI { return c.certs.Load() }

// access is that of the control plane's own machine.
func (c *Cluster) access(p *pki.PKI) part.Access {
	leaves := map[part.Role]*pki.Leaf{part.Knarr: p.Knarr, part.Kubelet: p.Kubelet, part.KubeProxy: p.KubeProxy, part.DNS: p.DNS}
	return part.Access{
		REST:           func(r part.Role) *rest.Config { return p.RESTConfig(leaves[r], c.host) },
		ClientCA:       p.ClientCA.CertPath,
		KubeletServing: p.KubeletServing.Path,
	}
}

func (c *Cluster) ensurePKI(ctx context.Context, ready chan<- struct{}) error {
	cfg := c.cfg.Config
	p, err := pki.Ensure(pki.Config{
		Dir:           filepath.Join(cfg.ServerDir(), "tls"),
		NodeName:      cfg.Node.Name,
		NodeIPs:       append(slices.Concat(cfg.Node.IPs, cfg.Node.ExternalIPs), cfg.API.AdvertiseAddress),
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
	c.certs.Store(p)
	c.env.SetAccess(c.access(p))
	close(ready)
	<-ctx.Done()
	return nil
}

func (c *Cluster) writeKubeconfig(ctx context.Context, ready chan<- struct{}) error {
	k, p := c.cfg.Config.Kubeconfig, c.pki()
	gid, err := k.GID()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(k.Path), 0o755); err != nil {
		return fmt.Errorf("create folder of kubeconfig (--write-kubeconfig): %w", err)
	}
	if err := pki.WriteKubeconfig(k.Path, p.Kubeconfig(p.Admin, c.host), os.FileMode(k.Mode), gid); err != nil {
		return err
	}
	close(ready)
	<-ctx.Done()
	return nil
}
