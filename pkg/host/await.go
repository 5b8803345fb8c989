package host

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// AwaitDefaultRoute returns when the machine has a default route with a source
// address, of either family, or with ctx's error when that ends first. waiting is
// called once if there is none yet.
func AwaitDefaultRoute(ctx context.Context, waiting func()) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	// What changes after the look is told by these, since they are subscribed to
	// before it.
	failed := make(chan error, 1)
	tell := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	routes, addrs := make(chan netlink.RouteUpdate, 16), make(chan netlink.AddrUpdate, 16)
	err := errors.Join(
		netlink.RouteSubscribeWithOptions(routes, ctx.Done(), netlink.RouteSubscribeOptions{ErrorCallback: tell}),
		netlink.AddrSubscribeWithOptions(addrs, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: tell}),
	)
	if err != nil {
		return fmt.Errorf("watch this machine's routes: %w", err)
	}
	for told := false; ; {
		net, err := runningKernel{}.Network()
		if err != nil {
			return fmt.Errorf("look for a default route: %w", err)
		}
		if net.defaultRoute(false).Addr.IsValid() || net.defaultRoute(true).Addr.IsValid() {
			return nil
		}
		if !told {
			told = true
			waiting()
		}
		select {
		case <-routes:
		case <-addrs:
		case err := <-failed:
			if ctx.Err() == nil {
				return fmt.Errorf("watch this machine's routes: %w", err)
			}
		case <-ctx.Done():
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
