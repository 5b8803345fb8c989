package cli

import (
	"path/filepath"

	"github.com/knarr-dev/knarr/pkg/addons/dns"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/knarr-dev/knarr/pkg/node/network"
)

// footprint is what a node of this configuration makes outside of its data dir,
// apart from sysctls and the address of DNS, which their makers record. Whoever
// has a part of Knarr make something new on the machine adds it here, or
// `knarr uninstall` leaves it behind.
func footprint(c *config.Config, f host.Facts) []host.Change {
	var all []host.Change
	add := func(kind host.Kind, detail string, names ...string) {
		for _, n := range names {
			all = append(all, host.Change{Kind: kind, Name: n, New: detail})
		}
	}
	if !c.Agent {
		add(host.KindFile, "", c.Kubeconfig.Path)
	}
	if c.DisableAgent {
		return all
	}
	// The second is mount(8)'s, which the kubelet runs.
	add(host.KindDir, "", "/run/netns", "/run/mount")
	// A container runtime of the machine's own shares some of these folders.
	add(host.KindDir, host.Tree,
		"/run/containerd", "/run/containerd/s", "/run/containerd/runc", "/run/containerd/runc/k8s.io",
		"/var/lib/cni", "/var/lib/cni/results",
		kubeletDir(c), "/var/log/pods", "/var/log/containers")
	add(host.KindCgroup, host.Tree, host.PodCgroups(f.CgroupDriver)...)
	if !c.Network.DisableKubeProxy {
		add(host.KindTable, "", "ip kube-proxy", "ip6 kube-proxy")
	}
	if servesDNS(c) {
		add(host.KindTable, "", dns.Table(c.Network.ClusterDNS))
	}
	backend := c.Network.FlannelBackend
	if backend == "none" {
		return all
	}
	add(host.KindFile, "", "/etc/cni/net.d/10-knarr.conflist")
	add(host.KindTable, "", network.Table)
	add(host.KindLink, "bridge", network.BridgeName)
	if c.Network.ClusterCIDR.Addr().Is6() {
		add(host.KindTable, "", "ip6 flannel-ipv6")
	} else {
		add(host.KindTable, "", "ip flannel-ipv4")
	}
	if backend == network.BackendHostGW {
		add(host.KindRoutes, "", c.Network.ClusterCIDR.String())
	} else {
		add(host.KindLink, "vxlan", network.OverlayName(c.Network.ClusterCIDR.Addr().Is6()))
	}
	return all
}

// outside are the files and folders of the footprint.
func outside(c *config.Config) []string {
	var paths []string
	for _, change := range footprint(c, host.Facts{}) {
		if change.Kind == host.KindFile || change.Kind == host.KindDir {
			paths = append(paths, change.Name)
		}
	}
	return paths
}

// kubeletDir is where the kubelet keeps pods' volumes.
func kubeletDir(c *config.Config) string {
	if dir := argument(c.Node.KubeletArgs, "root-dir"); dir != "" {
		return filepath.Clean(dir)
	}
	return "/var/lib/kubelet"
}
