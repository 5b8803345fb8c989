package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// runningKernel asks the kernel that this process runs on.
type runningKernel struct{}

var _ Kernel = runningKernel{}

// LinkKind asks for a link with a multicast address, which the kernel refuses
// once it has found (or loaded) the code of that kind, before it makes anything.
func (runningKernel) LinkKind(kind string) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(kind))
	req.AddData(info)
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, []byte{1, 0, 0, 0, 0, 0}))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	if err == nil {
		return fmt.Errorf("the kernel accepted a %s link with a multicast address", kind)
	}
	return err
}

// LoadModule runs the system's modprobe, which knows where modules lie, what
// they need and how they are compressed.
func (runningKernel) LoadModule(name string) error {
	modprobe, err := exec.LookPath("modprobe")
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		modprobe, err = exec.LookPath(filepath.Join(dir, "modprobe"))
	}
	if err != nil {
		return errors.New("there is no modprobe")
	}
	if out, err := exec.Command(modprobe, "--", name).CombinedOutput(); err != nil {
		return fmt.Errorf("modprobe %s: %w: %s", name, err, strings.Join(strings.Fields(string(out)), " "))
	}
	return nil
}

// Overlay builds an overlay's superblock without attaching it to any folder:
// it goes when its descriptor is closed, also if the process dies.
func (runningKernel) Overlay(dir string) error {
	tmp, err := os.MkdirTemp(existing(dir), ".knarr-probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open overlay: %w", err)
	}
	// The kernel takes ten milliseconds to forget it, for which nobody needs to wait.
	defer func() { go unix.Close(fd) }()
	for option, folder := range map[string]string{"lowerdir": "lower", "upperdir": "upper", "workdir": "work"} {
		path := filepath.Join(tmp, folder)
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		if err := unix.FsconfigSetString(fd, option, path); err != nil {
			return fmt.Errorf("set overlay's %s: %w", option, err)
		}
	}
	// Otherwise the end of the probe would flush the whole disk below.
	if err := unix.FsconfigSetFlag(fd, "volatile"); err != nil {
		return fmt.Errorf("set overlay's volatile: %w", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fmt.Errorf("make an overlay on it: %w", err)
	}
	return nil
}

// Database takes a lock and maps a file for writing, both as SQLite does.
func (runningKernel) Database(dir string) error {
	f, err := os.CreateTemp(existing(dir), ".knarr-probe-")
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: 0, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock); err != nil {
		return fmt.Errorf("lock a file: %w", err)
	}
	size := os.Getpagesize()
	if err := f.Truncate(int64(size)); err != nil {
		return fmt.Errorf("lengthen a file: %w", err)
	}
	shared, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map a file: %w", err)
	}
	return unix.Munmap(shared)
}

// Space asks the file system.
func (runningKernel) Space(dir string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Space{}, fmt.Errorf("ask for the free space of %s: %w", dir, err)
	}
	block := uint64(st.Bsize)
	return Space{Size: st.Blocks * block, Free: st.Bavail * block, Inodes: st.Files, FreeInodes: st.Ffree}, nil
}

// Bind takes the port as Go's listeners do, and lets it go.
func (runningKernel) Bind(network string, addr netip.AddrPort) error {
	family, freebind := unix.AF_INET, [2]int{unix.IPPROTO_IP, unix.IP_FREEBIND}
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(addr.Port())}
	if ip := addr.Addr(); ip.Is4() {
		sa.(*unix.SockaddrInet4).Addr = ip.As4()
	} else {
		family, freebind = unix.AF_INET6, [2]int{unix.IPPROTO_IPV6, unix.IPV6_FREEBIND}
		sa = &unix.SockaddrInet6{Port: int(addr.Port()), Addr: ip.As16()}
	}
	kind := unix.SOCK_DGRAM
	if network == "tcp" {
		kind = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	// Go's listeners come over connections that are just being closed. Cluster
	// DNS' address may not be there yet.
	if network == "tcp" {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	err = errors.Join(err, unix.SetsockoptInt(fd, freebind[0], freebind[1], 1))
	if err != nil {
		return fmt.Errorf("prepare a socket: %w", err)
	}
	return unix.Bind(fd, sa)
}

// Network lists addresses and routes of the main table.
func (runningKernel) Network() (Network, error) {
	var n Network
	links, err := netlink.LinkList()
	if err != nil {
		return n, fmt.Errorf("list links: %w", err)
	}
	names := map[int]netlink.LinkAttrs{}
	for _, l := range links {
		names[l.Attrs().Index] = *l.Attrs()
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return n, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		ones, _ := a.Mask.Size()
		n.Addrs = append(n.Addrs, Addr{
			Prefix: netip.PrefixFrom(ip.Unmap(), ones), Link: names[a.LinkIndex].Name,
			Global: a.Scope == unix.RT_SCOPE_UNIVERSE && a.Flags&(unix.IFA_F_DEPRECATED|unix.IFA_F_TENTATIVE|unix.IFA_F_TEMPORARY) == 0,
		})
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return n, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		n.Routes = append(n.Routes, routeOf(r, names)...)
	}
	return n, nil
}

func routeOf(r netlink.Route, links map[int]netlink.LinkAttrs) []Route {
	hops := r.MultiPath
	if len(hops) == 0 {
		hops = []*netlink.NexthopInfo{{LinkIndex: r.LinkIndex, Gw: r.Gw}}
	}
	var out []Route
	for _, hop := range hops {
		link := links[hop.LinkIndex]
		route := Route{Link: link.Name, MTU: link.MTU, Metric: r.Priority}
		route.Gateway, _ = netip.AddrFromSlice(hop.Gw)
		route.Gateway = route.Gateway.Unmap()
		route.Source, _ = netip.AddrFromSlice(r.Src)
		route.Source = route.Source.Unmap()
		switch {
		case r.Dst != nil:
			ip, _ := netip.AddrFromSlice(r.Dst.IP)
			ones, _ := r.Dst.Mask.Size()
			route.Dst = netip.PrefixFrom(ip.Unmap(), ones)
		case r.Family == unix.AF_INET6:
			route.Dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		default:
			route.Dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		out = append(out, route)
	}
	return out
}
