package config

import "net/netip"

// standApart gives a control plane that is apart from its machine defaults that
// need nothing of it. What is left empty, data-dir and port, is found by who runs
// it: a temporary folder and a free port.
func (c *Config) standApart() {
	usual := Default()
	c.DisableAgent = true
	if c.DataDir == usual.DataDir && !c.IsSet("data-dir") {
		c.DataDir = ""
	}
	if c.RunDir == usual.RunDir && !c.IsSet("run-dir") {
		c.RunDir = ""
	}
	if c.Kubeconfig.Path == usual.Kubeconfig.Path && !c.IsSet("write-kubeconfig") {
		c.Kubeconfig.Path = ""
	}
	if c.API.Port == usual.API.Port && !c.IsSet("https-listen-port") {
		c.API.Port = 0
	}
	if c.Node.Name == "" {
		c.Node.Name = "control-plane"
	}
	// The Service "kubernetes" has to have an address, and Kubernetes takes none on
	// loopback. These are kept for documentation (RFC 5737, RFC 3849): nobody is there.
	loopback, address := netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.AddrFrom4([4]byte{192, 0, 2, 1})
	if c.Network.ClusterCIDR.Addr().Is6() {
		loopback, address = netip.IPv6Loopback(), netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1})
	}
	if !c.API.BindAddress.IsValid() {
		c.API.BindAddress = loopback
	}
	if len(c.Node.IPs) == 0 && !c.broken["node-ip"] {
		c.Node.IPs = []netip.Addr{address}
	}
}
