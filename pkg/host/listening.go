package host

import (
	"net/netip"
	"os"
	"slices"
	"strings"
)

// Listening tells the ports of a network, tcp or udp, that something on this
// machine listens on at one of the addresses given, or at all. For udp these are
// the sockets without a peer, clients' among them.
func Listening(network string, addrs []netip.Addr) map[uint16]bool {
	found := map[uint16]bool{}
	for _, file := range []string{network, network + "6"} {
		// A kernel without IPv6 has one of them only. Not /proc/net, which is the
		// process's first thread's.
		text, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err == nil {
			listening(found, network, string(text), addrs)
		}
	}
	return found
}

// listening reads one of the kernel's lists of sockets.
func listening(found map[uint16]bool, network, text string, addrs []netip.Addr) {
	state := "0A"
	if network == "udp" {
		state = "07"
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != state {
			continue
		}
		at, ok := parseSocket(f[1])
		if ok && (at.Addr().IsUnspecified() || slices.Contains(addrs, at.Addr())) {
			found[at.Port()] = true
		}
	}
}
