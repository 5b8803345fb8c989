// Package ports is the list of what Knarr listens on. docs/ports.md is made from
// it, and tests compare it with the sockets of real nodes.
package ports

import (
	"fmt"
	"net/netip"
	"strings"
)

// Role is what runs on a machine.
type Role int

// The roles.
const (
	Server Role = iota
	Agent
)

// Where says which addresses a socket is bound to.
type Where string

// The addresses.
const (
	Everywhere Where = "every address"
	Loopback   Where = "loopback"
	ClusterDNS Where = "the cluster's DNS address"
)

// Port is something that is listened on by default.
type Port struct {
	// Network is tcp or udp.
	Network string
	// Port is 0 for one that the kernel chooses.
	Port  int
	Where Where
	Roles []Role
	// Use says what it is for, Access who is answered, Change how it is moved or
	// turned off.
	Use, Access, Change string
}

// Table lists every socket of a server and of an agent with no option given and
// no workload on them.
func Table() []Port {
	both := []Role{Server, Agent}
	return []Port{
		{Network: "tcp", Port: 6443, Where: Everywhere, Roles: []Role{Server}, Use: "Kubernetes API, joining, tunnels of nodes",
			Access: "client certificates and tokens, RBAC; without either: health and version", Change: "`--https-listen-port`, `--bind-address`"},
		{Network: "tcp", Port: 6444, Where: Loopback, Roles: []Role{Agent}, Use: "an agent's way to the API servers",
			Access: "as 6443, which it passes on to", Change: "`--lb-server-port`"},
		{Network: "tcp", Port: 10250, Where: Everywhere, Roles: both, Use: "kubelet: logs, exec, its metrics",
			Access: "client certificates and tokens, authorized by the API server", Change: "`--kubelet-arg=port=`"},
		{Network: "tcp", Port: 10256, Where: Everywhere, Roles: both, Use: "kube-proxy's health, for load balancers",
			Access: "everybody; tells health and nothing else", Change: "`--kube-proxy-arg=healthz-bind-address=`, `--disable-kube-proxy`"},
		{Network: "udp", Port: 8472, Where: Everywhere, Roles: both, Use: "flannel's VXLAN between nodes, a socket of the kernel",
			Access: "everybody; keep it to the nodes' network", Change: "`--flannel-backend=host-gw`"},
		{Network: "tcp", Port: 53, Where: ClusterDNS, Roles: both, Use: "cluster DNS",
			Access: "pods of this node", Change: "`--cluster-dns`, `--disable=dns`"},
		{Network: "udp", Port: 53, Where: ClusterDNS, Roles: both, Use: "cluster DNS",
			Access: "pods of this node", Change: "`--cluster-dns`, `--disable=dns`"},
		{Network: "tcp", Where: Loopback, Roles: both, Use: "containerd's streams of exec, attach and port-forward, for the kubelet",
			Access: "who knows a stream's one-time name", Change: "none"},
	}
}

// Socket is one that is listened on.
type Socket struct {
	Network string
	Addr    netip.AddrPort
}

func (s Socket) String() string { return s.Network + " " + s.Addr.String() }

// Listed returns the entry of the table that stands for a socket of a machine of
// that role, whose cluster has its DNS at dns.
func Listed(s Socket, role Role, dns netip.Addr) (Port, bool) {
	for _, p := range Table() {
		if p.stands(s, dns) {
			for _, r := range p.Roles {
				if r == role {
					return p, true
				}
			}
		}
	}
	return Port{}, false
}

func (p Port) stands(s Socket, dns netip.Addr) bool {
	if p.Network != s.Network || p.Port != 0 && p.Port != int(s.Addr.Port()) {
		return false
	}
	switch addr := s.Addr.Addr().Unmap(); p.Where {
	case Everywhere:
		return addr.IsUnspecified()
	case ClusterDNS:
		return addr == dns
	default:
		return addr.IsLoopback()
	}
}

// Markdown is docs/ports.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString(head)
	for _, p := range Table() {
		port := fmt.Sprint(p.Port)
		if p.Port == 0 {
			port = "chosen by the kernel"
		}
		who := "server, agent"
		if len(p.Roles) == 1 {
			who = []string{"server", "agent"}[p.Roles[0]]
		}
		fmt.Fprintf(&b, "| %s %s | %s | %s | %s | %s | %s |\n", p.Network, port, p.Where, who, p.Use, p.Access, p.Change)
	}
	b.WriteString(tail)
	return b.String()
}

const head = `# Ports

What Knarr listens on, with no option given and no workload on the machine. This page is made from the table in ` + "`pkg/ports`" + `; tests read every listening socket of a server and of an agent and find no other.

| port | on | machine | what for | who is answered | how to change it |
|---|---|---|---|---|---|
`

const tail = `
Beyond these:

- A Service of type NodePort is reached at its port of every node, by packet-filter rules without a socket, and by a socket of Knarr's on loopback for the machine itself. Ports are in ` + "`--service-node-port-range`" + `, 30000-32767 by default.
- With ` + "`--embedded-registry`" + `, every node listens at tcp 5001 on every address, for other nodes that pull images: they show the certificates by which they are nodes, and nobody else is answered.
- With ` + "`--registry`" + `, every node has the registry at tcp 5000 on loopback.
- Pods with ` + "`hostNetwork`" + ` listen where they like; ` + "`hostPort`" + ` is a packet-filter rule.
- Unix sockets, open to root alone: ` + "`/run/knarr/status.sock`" + `, ` + "`/run/knarr/containerd/containerd.sock`" + `, the kubelet's in its folder, and those of the pods' shims in ` + "`/run/containerd`" + `.

Between machines, a firewall has to let through: agents to servers at tcp 6443; every node to every other at udp 8472 (with ` + "`--flannel-backend=vxlan`" + `). With ` + "`--embedded-registry`" + `, every node to every other at tcp 5001. Servers reach kubelets at tcp 10250 where they can, and else through the tunnel that each agent opens to port 6443.
`
