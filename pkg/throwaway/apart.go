package throwaway

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/knarr-dev/knarr/pkg/cluster"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/idle"
	"github.com/knarr-dev/knarr/pkg/logs"
	"github.com/knarr-dev/knarr/pkg/memory"
)

// serverLog is the file with what a control plane apart logs.
const serverLog = "server.log"

// checkApart refuses what a control plane without nodes cannot have.
func (c *Config) checkApart() error {
	if c.Nodes > 1 || len(c.Ports)+len(c.Volumes)+len(c.Images) > 0 || c.AllPods || c.RegistryPort != 0 || c.Net == NetNAT {
		return errors.New("a control plane alone has no nodes: leave --nodes, --port, --volume, --image-archive, --load, --registry, --net and --wait all away, or leave --control-plane-only away")
	}
	return nil
}

// controlPlaneDir is the data dir of a control plane apart.
func (f folder) controlPlaneDir(name string) string { return f.file(name, "data") }

// startApart runs a control plane in this process, as any user. It has no host: what
// it has of the machine is a port on loopback.
func (k *keeper) startApart(ctx context.Context) error {
	cfg, err := k.apartConfig()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(k.Folder.file(k.Config.Name, serverLog), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	heap := memory.Hurry(memory.StartHeapApart)
	if !cfg.Log.WorkqueueMetrics {
		idle.Queues()
	}
	logger := logs.Setup(log, logs.Options{})
	k.apart, err = cluster.New(cluster.Config{Config: cfg, Seed: k.Config.From, Log: logger})
	if err != nil {
		return err
	}
	if err := k.Folder.write(k.Record); err != nil {
		return err
	}
	if err := k.apart.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	select {
	case <-k.apart.Ready():
	case err := <-k.apart.Err():
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	k.Record.Server = k.apart.Host()
	if err := k.connect(ctx, k.apart.KubeconfigPath()); err != nil {
		return err
	}
	// This process ends with it.
	go heap.Rest(context.WithoutCancel(ctx), memory.SettleAfterApart, logger)
	go func() {
		if err := <-k.apart.Err(); err != nil {
			k.ended <- fmt.Errorf("the control plane ended: %w", err)
		}
	}()
	return nil
}

// apartConfig is the user's configuration, at places of our own.
func (k *keeper) apartConfig() (*config.Config, error) {
	dir := k.Folder.controlPlaneDir(k.Config.Name)
	given := []config.Given{
		{Name: "control-plane-only", Value: "true"},
		{Name: "data-dir", Value: dir},
		{Name: "write-kubeconfig", Value: filepath.Join(dir, "kubeconfig.yaml")},
		// What a power cut could take is thrown away anyway.
		{Name: "datastore-synchronous", Value: "normal"},
	}
	if len(k.Config.ServerConfig) > 0 {
		path := k.Folder.file(k.Config.Name, "config.yaml")
		if err := os.WriteFile(path, k.Config.ServerConfig, 0o600); err != nil {
			return nil, fmt.Errorf("write the server's configuration: %w", err)
		}
		given = append(given, config.Given{Name: "config", Value: path})
	}
	cfg, _, err := config.Load(config.Sources{Flags: given})
	if err := errors.Join(err, cfg.Complete(config.ThisHost())); err != nil {
		return nil, err
	}
	return cfg, nil
}
