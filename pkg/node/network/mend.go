package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/component"
)

// Mender puts the pods' bridge back when another program deletes it: with the
// addresses it had, and with the pods that hung on it. Nobody else would: the CNI
// plugin makes it for the next pod alone, and the others stay cut off.
//
// It knows what it has seen since Run began. A bridge without pods is left
// deleted.
type Mender struct {
	log *slog.Logger
}

var _ component.Component = (*Mender)(nil)

// NewMender returns a mender that has seen nothing yet.
func NewMender(log *slog.Logger) *Mender { return &Mender{log: log} }

// Name implements component.Component.
func (m *Mender) Name() string { return "pod-bridge" }

// Needs implements component.Component.
func (m *Mender) Needs() []string { return nil }

// Run is ready once every deletion would be noticed.
func (m *Mender) Run(ctx context.Context, ready chan<- struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	updates, failed := make(chan netlink.LinkUpdate, 64), make(chan error, 1)
	err := netlink.LinkSubscribeWithOptions(updates, ctx.Done(), netlink.LinkSubscribeOptions{
		ListExisting: true,
		ErrorCallback: func(err error) {
			select {
			case failed <- err:
			default:
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	// Its sender ends with ctx, unless it waits for us.
	defer func() {
		go func() {
			for range updates {
			}
		}()
	}()
	close(ready)
	seen := bridgeSeen{ports: map[int]string{}}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch links: %w", err)
		case u, ok := <-updates:
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return errors.New("watch links: the kernel tells no more")
			}
			if !seen.note(u) {
				continue
			}
			pods := len(seen.ports)
			if err := seen.restore(); err != nil {
				return err
			}
			m.log.Warn("the pods' bridge was deleted by another program; it is back", "link", BridgeName, "pods", pods)
		}
	}
}

// bridgeSeen is what a bridge was like when it was last seen whole.
type bridgeSeen struct {
	link  netlink.Link
	addrs []netlink.Addr
	route []byte         // of its sysctl route_localnet
	ports map[int]string // by index
}

const routeLocalnet = "/proc/sys/net/ipv4/conf/" + BridgeName + "/route_localnet"

// note takes a change in, and tells whether a bridge with pods is gone.
func (b *bridgeSeen) note(u netlink.LinkUpdate) (gone bool) {
	// A port that leaves its bridge is told as deleted too, by the bridge.
	if u.IfInfomsg.Family == unix.AF_BRIDGE {
		return false
	}
	a := u.Link.Attrs()
	deleted := u.Header.Type == unix.RTM_DELLINK
	switch {
	case a.Name == BridgeName && deleted:
		return b.link != nil && a.Index == b.link.Attrs().Index && len(b.ports) > 0
	case a.Name == BridgeName:
		if b.link == nil || b.link.Attrs().Index != a.Index {
			b.link = u.Link
		}
	case deleted:
		delete(b.ports, a.Index)
	case b.link != nil && a.MasterIndex == b.link.Attrs().Index:
		b.ports[a.Index] = a.Name
		b.look()
	}
	return false
}

// look notes what no change of a link tells.
func (b *bridgeSeen) look() {
	if addrs, err := netlink.AddrList(b.link, unix.AF_UNSPEC); err == nil && len(addrs) > 0 {
		b.addrs = addrs
	}
	if text, err := os.ReadFile(routeLocalnet); err == nil {
		b.route = text
	}
}

// restore makes the bridge again. One that somebody else has made meanwhile, a
// CNI plugin for a new pod, gets the ports alone.
func (b *bridgeSeen) restore() error {
	attrs := netlink.NewLinkAttrs()
	was := b.link.Attrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = BridgeName, was.MTU, was.HardwareAddr
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make bridge %s again: %w", BridgeName, err)
	}
	bridge, err := netlink.LinkByName(BridgeName)
	if err != nil {
		return fmt.Errorf("make bridge %s again: %w", BridgeName, err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("make bridge %s again: %w", BridgeName, err)
	}
	for _, a := range b.addrs {
		if a.IP.IsLinkLocalUnicast() {
			continue // the kernel's own
		}
		err := netlink.AddrAdd(bridge, &netlink.Addr{IPNet: a.IPNet})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("give bridge %s its address %s again: %w", BridgeName, a.IPNet, err)
		}
	}
	if len(b.route) > 0 && strings.TrimSpace(string(b.route)) != "0" {
		if err := os.WriteFile(routeLocalnet, b.route, 0); err != nil {
			return fmt.Errorf("set sysctl of bridge %s again: %w", BridgeName, err)
		}
	}
	b.link = bridge
	for index, name := range b.ports {
		port, err := netlink.LinkByIndex(index)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			delete(b.ports, index)
			continue
		}
		if err == nil {
			err = netlink.LinkSetMaster(port, bridge)
		}
		if err == nil {
			err = netlink.LinkSetHairpin(port, true) // as the CNI configuration says
		}
		if err != nil {
			return fmt.Errorf("put pod's link %s on bridge %s again: %w", name, BridgeName, err)
		}
	}
	return nil
}
