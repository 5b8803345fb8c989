package nodeport

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// idle is how long a UDP session without a packet is kept, as long as the
	// kernel keeps its own record of one.
	idle = 2 * time.Minute
	// maxSessions bounds what a single port may hold; packets of further clients
	// are dropped until a session ends.
	maxSessions = 4096
	// maxPacket is the largest payload that UDP carries.
	maxPacket = 65535
)

// relay forwards the packets of one UDP front. Each client gets a socket of its
// own towards the Service, so that answers find their way back.
type relay struct {
	front *net.UDPConn
	to    netip.AddrPort
	idle  time.Duration
	// buffers are of maxPacket bytes. A socket borrows one once it has a packet,
	// so that silent ones hold none.
	buffers sync.Pool

	mu       sync.Mutex
	closed   bool
	sessions map[netip.AddrPort]*session
}

// session is one client of a relay.
type session struct {
	conn *net.UDPConn
	last atomic.Int64 // when the client last sent, nanoseconds since 1970
}

func newRelay(front *net.UDPConn, to netip.AddrPort) *relay {
	return &relay{
		front:    front,
		to:       to,
		idle:     idle,
		buffers:  sync.Pool{New: func() any { return new([maxPacket]byte) }},
		sessions: make(map[netip.AddrPort]*session),
	}
}

// run forwards until the relay is closed.
func (r *relay) run(tasks *sync.WaitGroup) {
	for {
		err := r.receive(r.front, func(packet []byte, client netip.AddrPort) {
			s := r.session(tasks, client)
			if s == nil {
				return
			}
			s.last.Store(time.Now().UnixNano())
			// An error here is that of a packet sent before; this one is lost, as
			// UDP packets may be.
			_, _ = s.conn.Write(packet)
		})
		// Other errors are of single packets, such as an answer to a client that
		// is gone.
		if errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// receive waits for a packet and hands it to do.
func (r *relay) receive(conn *net.UDPConn, do func(packet []byte, from netip.AddrPort)) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peeked error
	if err := raw.Read(func(fd uintptr) bool {
		_, _, peeked = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(peeked, unix.EAGAIN)
	}); err != nil {
		return err
	}
	if peeked != nil {
		return peeked
	}
	buf := r.buffers.Get().(*[maxPacket]byte)
	defer r.buffers.Put(buf)
	n, from, err := conn.ReadFromUDPAddrPort(buf[:])
	if err != nil {
		return err
	}
	do(buf[:n], from)
	return nil
}

// session returns the client's session, a new one if need be; nil when there is
// no room for one.
func (r *relay) session(tasks *sync.WaitGroup, client netip.AddrPort) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sessions[client]; s != nil {
		return s
	}
	if r.closed || len(r.sessions) >= maxSessions {
		return nil
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(r.to))
	if err != nil {
		return nil
	}
	s := &session{conn: conn}
	s.last.Store(time.Now().UnixNano())
	r.sessions[client] = s
	tasks.Go(func() { r.answer(s, client) })
	return s
}

// answer carries the Service's packets back to the client, until the session
// has been idle, the Service refuses, or the relay is closed.
func (r *relay) answer(s *session, client netip.AddrPort) {
	defer func() {
		r.mu.Lock()
		delete(r.sessions, client)
		r.mu.Unlock()
		_ = s.conn.Close()
	}()
	end := time.Now().Add(r.idle)
	for {
		_ = s.conn.SetReadDeadline(end)
		err := r.receive(s.conn, func(packet []byte, _ netip.AddrPort) {
			_, _ = r.front.WriteToUDPAddrPort(packet, client)
			end = time.Now().Add(r.idle)
		})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// The client alone may have kept the session busy.
			end = time.Unix(0, s.last.Load()).Add(r.idle)
			if time.Now().Before(end) {
				continue
			}
		}
		if err != nil {
			return
		}
	}
}

func (r *relay) close() {
	_ = r.front.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, s := range r.sessions {
		_ = s.conn.Close()
	}
}
