package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	bridgeName = "lab0"
	outletName = "out0"

	// outletTable is the routing table with the way out, asked after all others.
	outletTable    = 100
	outletPriority = 40000
)

// A network is a namespace with a bridge and nothing else. No link leads out
// of it but those to its hosts, and only an open file keeps it.
type network struct {
	ns     *os.File
	subnet netip.Prefix
}

func newNetwork(subnet netip.Prefix) (_ *network, err error) {
	n := &network{subnet: subnet}
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		// With forwarding on and no route, what hosts send to the world is
		// answered with "network unreachable" instead of silence.
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			return err
		}
		n.ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	err = withHandle(n.ns, func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridgeName
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		return setUp(h, bridgeName, n.prefix(subnet.Addr().Next()))
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make bridge: %w", err), n.close())
	}
	return n, nil
}

func (n *network) close() error { return n.ns.Close() }

func (n *network) prefix(addr netip.Addr) netip.Prefix {
	return netip.PrefixFrom(addr, n.subnet.Bits())
}

// plug joins a host's namespace to the bridge. The MAC address follows from
// the index, so that neighbours know a host again after its reboot.
func (n *network) plug(host *os.File, index int, addr netip.Addr) error {
	err := withHandle(n.ns, func(h *netlink.Handle) error {
		bridge, err := h.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = portName(index), bridge.Attrs().Index
		veth := &netlink.Veth{
			LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(host.Fd())),
			PeerHardwareAddr: net.HardwareAddr{0x02, 0x99, 0, 0, byte(index >> 8), byte(index)},
		}
		if err := h.LinkAdd(veth); err != nil {
			return err
		}
		return h.LinkSetUp(veth)
	})
	if err != nil {
		return fmt.Errorf("plug host into the bridge: %w", err)
	}
	err = withHandle(host, func(h *netlink.Handle) error {
		if err := setUp(h, "lo", netip.Prefix{}); err != nil {
			return err
		}
		if err := setUp(h, "eth0", n.prefix(addr)); err != nil {
			return err
		}
		return h.RouteAdd(&netlink.Route{Gw: n.subnet.Addr().Next().AsSlice()})
	})
	if err != nil {
		return fmt.Errorf("set up the host's network: %w", err)
	}
	return nil
}

// outlet makes a TUN device that TCP and UDP to the world are routed to. Of the
// rest the world's hosts know nothing: it is answered as without an outlet.
func (n *network) outlet() (_ *os.File, err error) {
	var tun *os.File
	err = onThread(func() error {
		if err := enter(n.ns); err != nil {
			return err
		}
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w: load the module tun, and in a container give it the device", err)
		}
		tun = os.NewFile(uintptr(fd), outletName)
		request, err := unix.NewIfreq(outletName)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return fmt.Errorf("make TUN device: %w", err)
		}
		// No route leads back from the outlet to where its packets come from.
		for _, link := range []string{"all", bridgeName, outletName} {
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+link+"/rp_filter", []byte("0"), 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = withHandle(n.ns, routeToOutlet)
	}
	if err != nil {
		if tun != nil {
			err = errors.Join(err, tun.Close())
		}
		return nil, fmt.Errorf("make the network's outlet: %w", err)
	}
	return tun, nil
}

func routeToOutlet(h *netlink.Handle) error {
	if err := setUp(h, outletName, netip.Prefix{}); err != nil {
		return err
	}
	link, err := h.LinkByName(outletName)
	if err != nil {
		return err
	}
	everywhere := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: everywhere, Table: outletTable, Scope: netlink.SCOPE_LINK}
	if err := h.RouteAdd(route); err != nil {
		return err
	}
	for _, protocol := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		rule := netlink.NewRule()
		rule.Family, rule.Priority, rule.Table = netlink.FAMILY_V4, outletPriority, outletTable
		rule.IifName, rule.IPProto = bridgeName, protocol
		if err := h.RuleAdd(rule); err != nil {
			return err
		}
	}
	return nil
}

// unplug removes a host's link at once; the kernel would do so some time
// after the host's namespace ended.
func (n *network) unplug(index int) error {
	return withHandle(n.ns, func(h *netlink.Handle) error {
		port, err := h.LinkByName(portName(index))
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := h.LinkDel(port); !errors.Is(err, unix.ENODEV) { // the kernel may be quicker
			return err
		}
		return nil
	})
}

func portName(index int) string { return fmt.Sprintf("port%d", index) }

func withHandle(ns *os.File, fn func(*netlink.Handle) error) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}

func setUp(h *netlink.Handle, name string, addr netip.Prefix) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if addr.IsValid() {
		ip := &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 32)}
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
			return err
		}
	}
	return h.LinkSetUp(link)
}

// onThread runs fn on an operating system thread of its own, which ends with
// it, so that fn may put the thread into other namespaces. It is never the
// main thread, whose namespaces are the ones that /proc shows for the process.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// While this thread is held here, the next call gets another.
			done <- onThread(fn)
			runtime.UnlockOSThread()
			return
		}
		done <- fn()
	}()
	return <-done
}

// enter puts the calling thread, which must be locked, into a namespace.
func enter(ns *os.File) error {
	if err := unix.Setns(int(ns.Fd()), 0); err != nil {
		return fmt.Errorf("enter namespace %s: %w", ns.Name(), err)
	}
	return nil
}
