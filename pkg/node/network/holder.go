package network

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/host"
)

// Holder keeps the node's addresses on its machine while no link has them: a cable
// is pulled, or the router is dead after a power cut, and what gives addresses takes
// them away or never brings them. Pods find the API server by the node's address,
// and go on doing so.
//
// They are on the loopback link until another one has them. A machine without a
// default route is also given a route to Services, or its own programs would be told
// that there is none before the packet filter leads them on. Both stay when Run ends.
type Holder struct {
	addrs    []netip.Addr
	services netip.Prefix
	log      *slog.Logger
}

var _ component.Component = (*Holder)(nil)

// NewHolder returns a holder that has looked at nothing yet.
func NewHolder(addrs []netip.Addr, services netip.Prefix, log *slog.Logger) *Holder {
	return &Holder{addrs: addrs, services: services, log: log}
}

// Name implements component.Component.
func (h *Holder) Name() string { return "node-address" }

// Needs implements component.Component.
func (h *Holder) Needs() []string { return nil }

// Run is ready once the machine has the addresses.
func (h *Holder) Run(ctx context.Context, ready chan<- struct{}) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	changes, err := host.WatchNetwork(ctx, func(err error) { cancel(fmt.Errorf("watch this machine's addresses: %w", err)) })
	if err != nil {
		return err
	}
	for {
		if err := h.look(); err != nil {
			return err
		}
		if ready != nil {
			close(ready)
			ready = nil
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (h *Holder) look() error {
	n, err := host.ReadNetwork()
	if err != nil {
		return fmt.Errorf("look for this node's addresses: %w", err)
	}
	for _, a := range h.addrs {
		switch has, holds := n.Has(a), n.Holds(a); {
		case !has && !holds:
			h.log.Warn("no link has this node's address any more; it is kept for its own pods until one has", "address", a)
			err = host.EnsureLoopback(a)
		case has && holds:
			h.log.Info("a link has this node's address again", "address", a)
			err = host.RemoveLoopback(a)
		}
		if err != nil {
			return err
		}
	}
	v6 := h.services.Addr().Is6()
	from := slices.IndexFunc(h.addrs, func(a netip.Addr) bool { return a.Is6() == v6 })
	switch led, alone := n.LeadsToLoopback(h.services), !n.DefaultRoute(v6).Addr.IsValid(); {
	case alone && !led && from >= 0:
		return host.EnsureLoopbackRoute(h.services, h.addrs[from])
	case !alone && led:
		return host.RemoveLoopbackRoute(h.services)
	}
	return nil
}
