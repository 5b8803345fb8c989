package dns

import (
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	hostResolvConf    = "/etc/resolv.conf"
	systemdResolvConf = "/run/systemd/resolve/resolv.conf"
	dnsPort           = 53
)

// HostResolvConf is the file whose name servers pods can use too: the host's
// resolv.conf, or the one of systemd-resolved with the real servers when the
// host's names only a stub on the loopback link. own, the cluster DNS address,
// does not count as a server.
func HostResolvConf(own netip.Addr) string {
	return newHostResolvConf(own).reachable()
}

// resolvConf reads name servers from one file, or from the second where the
// first has none that pods could reach. The files are read again when they
// change, which is noticed when a query needs a server: nothing watches them.
type resolvConf struct {
	paths []string
	own   netip.Addr
	local bool // servers on the loopback link are as good as others

	mu    sync.Mutex
	seen  []stamp
	known []netip.AddrPort
}

// stamp tells whether a file is still the one that was read.
type stamp struct {
	changed time.Time
	size    int64
}

// newHostResolvConf avoids loopback stubs: their forwarding back to us is what
// makes a loop.
func newHostResolvConf(own netip.Addr) *resolvConf {
	return &resolvConf{own: own, paths: []string{hostResolvConf, systemdResolvConf}}
}

// newResolvConf takes a file that was chosen by the user as it is.
func newResolvConf(own netip.Addr, path string) *resolvConf {
	return &resolvConf{own: own, paths: []string{path}, local: true}
}

// servers gives the name servers as of now, none if no file names one.
func (rc *resolvConf) servers() []netip.AddrPort {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	now := make([]stamp, len(rc.paths))
	same := rc.seen != nil
	for i, p := range rc.paths {
		if fi, err := os.Stat(p); err == nil {
			now[i] = stamp{changed: fi.ModTime(), size: fi.Size()}
		}
		same = same && now[i] == rc.seen[i]
	}
	if !same {
		rc.seen, rc.known = now, rc.read()
	}
	return rc.known
}

// read prefers servers that are not on the loopback link. A host may have no
// other, a local unbound or dnsmasq: that is asked rather than nobody, for we
// are on the host's network.
func (rc *resolvConf) read() []netip.AddrPort {
	path := rc.reachable()
	if servers := rc.parse(path, rc.local); len(servers) > 0 {
		return servers
	}
	return rc.parse(rc.paths[0], true)
}

// reachable is the first file with a server outside the loopback link, else the first file.
func (rc *resolvConf) reachable() string {
	for _, p := range rc.paths {
		if len(rc.parse(p, rc.local)) > 0 {
			return p
		}
	}
	return rc.paths[0]
}

// parse leaves out what is no address, our own one, and loopback unless asked for.
// A file that can't be read names no server: it may come later.
func (rc *resolvConf) parse(path string, loopback bool) []netip.AddrPort {
	conf, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil
	}
	var servers []netip.AddrPort
	for _, s := range conf.Servers {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.IsUnspecified() || addr.Unmap() == rc.own || addr.Unmap().IsLoopback() && !loopback {
			continue
		}
		servers = append(servers, netip.AddrPortFrom(addr, dnsPort))
	}
	return servers
}
