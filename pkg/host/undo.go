package host

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// undo takes one change back. What is gone already is no error.
func (m *Machine) undo(c Change) error {
	switch c.Kind {
	case KindSysctl:
		return m.undoSysctl(c)
	case KindLink:
		return deleteLink(c.Name, c.New)
	case KindAddress:
		prefix, link, _ := strings.Cut(c.Name, " ")
		return deleteAddress(prefix, link)
	case KindRoute:
		prefix, _, _ := strings.Cut(c.Name, " ")
		dst, err := netip.ParsePrefix(prefix)
		if err != nil {
			return err
		}
		return RemoveLoopbackRoute(dst)
	case KindTable:
		family, table, _ := strings.Cut(c.Name, " ")
		return deleteTable(family, table)
	case KindRoutes:
		return deleteRoutes(c.Name)
	case KindMount:
		if !slices.ContainsFunc(m.mounts(), func(mt mount) bool { return mt.point == c.Name }) {
			return nil
		}
		return unix.Unmount(c.Name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	case KindCgroup:
		return removeCgroup(c.Name, c.New == Tree)
	case KindFile:
		return ignore(os.Remove(c.Name), fs.ErrNotExist)
	case KindDir:
		if c.New == Tree {
			return m.removeTree(c.Name)
		}
		// A folder that still holds something holds what is not ours.
		return ignore(os.Remove(c.Name), fs.ErrNotExist, unix.ENOTEMPTY, unix.EBUSY)
	}
	return fmt.Errorf("this version does not know the kind %q; use the version that made it", c.Kind)
}

func (m *Machine) undoSysctl(c Change) error {
	path := m.path(sysctlPath(c.Name))
	now, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(now)) != c.New {
		return nil
	}
	return setKernelValue(path, c.Old)
}

func deleteLink(name, kind string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) || err == nil && kind != "" && link.Type() != kind {
		return nil
	}
	if err != nil {
		return err
	}
	return ignore(netlink.LinkDel(link), unix.ENODEV)
}

func deleteAddress(prefix, name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	return ignore(netlink.AddrDel(link, addr), unix.EADDRNOTAVAIL)
}

// deleteRoutes removes the routes by a gateway to networks within a range.
func deleteRoutes(within string) error {
	_, all, err := net.ParseCIDR(within)
	if err != nil {
		return err
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range routes {
		if r.Gw != nil && r.Dst != nil && all.Contains(r.Dst.IP) {
			errs = append(errs, ignore(netlink.RouteDel(&r), unix.ESRCH))
		}
	}
	return errors.Join(errs...)
}

// deleteTable removes an nftables table with all that is in it.
func deleteTable(family, table string) error {
	number, ok := map[string]uint16{
		"ip": unix.NFPROTO_IPV4, "ip6": unix.NFPROTO_IPV6, "inet": unix.NFPROTO_INET,
		"bridge": unix.NFPROTO_BRIDGE, "arp": unix.NFPROTO_ARP, "netdev": unix.NFPROTO_NETDEV,
	}[family]
	if !ok {
		return fmt.Errorf("nftables has no family %q", family)
	}
	b := newNFTBatch()
	b.addFamily(unix.NFT_MSG_DELTABLE, number, "", attr(unix.NFTA_TABLE_NAME, table))
	b.commit()
	answers, err := b.send()
	for _, a := range answers {
		err = errors.Join(err, ignore(a.err, unix.ENOENT))
	}
	return err
}

// removeCgroup removes a group, and with tree those below it, the deepest
// first. The kernel keeps a group that still has processes.
func removeCgroup(dir string, tree bool) error {
	// A process that was killed leaves its group a moment after its end.
	for wait := time.Millisecond; ; wait *= 2 {
		err := removeCgroupOnce(dir, tree)
		if !errors.Is(err, unix.EBUSY) || wait > time.Second {
			return err
		}
		time.Sleep(wait)
	}
}

func removeCgroupOnce(dir string, tree bool) error {
	if tree {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return ignore(err, fs.ErrNotExist)
		}
		for _, e := range entries {
			if e.IsDir() {
				if err := removeCgroupOnce(filepath.Join(dir, e.Name()), true); err != nil {
					return err
				}
			}
		}
	}
	return ignore(unix.Rmdir(dir), unix.ENOENT)
}

// RemoveTree removes a folder and its contents, unless something is mounted in
// it, or it is the machine's root.
func RemoveTree(dir string) error {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
		return fmt.Errorf("%q is no folder of Knarr's own", dir)
	}
	return new(Machine).removeTree(dir)
}

// removeTree removes a folder and its contents, unless something is mounted in
// it, whose contents would go too.
func (m *Machine) removeTree(dir string) error {
	for _, mt := range m.mounts() {
		if within(mt.point, dir) {
			return fmt.Errorf("%s is still mounted", mt.point)
		}
	}
	return os.RemoveAll(dir)
}

func ignore(err error, which ...error) error {
	for _, w := range which {
		if errors.Is(err, w) {
			return nil
		}
	}
	return err
}
