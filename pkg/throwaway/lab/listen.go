package lab

import (
	"context"
	"fmt"
	"net"
)

// Listen listens in the host's network, for a server that is part of this
// program. The address must be numeric; without one it is every address of the
// host. The listener works until it is closed or the host ends.
func (h *Host) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	var l net.Listener
	err := h.inNetwork(func() (err error) {
		var c net.ListenConfig
		l, err = c.Listen(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen in host %s: %w", h.cfg.Name, err)
	}
	return l, nil
}
