package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/ports"
)

// Listener is a port that Knarr will listen on.
type Listener struct {
	// Use is who listens: the API server.
	Use string
	// Network is tcp or udp.
	Network string
	Addr    netip.AddrPort
	// Needed is set if the server ends where the port is taken; else it goes on
	// and tries again.
	Needed bool
	// Do is how to choose another port.
	Do string
}

func (l Listener) String() string {
	if l.Addr.Addr().IsUnspecified() {
		return fmt.Sprintf("port %d/%s", l.Addr.Port(), l.Network)
	}
	return fmt.Sprintf("port %s/%s", l.Addr, l.Network)
}

// checkPorts tries each port, and looks only then who holds those that are
// taken: a busy machine has long lists of connections.
func (s *survey) checkPorts(f *findings) string {
	var free []string
	for _, l := range s.cfg.Listeners {
		err := s.kernel().Bind(l.Network, l.Addr)
		if err == nil {
			free = append(free, fmt.Sprintf("%d/%s", l.Addr.Port(), l.Network))
			continue
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			f.warnf(l.String()+" can't be listened on", err.Error(), l.Use+" needs it", l.Do)
			continue
		}
		holder, ok := s.portHolder(l)
		if ok {
			s.taken(f, l, holder)
		}
	}
	return "free: " + strings.Join(free, ", ")
}

func (s *survey) taken(f *findings, l Listener, holder string) {
	if l.Needed {
		f.errorf(l.String()+" is taken", "by "+holder, l.Use+" can't do without it", "stop that, or "+l.Do)
		return
	}
	f.warnf(l.String()+" is taken", "by "+holder, l.Use+" tries again until it is free", "stop that, or "+l.Do)
}

// portHolder names who holds a port. It is not ok if that is no hindrance: a
// Knarr of before on the same data dir, which is told elsewhere, or what it left
// on purpose (DNS' sockets in systemd's hands, a vxlan link of the kernel's).
func (s *survey) portHolder(l Listener) (holder string, ok bool) {
	inodes := s.sockets(l)
	pid := s.ownerOf(inodes)
	switch pid {
	case 0:
		return "a process that can't be seen from here", l.Network != "udp" || len(inodes) == 0
	case os.Getpid(), s.holder():
		return "", false
	}
	name := s.read(fmt.Sprintf("/proc/%d/comm", pid))
	if pid == 1 && name == "systemd" && l.Addr.Port() == 53 {
		return "", false
	}
	return fmt.Sprintf("%s, process %d", name, pid), true
}

// sockets are the inodes of those that keep others from listening.
func (s *survey) sockets(l Listener) []string {
	const listening, unconnected = "0A", "07"
	state := listening
	if l.Network == "udp" {
		state = unconnected
	}
	var inodes []string
	for _, file := range []string{l.Network, l.Network + "6"} {
		// Not /proc/net, which is the process's first thread's: it may be in another namespace.
		for line := range strings.Lines(s.read("/proc/thread-self/net/" + file)) {
			// 0: 00000000:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4242 …
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != state {
				continue
			}
			addr, ok := parseSocket(f[1])
			if !ok || addr.Port() != l.Addr.Port() {
				continue
			}
			if a, b := addr.Addr(), l.Addr.Addr(); a == b || a.IsUnspecified() || b.IsUnspecified() {
				inodes = append(inodes, f[9])
			}
		}
	}
	return inodes
}

// parseSocket reads an address as /proc/net writes it; one of IPv4 in a list of
// IPv6 is one of IPv4.
func parseSocket(text string) (netip.AddrPort, bool) {
	at, err := ports.ParseAddr(text)
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), err == nil
}

// ownerOf finds a process that has one of the sockets open; 0 if none is seen.
func (s *survey) ownerOf(inodes []string) int {
	if len(inodes) == 0 {
		return 0
	}
	var links []string
	for _, inode := range inodes {
		links = append(links, "socket:["+inode+"]")
	}
	pids := []int{os.Getpid()}
	for _, p := range s.processes() {
		pids = append(pids, p.pid)
	}
	for _, pid := range pids {
		dir := s.path(fmt.Sprintf("/proc/%d/fd", pid))
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if link, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && slices.Contains(links, link) {
				return pid
			}
		}
	}
	return 0
}
