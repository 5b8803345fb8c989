package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
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
	addr netip.AddrPort

	mu sync.Mutex
	// Plain descriptors, -1 if there is none: as a file of Go's each would have its
	// network poller wake up for every packet that a server has read from another
	// handle, which halved the rate of answers.
	udp, tcp int
}

// Listen binds both sockets to addr. The address need not be on a link yet.
// With port 0 the system chooses one.
func Listen(ctx context.Context, addr netip.AddrPort) (*Sockets, error) {
	lc := net.ListenConfig{Control: prepare}
	tcp, err := lc.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return nil, listenError("tcp", addr, err)
	}
	defer tcp.Close()
	addr = tcp.Addr().(*net.TCPAddr).AddrPort()
	udp, err := lc.ListenPacket(ctx, "udp", addr.String())
	if err != nil {
		return nil, listenError("udp", addr, err)
	}
	defer udp.Close()
	udpFile, err := udp.(*net.UDPConn).File()
	if err != nil {
		return nil, listenError("udp", addr, err)
	}
	tcpFile, err := tcp.(*net.TCPListener).File()
	if err != nil {
		return nil, errors.Join(listenError("tcp", addr, err), udpFile.Close())
	}
	return FromFiles(udpFile, tcpFile)
}

func duplicate(of int) (int, error) {
	fd, err := unix.FcntlInt(uintptr(of), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("copy a socket: %w", err)
	}
	return fd, nil
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
	s := &Sockets{udp: -1, tcp: -1}
	var errs []error
	for _, f := range files {
		errs = append(errs, s.adopt(f), f.Close())
	}
	if s.udp < 0 || s.tcp < 0 {
		errs = append(errs, errors.New("a UDP socket and a TCP listener are needed"))
	} else if udp, tcp, err := s.Serve(); err != nil {
		errs = append(errs, err)
	} else {
		if udp.LocalAddr().String() != tcp.Addr().String() {
			errs = append(errs, fmt.Errorf("the sockets belong to two addresses: %s/udp, %s/tcp", udp.LocalAddr(), tcp.Addr()))
		}
		addr := tcp.Addr().(*net.TCPAddr).AddrPort()
		s.addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
		udp.Close()
		tcp.Close()
	}
	if err := errors.Join(errs...); err != nil {
		s.Close()
		return nil, fmt.Errorf("take over the sockets of cluster DNS: %w", err)
	}
	return s, nil
}

func (s *Sockets) adopt(f *os.File) error {
	fd, err := duplicate(int(f.Fd()))
	if err != nil {
		return err
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("%s is no socket: %w", f.Name(), err)
	}
	to, what := &s.udp, "UDP socket"
	if kind == unix.SOCK_STREAM {
		to, what = &s.tcp, "TCP listener"
	}
	if *to >= 0 {
		unix.Close(fd)
		return fmt.Errorf("%s is not the %s", f.Name(), what)
	}
	*to = fd
	return nil
}

// Addr is what both sockets are bound to.
func (s *Sockets) Addr() netip.AddrPort { return s.addr }

// Files gives copies of the UDP socket and the TCP listener, in this order, to
// hand to a successor or to systemd's descriptor store. The caller closes them.
func (s *Sockets) Files() ([]*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var files []*os.File
	for _, f := range []struct {
		fd   int
		name string
	}{{s.udp, "the UDP socket"}, {s.tcp, "the TCP listener"}} {
		fd, err := duplicate(f.fd)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, fmt.Errorf("copy %s of cluster DNS: %w", f.name, err)
		}
		files = append(files, os.NewFile(uintptr(fd), f.name))
	}
	return files, nil
}

// Serve gives handles on the sockets for a server to read from and to close when it
// stops. There should be one server at a time.
func (s *Sockets) Serve() (*net.UDPConn, *net.TCPListener, error) {
	files, err := s.Files()
	if err != nil {
		return nil, nil, err
	}
	defer files[0].Close()
	defer files[1].Close()
	p, err := net.FilePacketConn(files[0])
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", files[0].Name(), err)
	}
	l, err := net.FileListener(files[1])
	if err != nil {
		p.Close()
		return nil, nil, fmt.Errorf("open %s: %w", files[1].Name(), err)
	}
	udp, isUDP := p.(*net.UDPConn)
	tcp, isTCP := l.(*net.TCPListener)
	if !isUDP || !isTCP {
		p.Close()
		l.Close()
		return nil, nil, fmt.Errorf("sockets at %s and %s are not those of a name server", p.LocalAddr(), l.Addr())
	}
	return udp, tcp, nil
}

// Close gives the sockets up. What waits in them is lost, unless another handle
// on them is open. A second call does nothing.
func (s *Sockets) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, fd := range []*int{&s.udp, &s.tcp} {
		if *fd >= 0 {
			errs = append(errs, unix.Close(*fd))
			*fd = -1
		}
	}
	return errors.Join(errs...)
}
