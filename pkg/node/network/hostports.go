package network

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/fsnotify/fsnotify"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hostPort is a port of the node that leads to a pod.
type hostPort struct {
	Protocol string     // tcp, udp or sctp
	Addr     netip.Addr // the node's address; any if invalid
	Port     uint16
	Pod      netip.Addr
	PodPort  uint16
}

// result is what Rules needs of the file that libcni writes when it has plugged
// a pod in, and removes when it has unplugged it.
type result struct {
	NetNS          string `json:"netns"`
	CapabilityArgs struct {
		PortMappings []struct {
			HostPort      uint16 `json:"hostPort"`
			ContainerPort uint16 `json:"containerPort"`
			Protocol      string `json:"protocol"`
			HostIP        string `json:"hostIP"`
		} `json:"portMappings"`
	} `json:"capabilityArgs"`
	Result struct {
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	} `json:"result"`
}

func (r *Rules) resultsDir() string { return filepath.Join(r.cfg.CacheDir, "results") }

// hostPorts reads what libcni has noted in dir about pods with an address in
// the cluster's range. Where two pods claim one port, the later has it. What
// can't be read is left out: a file being written is read again when it is
// whole.
func hostPorts(dir string, cluster netip.Prefix) []hostPort {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return []hostPort{}
	}
	type claim struct {
		hostPort
		made int64
	}
	claims := make(map[hostPort]claim) // by all but the pod
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue
		}
		for _, p := range readResult(filepath.Join(dir, e.Name()), cluster) {
			key := hostPort{Protocol: p.Protocol, Addr: p.Addr, Port: p.Port}
			made := info.ModTime().UnixNano()
			if old, taken := claims[key]; !taken || old.made < made {
				claims[key] = claim{p, made}
			}
		}
	}
	ports := make([]hostPort, 0, len(claims))
	for _, c := range claims {
		ports = append(ports, c.hostPort)
	}
	slices.SortFunc(ports, func(a, b hostPort) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), a.Addr.Compare(b.Addr))
	})
	return ports
}

func readResult(path string, cluster netip.Prefix) []hostPort {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var res result
	if json.Unmarshal(content, &res) != nil || len(res.CapabilityArgs.PortMappings) == 0 {
		return nil
	}
	// The notes outlive a boot, the pods' namespaces do not.
	if _, err := os.Stat(res.NetNS); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var pod netip.Addr
	for _, ip := range res.Result.IPs {
		if cluster.Contains(ip.Address.Addr()) {
			pod = ip.Address.Addr()
			break
		}
	}
	if !pod.IsValid() {
		return nil
	}
	var ports []hostPort
	for _, m := range res.CapabilityArgs.PortMappings {
		p := hostPort{Protocol: m.Protocol, Port: m.HostPort, Pod: pod, PodPort: m.ContainerPort}
		if m.HostIP != "" {
			addr, err := netip.ParseAddr(m.HostIP)
			if err != nil || addr.Unmap().Is4() != pod.Is4() {
				continue
			}
			if !addr.IsUnspecified() {
				p.Addr = addr.Unmap()
			}
		}
		known := p.Protocol == "tcp" || p.Protocol == "udp" || p.Protocol == "sctp"
		if known && p.Port != 0 && p.PodPort != 0 {
			ports = append(ports, p)
		}
	}
	return ports
}

// watchResults sends nil after something in dir has changed, and an error when
// it can't tell any more.
func watchResults(ctx context.Context, dir string) (<-chan error, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of CNI results: %w", err)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w (raise sysctl fs.inotify.max_user_instances)", dir, err)
	}
	if err := w.Add(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", dir, err), w.Close())
	}
	changes := make(chan error)
	go func() {
		defer w.Close()
		// out is set while there is something to say.
		var out chan<- error
		for {
			select {
			case <-ctx.Done():
				return
			case out <- nil:
				out = nil
			case e := <-w.Events:
				if e.Name == dir {
					send(ctx, changes, fmt.Errorf("watch %s: it was removed", dir))
					return
				}
				out = changes
			case err := <-w.Errors:
				if errors.Is(err, fsnotify.ErrEventOverflow) {
					out = changes
					continue
				}
				send(ctx, changes, fmt.Errorf("watch %s: %w", dir, err))
				return
			}
		}
	}()
	return changes, nil
}

func send(ctx context.Context, to chan<- error, err error) {
	select {
	case to <- err:
	case <-ctx.Done():
	}
}

// forgetFlows ends what the kernel remembers of UDP clients of the host ports
// that are in only one of the lists. It would go on sending their packets to
// where the port led when they began, which may be nowhere.
func forgetFlows(before, after []hostPort) error {
	changed := func(in, notIn []hostPort) (filters []netlink.CustomConntrackFilter) {
		for _, p := range in {
			if p.Protocol != "udp" || slices.Contains(notIn, p) {
				continue
			}
			f := &netlink.ConntrackFilter{}
			// These fail only for a protocol without ports.
			_ = f.AddProtocol(unix.IPPROTO_UDP)
			_ = f.AddPort(netlink.ConntrackOrigDstPort, p.Port)
			filters = append(filters, f)
		}
		return filters
	}
	filters := append(changed(before, after), changed(after, before)...)
	if len(filters) == 0 {
		return nil
	}
	fam := netlink.InetFamily(unix.AF_INET)
	if slices.Concat(before, after)[0].Pod.Is6() {
		fam = unix.AF_INET6
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, fam, filters...); err != nil {
		return fmt.Errorf("end UDP flows of changed host ports: %w", err)
	}
	return nil
}
