package config

import (
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Complete fills in the defaults that depend on the machine, brings values to
// one form (absolute paths, upstream flags as name=value) and checks
// everything. The error joins every Problem found, in the order of the
// reference. Calling it again changes nothing.
func (c *Config) Complete(h Host) error {
	c.setDefaults()
	if c.ControlPlaneOnly {
		c.standApart()
	}
	k := &checker{c: c}
	c.normalize(k)
	k.choices()
	c.applyProfiles()
	k.token(h)
	c.completeNetwork()
	c.completeNode(h, k)
	k.node(h)
	if c.Agent {
		k.servers()
	} else {
		c.completeAPI()
		k.api()
		k.kubeconfig(h)
		k.backup()
		k.registry()
	}
	k.credentialProvider(h)
	// An agent learns its network from the cluster.
	if !c.Agent || c.Network.ClusterCIDR.IsValid() {
		k.network()
	}
	return errors.Join(k.problems...)
}

// CompleteBackup is Complete for commands that look at backups alone.
func (c *Config) CompleteBackup(h Host) error {
	c.setDefaults()
	k := &checker{c: c}
	c.normalize(k)
	if c.Node.Name == "" {
		c.Node.Name = strings.ToLower(h.Name)
	}
	k.backup()
	return errors.Join(k.problems...)
}

// Join makes an agent's network the cluster's, leaves out the add-ons that no
// node has, and takes note of where every node has the cluster's registry, empty
// if there is none, and of whether nodes pull images from each other. Complete
// checks how they go with this machine.
func (c *Config) Join(n Network, disable []string, registry string, embedded bool) {
	n.FlannelIface = c.Network.FlannelIface
	c.Network, c.Disable = n, disable
	c.Registry = Registry{Enabled: registry != "", Address: registry}
	c.EmbeddedRegistry = embedded
}

func (c *Config) normalize(k *checker) {
	for _, o := range c.options() {
		if o.isPath() {
			k.absolute(o.Name, o.field(c).(*string))
		}
		if o.whole {
			args := o.field(c).(*[]string)
			*args = k.upstreamFlags(o.Name, *args)
		}
	}
	if e := c.Node.ContainerRuntimeEndpoint; strings.HasPrefix(e, "/") {
		c.Node.ContainerRuntimeEndpoint = "unix://" + e
	}
	for i, san := range c.API.TLSSANs {
		c.API.TLSSANs[i] = strings.ToLower(san)
	}
	if c.DisableHelmController && !slices.Contains(c.Disable, "helm-controller") {
		c.Disable = append(c.Disable[:len(c.Disable):len(c.Disable)], "helm-controller")
	}
	if c.Node.PodManifestPath == "" && c.DataDir != "" {
		c.Node.PodManifestPath = filepath.Join(c.AgentDir(), "pod-manifests")
	}
	if c.LocalStoragePath == "" && c.DataDir != "" {
		c.LocalStoragePath = filepath.Join(c.DataDir, "storage")
	}
}

func (k *checker) absolute(name string, path *string) {
	if *path == "" {
		return
	}
	abs, err := filepath.Abs(*path)
	if err != nil {
		k.add(at(name), *path, "can't be made absolute: "+err.Error(), "give an absolute path")
		return
	}
	*path = abs
}

// upstreamFlags brings flags for Kubernetes' own components to the form name=value.
func (k *checker) upstreamFlags(name string, args []string) []string {
	var flags []string
	for i, arg := range args {
		flag, text, given := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if flag == "" || strings.ContainsAny(flag, " \t,") {
			k.add(nth(name, i), strconv.Quote(arg), "is not of the form name=value", "give each flag with an option of its own")
			continue
		}
		if !given {
			text = "true" // as upstream reads a flag without a value
		}
		flags = append(flags, flag+"="+text)
	}
	return flags
}

func (c *Config) completeNetwork() {
	if !c.Agent {
		c.Network.NodeMask = c.ControlPlane.nodeMask()
	}
	if !c.Network.ClusterDNS.IsValid() && c.Network.ServiceCIDR.IsValid() {
		// Invalid where the range is too small, which is told of the range.
		c.Network.ClusterDNS = nthAddr(c.Network.ServiceCIDR, 10)
	}
}

func (c *Config) completeNode(h Host, k *checker) {
	if c.Node.Name == "" {
		c.Node.Name = strings.ToLower(h.Name)
	}
	if c.Node.ResolvConf == "" {
		c.Node.ResolvConf = h.resolvConf()
	}
	if len(c.Node.IPs) > 0 || c.broken["node-ip"] {
		return
	}
	family := 4
	if c.Network.ClusterCIDR.Addr().Is6() {
		family = 6
	}
	addr, err := h.Address(family)
	if err != nil {
		k.add(at("node-ip"), "", "no address found: "+err.Error(), "give --node-ip")
		return
	}
	c.Node.IPs = []netip.Addr{addr}
}

func (c *Config) completeAPI() {
	if !c.API.BindAddress.IsValid() {
		c.API.BindAddress = netip.IPv4Unspecified()
		if c.Network.ClusterCIDR.Addr().Is6() {
			c.API.BindAddress = netip.IPv6Unspecified()
		}
	}
	if c.API.AdvertiseAddress.IsValid() {
		return
	}
	if bind := c.API.BindAddress; !bind.IsUnspecified() && !bind.IsLoopback() {
		c.API.AdvertiseAddress = bind
		return
	}
	if len(c.Node.IPs) > 0 {
		c.API.AdvertiseAddress = c.Node.IPs[0]
	}
}

// APIServiceIP is the address of the Service "kubernetes": the first of ServiceCIDR.
func (c *Config) APIServiceIP() netip.Addr { return nthAddr(c.Network.ServiceCIDR, 1) }

// nthAddr counts from the network's own address. It is invalid outside of p.
func nthAddr(p netip.Prefix, n int) netip.Addr {
	addr := p.Masked().Addr()
	for range n {
		addr = addr.Next()
	}
	if !p.Contains(addr) {
		return netip.Addr{}
	}
	return addr
}
