// Package nat gives hosts behind a TUN device a way out that is no route: a
// network stack in this process (gVisor's) ends their connections, and each goes
// on as one that this process makes, from its own network and with its rights.
//
// It carries TCP and UDP over IPv4. A connection is answered when the one that it
// goes on as has been, so that a closed port refuses it here too.
package nat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/knarr-dev/knarr/pkg/dial"
)

const (
	// dialTimeout is about what a client waits for an answer itself.
	dialTimeout = 30 * time.Second
	// inFlight bounds connections that are not yet answered; further ones are
	// dropped, and asked for again by their clients.
	inFlight = 1024
	// udpIdle ends an exchange of UDP that has been silent; RFC 4787 wants two
	// minutes or more (REQ-5).
	udpIdle = 2 * time.Minute
	// dnsIdle is the same for port 53, which RFC 4787 lets be shorter: most
	// exchanges there are one question long.
	dnsIdle = 10 * time.Second

	device = 1
)

// A Gateway is the way out behind one device.
type Gateway struct {
	dial  dial.Func
	tun   *os.File
	stack *stack.Stack

	ctx context.Context
	end context.CancelFunc
	all sync.WaitGroup // of those that start has begun

	mu     sync.Mutex
	closed bool
}

// New carries what comes out of tun, a TUN device without packet information whose
// largest packet has mtu bytes, by dial, until Close. The device is the gateway's
// then, also when New fails.
func New(tun *os.File, mtu int, dial dial.Func) (*Gateway, error) {
	link, err := fdbased.New(&fdbased.Options{FDs: []int{int(tun.Fd())}, MTU: uint32(mtu)})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach to %s: %w", tun.Name(), err), tun.Close())
	}
	g := &Gateway{dial: dial, tun: tun, stack: stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})}
	g.ctx, g.end = context.WithCancel(context.Background())
	// With the device come packets, which read these.
	g.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(g.stack, 0, inFlight, g.stream).HandlePacket)
	g.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(g.stack, g.exchange).HandlePacket)
	g.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: device}})
	for _, terr := range []tcpip.Error{
		g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, new(tcpip.TCPSACKEnabled(true))),
		g.stack.CreateNIC(device, link),
		// It answers for every address, and takes packets for every one.
		g.stack.SetSpoofing(device, true),
		g.stack.SetPromiscuousMode(device, true),
	} {
		if terr != nil {
			return nil, errors.Join(fmt.Errorf("set up a network stack: %s", terr), g.Close())
		}
	}
	return g, nil
}

// Close ends every connection, and returns when nothing of the gateway is left.
func (g *Gateway) Close() error {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.end()
	g.all.Wait()
	g.stack.Destroy()
	return g.tun.Close()
}

// start runs do beside others, unless the gateway is closed; ctx ends with it.
func (g *Gateway) start(do func(ctx context.Context)) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.all.Go(func() { do(g.ctx) })
	return true
}

// stream carries one TCP connection. The stack calls it in a goroutine of its own.
func (g *Gateway) stream(r *tcp.ForwarderRequest) {
	asked := g.start(func(ctx context.Context) {
		out, err := g.connect(ctx, "tcp", r.ID())
		if err != nil {
			r.Complete(true) // refuses
			return
		}
		defer out.Close()
		var queue waiter.Queue
		end, terr := r.CreateEndpoint(&queue)
		r.Complete(terr != nil)
		if terr != nil {
			return
		}
		end.SocketOptions().SetKeepAlive(true)
		in := gonet.NewTCPConn(&queue, end)
		defer in.Close()
		stop := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
		defer stop()
		dial.Pass(in, out)
	})
	if !asked {
		r.Complete(true)
	}
}

// exchange carries UDP between two ports. The stack waits for its return.
func (g *Gateway) exchange(r *udp.ForwarderRequest) {
	var queue waiter.Queue
	end, terr := r.CreateEndpoint(&queue)
	if terr != nil {
		return
	}
	in := gonet.NewUDPConn(&queue, end)
	asked := g.start(func(ctx context.Context) {
		defer in.Close()
		out, err := g.connect(ctx, "udp", r.ID())
		if err != nil {
			return
		}
		defer out.Close()
		stop := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
		defer stop()
		idle := udpIdle
		if r.ID().LocalPort == 53 {
			idle = dnsIdle
		}
		passPackets(in, out, idle)
	})
	if !asked {
		in.Close()
	}
}

func (g *Gateway) connect(ctx context.Context, network string, id stack.TransportEndpointID) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addr := netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort)
	return g.dial(ctx, network, addr.String())
}

// passPackets carries packets both ways until there has been none for idle, or one
// side fails.
func passPackets(a, b net.Conn, idle time.Duration) {
	var last atomic.Int64 // of a packet either way, in nanoseconds
	began := time.Now()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			defer a.Close()
			defer b.Close()
			from, to := way[0], way[1]
			packet := make([]byte, 64<<10)
			for {
				quiet := began.Add(time.Duration(last.Load())).Add(idle)
				if err := from.SetReadDeadline(quiet); err != nil {
					return
				}
				n, err := from.Read(packet)
				if late := net.Error(nil); errors.As(err, &late) && late.Timeout() && time.Since(began) < time.Duration(last.Load())+idle {
					continue // the other way was not idle
				}
				if err != nil {
					return
				}
				last.Store(int64(time.Since(began)))
				if _, err := to.Write(packet[:n]); err != nil {
					return
				}
			}
		})
	}
	both.Wait()
}
