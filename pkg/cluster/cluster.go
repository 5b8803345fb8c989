// Package cluster is Knarr as a Go API: a control plane in this process and,
// when it is given one, a node and add-ons beside it; or an agent, which is a
// node of a cluster whose control plane is elsewhere.
//
//	c, err := cluster.New(cluster.Config{})
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//	if err := c.Start(ctx); err != nil {
//		return err
//	}
//	select {
//	case <-c.Ready():
//	case err := <-c.Err():
//		return err
//	}
//	client, err := c.Client()
//
// That is API server, controller-manager and scheduler of Kubernetes, over a store
// in a temporary folder, on loopback at a free port. It needs no root and changes
// nothing of the machine. docs/embedding.md says what it shares with others of its
// kind in one process.
//
// The package itself links no container runtime: whoever wants a node hands it
// in, as pkg/cli does with pkg/node and pkg/addons.
package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/controlplane"
	"github.com/knarr-dev/knarr/pkg/part"
	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/pkg/seed"
	"github.com/knarr-dev/knarr/pkg/status"
)

// Cluster is a control plane with its parts.
type Cluster struct {
	*process
	cfg      Config
	env      *part.Env
	host     string
	certs    *certificates
	settings controlplane.Settings
	place    place
	seed     *seed.Seed // or nil
	restart  *restarter
}

// New checks how the parts fit together. Nothing starts, and nothing is changed but
// that a folder and a port are found where cfg names none. They are given back by
// Close, also if Start is never called.
func New(cfg Config) (*Cluster, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	own, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, restart: newRestarter()}
	c.cfg.Config = own
	if cfg.Seed != "" {
		if c.seed, err = seed.Open(cfg.Seed); err != nil {
			return nil, err
		}
	}
	if err := c.place.find(own); err != nil {
		return nil, err
	}
	c.certs = newCertificates(c.cfg)
	if err := c.assemble(); err != nil {
		c.place.leave()
		return nil, err
	}
	return c, nil
}

// assemble makes the group of all components.
func (c *Cluster) assemble() error {
	cfg := c.cfg
	c.env = &part.Env{Config: cfg.Config, Log: cfg.Log, Answering: "apiserver-tls", Serving: "apiserver"}
	cp := controlplane.Config{
		Config:   cfg.Config,
		PKI:      c.pki,
		Follow:   c.certs.follow,
		Access:   c.certs.access,
		Settings: &c.settings,
		Dir:      filepath.Join(cfg.Config.ServerDir(), "run"),
		CSI:      &c.env.CSI,
		// Known once all parts are, which is before anything runs.
		Streams: c.env.Handlers,
		Listen:  c.place.listen,
		Extend:  c.env.InstallExtensions,
	}
	c.host = cp.Host()
	c.certs.host = c.host
	members := c.membership()
	cp.Admit = members.Handler
	cp.Handlers = map[string]http.Handler{}
	for _, path := range HealthPaths() {
		cp.Handlers[path] = healthHandler(func() status.Report { return c.Status() })
	}

	// A node goes on without its control plane; a program that has nothing else is to
	// be told.
	core := component.Retried
	if cfg.Config.ControlPlaneOnly {
		core = component.Critical
	}
	api := controlplane.NewAPIServer(cp, cfg.Log)
	specs := []component.Spec{
		{Component: component.Func("pki", nil, c.ensurePKI), Class: core},
		{Component: component.Func("kubeconfig", []string{"pki"}, c.writeKubeconfig), Class: core},
		{Component: api, Class: core, StopsAfter: []string{api.Answering().Name()}, FinishStart: true},
		{Component: api.Answering(), Class: component.Retried},
		{Component: controlplane.NewControllerManager(cp), Class: core},
		{Component: controlplane.NewScheduler(cp), Class: core},
		{Component: members, Class: component.Retried},
		{Component: component.Func("cluster-info", []string{"apiserver"}, c.publish), Class: component.Retried},
		{Component: component.Func("authorities", []string{"apiserver"}, c.endRotation), Class: component.Optional},
		{Component: component.Func("node-token", []string{"apiserver"}, c.keepNodeToken), Class: component.Retried},
	}
	for _, p := range cfg.parts() {
		s, err := p.Components(c.env)
		if err != nil {
			return err
		}
		specs = append(specs, s...)
	}
	group, err := component.NewGroup(cfg.Log, specs...)
	if err != nil {
		return fmt.Errorf("put the cluster together: %w", err)
	}
	c.env.SetGroup(group)
	c.process = newProcess(group, func() error {
		if err := os.MkdirAll(filepath.Join(cfg.Config.ServerDir(), "run"), 0o700); err != nil {
			return fmt.Errorf("create data dir (--data-dir): %w", err)
		}
		return c.plant()
	})
	c.metrics = &metrics{report: c.Status, certificates: func() ([]pki.Entry, error) {
		return pki.Inventory(time.Now(), c.certs.cfg.Dir, filepath.Join(c.certs.cfg.Dir, pki.NextDir), filepath.Join(cfg.Config.AgentDir(), "identity"), filepath.Join(cfg.Config.AgentDir(), "kubelet-pki"))
	}}
	return nil
}

// plant has a new cluster begin with its seed.
func (c *Cluster) plant() error {
	dir := c.cfg.Config.DataDir
	if _, err := os.Stat(filepath.Join(c.cfg.Config.ServerDir(), "db", "state.db")); c.seed == nil || err == nil {
		return nil
	}
	work, err := os.MkdirTemp(dir, "seed-*")
	if err != nil {
		return fmt.Errorf("make room for %s: %w", c.cfg.Seed, err)
	}
	return errors.Join(c.seed.PlantControlPlane(context.Background(), work, dir), os.RemoveAll(work))
}

// Close stops everything and waits; then a temporary data dir is removed. It may be
// called twice, and before Start.
func (c *Cluster) Close() {
	c.process.Close()
	c.place.leave()
}

// RESTConfig is an administrator's access to the API, without a limit of requests.
// It is nil until the certificates are there, which is before Ready.
func (c *Cluster) RESTConfig() *rest.Config {
	p := c.pki()
	if p == nil {
		return nil
	}
	r := p.RESTConfig(p.Admin, c.host)
	r.QPS = -1 // the server's own priority and fairness protects it better
	return r
}

// Client is an administrator's, with RESTConfig's access.
func (c *Cluster) Client() (kubernetes.Interface, error) {
	r := c.RESTConfig()
	if r == nil {
		return nil, errNotReady
	}
	client, err := kubernetes.NewForConfig(r)
	if err != nil {
		return nil, fmt.Errorf("create client: %w", err)
	}
	return client, nil
}

// Kubeconfig is the administrator's access as a file for kubectl, with all
// certificates in it. The same is in the file at KubeconfigPath.
func (c *Cluster) Kubeconfig() ([]byte, error) {
	p := c.pki()
	if p == nil {
		return nil, errNotReady
	}
	return p.Kubeconfig(p.Admin, c.host).YAML()
}

// KubeconfigPath is where the administrator's kubeconfig is, once Ready is closed.
func (c *Cluster) KubeconfigPath() string { return c.cfg.Config.Kubeconfig.Path }

// Host is where the API server listens: https://host:port.
func (c *Cluster) Host() string { return c.host }

var errNotReady = errors.New("the cluster has no certificates yet; wait for Ready")

// Status tells the state of every component, and what add-ons have trouble with.
func (c *Cluster) Status() status.Report {
	r := c.process.Status()
	r.Troubles = c.env.Troubles()
	return r
}

// pki returns the certificates, once the component pki is ready.
func (c *Cluster) pki() *pki.PKI { return c.certs.current() }

// access is that of the control plane's own machine.
func (c *Cluster) access() part.Access {
	p := c.pki()
	return part.Access{
		REST:           func(r part.Role) *rest.Config { return c.certs.access(clientOf(r)) },
		ClientCA:       p.ClientCA.TrustPath,
		KubeletServing: p.KubeletServing.Path,
		NodeCertificate: func() (*tls.Certificate, error) {
			own := c.pki().Kubelet.TLS
			return &own, nil
		},
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
