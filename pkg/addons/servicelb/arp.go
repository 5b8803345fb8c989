package servicelb

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// arpConn speaks ARP (RFC 826) over IPv4 and Ethernet on one link.
type arpConn struct {
	file *os.File
	mac  net.HardwareAddr
}

const (
	etherHeader = 14
	arpLength   = 28
	arpRequest  = 1
	arpReply    = 2
)

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func openARP(link *net.Interface) (neighbourConn, error) {
	protocol := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ARP >> 8, unix.ETH_P_ARP & 0xff})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(protocol))
	if err != nil {
		return nil, fmt.Errorf("open a socket for ARP on %s: %w", link.Name, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Index}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind a socket for ARP to %s: %w", link.Name, err)
	}
	return &arpConn{file: os.NewFile(uintptr(fd), "arp "+link.Name), mac: link.HardwareAddr}, nil
}

func (c *arpConn) close() error { return c.file.Close() }

func (c *arpConn) join(netip.Addr) error { return nil }

func (c *arpConn) run(mine func(netip.Addr) bool) {
	buf := make([]byte, 128)
	for {
		n, err := c.file.Read(buf)
		if err != nil {
			return // it was closed, or its link is gone
		}
		q, ok := parseARP(buf[:n])
		if ok && q.op == arpRequest && mine(q.target) {
			// One that is lost is asked for again.
			_, _ = c.file.Write(arpPacket{op: arpReply, senderMAC: c.mac, sender: q.target, targetMAC: q.senderMAC, target: q.sender}.marshal(q.senderMAC))
		}
	}
}

// announce tells by a request and a reply, since some neighbours believe only one
// of them (RFC 5227, section 3).
func (c *arpConn) announce(addr netip.Addr) error {
	for _, op := range []uint16{arpRequest, arpReply} {
		p := arpPacket{op: op, senderMAC: c.mac, sender: addr, targetMAC: broadcast, target: addr}
		if _, err := c.file.Write(p.marshal(broadcast)); err != nil {
			return fmt.Errorf("announce %s: %w", addr, err)
		}
	}
	return nil
}

// arpPacket is a question or an answer.
type arpPacket struct {
	op                   uint16
	senderMAC, targetMAC net.HardwareAddr
	sender, target       netip.Addr
}

// marshal writes the packet with an Ethernet header before it.
func (p arpPacket) marshal(to net.HardwareAddr) []byte {
	b := make([]byte, 0, etherHeader+arpLength)
	b = append(b, to...)
	b = append(b, p.senderMAC...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_ARP)
	b = binary.BigEndian.AppendUint16(b, 1) // Ethernet
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	b = append(b, 6, 4)
	b = binary.BigEndian.AppendUint16(b, p.op)
	b = append(b, p.senderMAC...)
	b = append(b, p.sender.AsSlice()...)
	b = append(b, p.targetMAC...)
	return append(b, p.target.AsSlice()...)
}

// parseARP reads what marshal writes, as any neighbour may have sent it.
func parseARP(b []byte) (p arpPacket, ok bool) {
	if len(b) < etherHeader+arpLength || binary.BigEndian.Uint16(b[12:]) != unix.ETH_P_ARP {
		return p, false
	}
	b = b[etherHeader:]
	if binary.BigEndian.Uint16(b) != 1 || binary.BigEndian.Uint16(b[2:]) != unix.ETH_P_IP || b[4] != 6 || b[5] != 4 {
		return p, false
	}
	return arpPacket{
		op:        binary.BigEndian.Uint16(b[6:]),
		senderMAC: net.HardwareAddr(append([]byte(nil), b[8:14]...)), sender: netip.AddrFrom4([4]byte(b[14:18])),
		targetMAC: net.HardwareAddr(append([]byte(nil), b[18:24]...)), target: netip.AddrFrom4([4]byte(b[24:28])),
	}, true
}
