package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/part"
	"github.com/knarr-dev/knarr/pkg/scratch"
)

// Config is a cluster's configuration and its parts. Its zero value is a control
// plane apart from the machine, for tests and development. When a part of such a one
// fails, all of it stops and Err tells why; on a node they are tried again.
type Config struct {
	// DataDir keeps all state; a cluster that ran there before goes on. Default: a
	// new folder among the machine's temporary files, which Close removes.
	DataDir string
	// Seed is a file of `knarr save` that a new cluster begins with: its objects, with
	// authorities and keys of its own. A control plane without nodes leaves out those
	// and their pods. A data dir with a cluster in it goes on as it is. Default: none.
	Seed string
	// BindAddress is the address listened on. Default 127.0.0.1.
	BindAddress netip.Addr
	// Port is the HTTPS port. Default: a free one.
	Port int
	// TLSSANs are further names and addresses for the serving certificate.
	TLSSANs []string
	// APIServerArgs, ControllerManagerArgs and SchedulerArgs are further flags of
	// upstream's, name=value. Feature gates hold for the whole process.
	APIServerArgs         []string
	ControllerManagerArgs []string
	SchedulerArgs         []string

	// Config says everything in place of the fields above, which must then be empty:
	// what `knarr server` is told. It must have been completed.
	Config *config.Config

	// Node and Addons run beside the control plane: pkg/node and pkg/addons. They
	// need root and a machine that is prepared for them; see cli.Serve.
	Node, Addons part.Part
	// Parts are whatever else shall run with the cluster.
	Parts []part.Part

	// Log defaults to slog.Default.
	Log *slog.Logger
}

func (c Config) parts() []part.Part {
	all := c.Parts
	for _, p := range []part.Part{c.Addons, c.Node} {
		if p != nil {
			all = append([]part.Part{p}, all...)
		}
	}
	return all
}

// complete returns all settings, as a copy.
func (c Config) complete() (*config.Config, error) {
	if c.Config != nil {
		if c.DataDir != "" || c.BindAddress.IsValid() || c.Port != 0 || c.TLSSANs != nil || c.APIServerArgs != nil || c.ControllerManagerArgs != nil || c.SchedulerArgs != nil {
			return nil, errors.New("configure cluster: the field Config says everything; leave DataDir, BindAddress, Port, TLSSANs and the arguments empty, or set them there")
		}
		own := *c.Config
		return &own, nil
	}
	own := config.Default()
	own.ControlPlaneOnly = true
	own.API.BindAddress, own.API.TLSSANs = c.BindAddress, c.TLSSANs
	own.ControlPlane = config.ControlPlane{APIServerArgs: c.APIServerArgs, ControllerManagerArgs: c.ControllerManagerArgs, SchedulerArgs: c.SchedulerArgs}
	if err := own.Complete(config.ThisHost()); err != nil {
		return nil, fmt.Errorf("configure cluster: %w", err)
	}
	if c.Port < 0 || c.Port > 65535 {
		return nil, fmt.Errorf("configure cluster: port %d is none; give one of 1 to 65535, or 0 for a free one", c.Port)
	}
	own.API.Port = c.Port
	if c.DataDir != "" {
		dir, err := filepath.Abs(c.DataDir)
		if err != nil {
			return nil, fmt.Errorf("configure cluster: data dir %s: %w", c.DataDir, err)
		}
		own.DataDir = dir
	}
	return own, nil
}

// place is what a cluster has of the machine without having been told.
type place struct {
	dir *scratch.Folder // temporary, or nil

	mu  sync.Mutex
	lis net.Listener // until the API server takes it
}

// find completes c by a temporary folder and a free port.
func (p *place) find(c *config.Config) (err error) {
	if c.DataDir == "" {
		if p.dir, err = scratch.Make(); err != nil {
			return fmt.Errorf("make a temporary data dir: %w; name one that can be written", err)
		}
		c.DataDir = p.dir.Path
		// It does not outlive the process, so that nothing has to survive a power cut.
		if !c.IsSet("datastore-synchronous") {
			c.Store.Synchronous = "normal"
		}
	}
	if c.RunDir == "" {
		c.RunDir = filepath.Join(c.DataDir, "run")
	}
	if c.Kubeconfig.Path == "" {
		c.Kubeconfig.Path = filepath.Join(c.DataDir, "kubeconfig.yaml")
	}
	if c.API.Port != 0 {
		return nil
	}
	p.lis, err = new(net.ListenConfig).Listen(context.Background(), "tcp", netip.AddrPortFrom(c.API.BindAddress, 0).String())
	if err != nil {
		p.leave()
		return fmt.Errorf("find a free port on %s: %w", c.API.BindAddress, err)
	}
	_, port, err := net.SplitHostPort(p.lis.Addr().String())
	if err == nil {
		c.API.Port, err = strconv.Atoi(port)
	}
	if err != nil {
		p.leave()
		return fmt.Errorf("find a free port on %s: %w", c.API.BindAddress, err)
	}
	return nil
}

// listen gives the port that was found, and opens it anew from then on.
func (p *place) listen(ctx context.Context, addr string) (net.Listener, error) {
	p.mu.Lock()
	lis := p.lis
	p.lis = nil
	p.mu.Unlock()
	if lis != nil {
		return lis, nil
	}
	return new(net.ListenConfig).Listen(ctx, "tcp", addr)
}

// leave gives back what find took. It may be called twice.
func (p *place) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lis != nil {
		_ = p.lis.Close()
		p.lis = nil
	}
	if p.dir != nil {
		// What cannot be removed is among the temporary files.
		_ = p.dir.Remove()
	}
}
