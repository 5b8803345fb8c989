package cli

import (
	"context"
	"os"
	"time"

	"github.com/knarr-dev/knarr/pkg/cluster"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/idle"
	"github.com/knarr-dev/knarr/pkg/logs"
	"github.com/knarr-dev/knarr/pkg/memory"
	"github.com/knarr-dev/knarr/pkg/version"
)

// runApart runs a control plane that has nothing to do with the machine, as any user,
// until ctx ends.
func runApart(ctx context.Context, cfg *config.Config) error {
	if err := os.Unsetenv(tokenVariable); err != nil {
		return err
	}
	log := logs.Setup(os.Stderr, logs.Options{Debug: cfg.Log.Debug, JSON: cfg.Log.Format == "json"})
	heap := memory.Hurry(memory.StartHeapApart)
	if !cfg.Log.WorkqueueMetrics {
		idle.Queues()
	}
	c, err := cluster.New(cluster.Config{Config: cfg, Log: log})
	if err != nil {
		return err
	}
	defer c.Close()
	began := time.Now()
	if err := c.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	select {
	case <-c.Ready():
	case err := <-c.Err():
		return err
	case <-ctx.Done():
		return nil
	}
	if cfg.Log.Timings {
		(&server{out: os.Stderr}).timings(c)
	}
	log.Info("ready", "after", time.Since(began).Round(time.Millisecond), "version", version.Kubernetes, "server", c.Host(), "kubeconfig", c.KubeconfigPath())
	go heap.Rest(ctx, memory.SettleAfterApart, log)
	select {
	case <-ctx.Done():
		c.Close()
		return <-c.Err()
	case err := <-c.Err():
		return err
	}
}
