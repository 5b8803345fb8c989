package host

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// WatchNetwork tells of changes of this network namespace's addresses and routes
// until ctx ends: of several at once, once. What changes after it has returned is
// told. failed is called when the kernel stops telling.
func WatchNetwork(ctx context.Context, failed func(error)) (<-chan struct{}, error) {
	ctx, stop := context.WithCancel(ctx)
	tell := func(err error) {
		if ctx.Err() == nil {
			failed(err)
		}
	}
	routes, addrs := make(chan netlink.RouteUpdate, 16), make(chan netlink.AddrUpdate, 16)
	err := errors.Join(
		netlink.RouteSubscribeWithOptions(routes, ctx.Done(), netlink.RouteSubscribeOptions{ErrorCallback: tell}),
		netlink.AddrSubscribeWithOptions(addrs, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: tell}),
	)
	if err != nil {
		stop()
		return nil, fmt.Errorf("watch this machine's routes and addresses: %w", err)
	}
	changed := make(chan struct{}, 1)
	go func() {
		defer stop()
		// Their senders end with ctx, unless they wait for us.
		for routes != nil || addrs != nil {
			var open bool
			select {
			case _, open = <-routes:
				if !open {
					routes = nil
				}
			case _, open = <-addrs:
				if !open {
					addrs = nil
				}
			}
			if open {
				select {
				case changed <- struct{}{}:
				default:
				}
			}
		}
	}()
	return changed, nil
}

// AwaitNetwork returns when the machine has enough of a network, or with ctx's error
// when that ends first. waiting is called once if it has not yet.
func AwaitNetwork(ctx context.Context, enough func(Network) bool, waiting func()) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	failed := make(chan error, 1)
	// What changes after the look is told, since it is watched for before it.
	changed, err := WatchNetwork(ctx, func(err error) {
		select {
		case failed <- err:
		default:
		}
	})
	if err != nil {
		return err
	}
	for told := false; ; {
		net, err := ReadNetwork()
		if err != nil {
			return fmt.Errorf("look for this machine's network: %w", err)
		}
		if enough(net) {
			return nil
		}
		if !told {
			told = true
			waiting()
		}
		select {
		case <-changed:
		case err := <-failed:
			return fmt.Errorf("watch this machine's routes and addresses: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
