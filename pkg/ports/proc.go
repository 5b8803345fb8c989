package ports

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// States in the kernel's lists, see include/net/tcp_states.h. A UDP socket that
// takes packets from anybody is "closed".
const (
	tcpListen = "0A"
	udpOpen   = "07"
)

// ParseProc reads the listening sockets in the text of /proc/net/tcp, tcp6, udp or
// udp6.
func ParseProc(file, text string) ([]Socket, error) {
	network, state := strings.TrimSuffix(file, "6"), tcpListen
	if network == "udp" {
		state = udpOpen
	}
	var found []Socket
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			return nil, fmt.Errorf("read /proc/net/%s: the line %q is too short", file, line)
		}
		if fields[3] != state {
			continue
		}
		addr, err := ParseAddr(fields[1])
		if err != nil {
			return nil, fmt.Errorf("read /proc/net/%s: %w", file, err)
		}
		found = append(found, Socket{Network: network, Addr: addr})
	}
	return found, nil
}

// ParseAddr reads an address as the kernel prints it: words of 32 bits, each in
// the machine's order of bytes.
func ParseAddr(text string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}
