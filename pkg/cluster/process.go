package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/status"
	"github.com/knarr-dev/knarr/pkg/version"
)

// process is a group of components as its owner sees it.
type process struct {
	group   *component.Group
	prepare func() error
	// metrics are those of legacyregistry while it runs.
	metrics *metrics

	mu     sync.Mutex
	cancel context.CancelFunc // nil before Start
	done   chan struct{}
	err    chan error
}

// newProcess returns one that is not started. prepare comes before any component.
func newProcess(g *component.Group, prepare func() error) *process {
	return &process{group: g, prepare: prepare, done: make(chan struct{}), err: make(chan error, 1)}
}

// Start begins to start everything and returns. It may be called once. When ctx
// ends, everything stops as by Close.
func (p *process) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cancel != nil {
		return errors.New("start: it was started before")
	}
	if err := version.Apply(); err != nil {
		return fmt.Errorf("set version of Kubernetes: %w", err)
	}
	if err := p.prepare(); err != nil {
		return err
	}
	// Of two clusters in one process, the first is told of.
	registered := p.metrics != nil && legacyregistry.Registerer().Register(p.metrics) == nil
	ctx, p.cancel = context.WithCancel(ctx)
	go func() {
		defer close(p.done)
		if registered {
			defer legacyregistry.Registerer().Unregister(p.metrics)
		}
		if err := p.group.Run(ctx); err != nil {
			p.err <- err
		}
		close(p.err)
	}()
	return nil
}

// Ready is closed when every component that is not optional has been ready.
func (p *process) Ready() <-chan struct{} { return p.group.AllReady() }

// Err tells why everything stopped, and is closed when it has.
func (p *process) Err() <-chan error { return p.err }

// Close stops everything and waits. It may be called twice, and before Start.
func (p *process) Close() {
	p.mu.Lock()
	cancel := p.cancel
	p.mu.Unlock()
	if cancel == nil {
		return
	}
	cancel()
	<-p.done
}

// Status tells the state of every component.
func (p *process) Status() status.Report { return status.Of(p.group, version.Get().Knarr) }

// Group gives the components' states to those who wait for one of them.
func (p *process) Group() *component.Group { return p.group }
