package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// queueBytes is how much the UDP socket holds while nobody reads: some thousand
// queries, the second of a restart on a busy node. Only what waits takes memory.
const queueBytes = 4 << 20

// Sockets are the UDP socket and the TCP listener of a name server. Queries and
// connections wait in them while no server runs.
//
// They don't share their port (SO_REUSEPORT): what waits in a socket is lost
// when that socket closes, so a successor must be given this one, not open a
// second.
type Sockets struct {
	udp *net.UDPConn
	tcp *net.TCPListener
}

// Listen binds both sockets to addr. The address need not be on a link yet.
// With port 0 the system chooses one.
func Listen(ctx context.Context, addr netip.AddrPort) (*Sockets, error) {
	lc := net.ListenConfig{Control: prepare}
	l, err := lc.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return nil, listenError("tcp", addr, err)
	}
	tcp := l.(*net.TCPListener)
	addr = tcp.Addr().(*net.TCPAddr).AddrPort()
	p, err := lc.ListenPacket(ctx, "udp", addr.String())
	if err != nil {
		tcp.Close()
		return nil, listenError("udp", addr, err)
	}
	return &Sockets{udp: p.(*net.UDPConn), tcp: tcp}, nil
}

func listenError(network string, addr netip.AddrPort, err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("listen on %s/%s for cluster DNS: another name server listens there or on all addresses: restrict it to its own (dnsmasq: bind-interfaces), or set --disable dns: %w", addr, network, err)
	}
	return fmt.Errorf("listen on %s/%s for cluster DNS: %w", addr, network, err)
}

func prepare(network, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		level, option := unix.IPPROTO_IP, unix.IP_FREEBIND
		if network == "udp6" || network == "tcp6" {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
		}
		if err = unix.SetsockoptInt(int(fd), level, option, 1); err != nil {
			err = fmt.Errorf("allow binding before the address exists: %w", err)
			return
		}
		if network == "udp4" || network == "udp6" {
			// Best effort: the default queue serves a quiet node as well.
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queueBytes) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, queueBytes)
			}
		}
	}); cerr != nil {
		return cerr
	}
	return err
}

// FromFiles takes over the sockets that a predecessor's Files handed down, in
// any order. The files are closed, whatever the outcome.
func FromFiles(files ...*os.File) (*Sockets, error) {
	s := &Sockets{}
	var errs []error
	for _, f := range files {
		errs = append(errs, s.adopt(f), f.Close())
	}
	if s.udp == nil || s.tcp == nil {
		errs = append(errs, errors.New("a UDP socket and a TCP listener are needed"))
	} else if s.udp.LocalAddr().String() != s.tcp.Addr().String() {
		errs = append(errs, fmt.Errorf("the sockets belong to two addresses: %s/udp, %s/tcp", s.udp.LocalAddr(), s.tcp.Addr()))
	}
	if err := errors.Join(errs...); err != nil {
		s.Close()
		return nil, fmt.Errorf("take over the sockets of cluster DNS: %w", err)
	}
	return s, nil
}

func (s *Sockets) adopt(f *os.File) error {
	if p, err := net.FilePacketConn(f); err == nil {
		if udp, ok := p.(*net.UDPConn); ok && s.udp == nil {
			s.udp = udp
			return nil
		}
		p.Close()
		return fmt.Errorf("%s is not the UDP socket", f.Name())
	}
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("%s is not a listening socket: %w", f.Name(), err)
	}
	if tcp, ok := l.(*net.TCPListener); ok && s.tcp == nil {
		s.tcp = tcp
		return nil
	}
	l.Close()
	return fmt.Errorf("%s is not the TCP listener", f.Name())
}

// Addr is what both sockets are bound to.
func (s *Sockets) Addr() netip.AddrPort {
	a := s.tcp.Addr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Files gives copies of the UDP socket and the TCP listener, in this order, to
// hand to a successor or to systemd's descriptor store. The caller closes them.
func (s *Sockets) Files() ([]*os.File, error) {
	udp, err := s.udp.File()
	if err != nil {
		return nil, fmt.Errorf("copy the UDP socket of cluster DNS: %w", err)
	}
	tcp, err := s.tcp.File()
	if err != nil {
		udp.Close()
		return nil, fmt.Errorf("copy the TCP listener of cluster DNS: %w", err)
	}
	return []*os.File{udp, tcp}, nil
}

// dup gives second handles on the same sockets: a server closes its own ones
// when it stops.
func (s *Sockets) dup() (*net.UDPConn, *net.TCPListener, error) {
	files, err := s.Files()
	if err != nil {
		return nil, nil, err
	}
	d, err := FromFiles(files...)
	if err != nil {
		return nil, nil, err
	}
	return d.udp, d.tcp, nil
}

// Close gives the sockets up. What waits in them is lost, unless another handle
// on them is open.
func (s *Sockets) Close() error {
	var errs []error
	if s.udp != nil {
		errs = append(errs, s.udp.Close())
	}
	if s.tcp != nil {
		errs = append(errs, s.tcp.Close())
	}
	return errors.Join(errs...)
}
