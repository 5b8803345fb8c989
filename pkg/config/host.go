package config

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"strings"
)

// Host is what Complete asks about the machine.
type Host struct {
	// Name is the host name. May be empty.
	Name string
	// Address is the machine's main address of a family, 4 or 6.
	Address func(family int) (netip.Addr, error)
	// ReadFile reads a file whole.
	ReadFile func(path string) ([]byte, error)
	// HasGroup tells whether a group exists, by name or number.
	HasGroup func(group string) bool
}

// ThisHost is the machine that the process runs on.
func ThisHost() Host {
	name, _ := os.Hostname() // an empty name is a Problem that Complete explains
	return Host{Name: name, Address: mainAddress, ReadFile: os.ReadFile, HasGroup: hasGroup}
}

// mainAddress is the address that the default route sends from, or, on a
// machine without one, the first address that others could reach.
func mainAddress(family int) (netip.Addr, error) {
	// Connecting a datagram socket sends nothing: the kernel looks up the
	// route and picks the source. Both targets are kept for documentation.
	network, target := "udp4", "192.0.2.1:9"
	if family == 6 {
		network, target = "udp6", "[2001:db8::1]:9"
	}
	if conn, err := net.Dial(network, target); err == nil {
		defer conn.Close()
		if local, err := netip.ParseAddrPort(conn.LocalAddr().String()); err == nil {
			return local.Addr(), nil
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list the machine's links: %w", err)
	}
	for _, l := range links {
		// Cluster DNS has its address on the loopback link.
		if l.Flags&net.FlagLoopback != 0 {
			continue
		}
		all, err := l.Addrs()
		if err != nil {
			return netip.Addr{}, fmt.Errorf("list addresses of link %s: %w", l.Name, err)
		}
		for _, a := range all {
			prefix, err := netip.ParsePrefix(a.String())
			if err == nil && prefix.Addr().Is4() == (family == 4) && prefix.Addr().IsGlobalUnicast() {
				return prefix.Addr(), nil
			}
		}
	}
	return netip.Addr{}, fmt.Errorf("the machine has no IPv%d address but loopback", family)
}

func hasGroup(group string) bool {
	if _, err := user.LookupGroup(group); err == nil {
		return true
	}
	// A number needs no entry in /etc/group.
	return group != "" && strings.Trim(group, "0123456789") == ""
}

const (
	hostResolvConf = "/etc/resolv.conf"
	// Where systemd-resolved names the servers behind its stub at 127.0.0.53.
	systemdResolvConf = "/run/systemd/resolve/resolv.conf"
)

// resolvConf picks the file that upstream name servers are taken from. A stub
// on loopback is of no use to pods, and could lead the cluster's DNS back to
// itself. With nothing better the host's own file is used; without that, none.
func (h Host) resolvConf() string {
	own, err := h.ReadFile(hostResolvConf)
	if err == nil && namesServer(own) {
		return hostResolvConf
	}
	if upstream, err := h.ReadFile(systemdResolvConf); err == nil && namesServer(upstream) {
		return systemdResolvConf
	}
	if err != nil {
		return ""
	}
	return hostResolvConf
}

// namesServer tells whether a resolv.conf names a server that is not on loopback.
func namesServer(text []byte) bool {
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil && !addr.IsLoopback() {
			return true
		}
	}
	return false
}
