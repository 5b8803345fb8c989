package node

import (
	"context"
	"net/netip"
	"path/filepath"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/node/network"
	"github.com/knarr-dev/knarr/pkg/part"
)

// network lists what gives pods their addresses. Without flannel that is
// another program's care, and the CNI configuration its.
func (n *Node) network(env *part.Env) ([]component.Spec, *network.Rules) {
	c := env.Config
	holder := component.Spec{Component: network.NewHolder(c.Node.IPs, c.Network.ServiceCIDR, env.Log), Class: component.Retried}
	if c.Network.FlannelBackend == "none" {
		return []component.Spec{holder, {Component: component.Func("cni", nil, nothing), Class: component.Retried}}, nil
	}
	var ip netip.Addr
	if len(c.Node.IPs) > 0 {
		ip = c.Node.IPs[0]
	}
	cni := network.NewCNI(network.CNIConfig{
		IPAMDir: filepath.Join(c.RunDir, "cni-ipam"),
		Backend: c.Network.FlannelBackend,
		Iface:   c.Network.FlannelIface,
		NodeIP:  ip,
		Log:     env.Log,
	})
	subnet := network.NewSubnet(network.SubnetConfig{
		NodeName:    c.Node.Name,
		ClusterCIDR: c.Network.ClusterCIDR,
		MaskSize:    c.Network.NodeMask,
		NewCluster:  n.NewCluster,
		File:        filepath.Join(c.AgentDir(), "network", "subnet"),
		Client:      env.Client,
		Needs:       []string{env.Serving},
		Log:         env.Log,
	}, cni)
	prepare := func(ctx context.Context, ready chan<- struct{}) error {
		known, err := subnet.Prepare()
		if err != nil {
			return err
		}
		close(ready)
		// Static pods run although the API server may never.
		if !known.IsValid() && n.ControlPlane && env.WaitFailed(ctx, env.Serving) == nil {
			if err := subnet.Assume(); err != nil {
				return err
			}
		}
		<-ctx.Done()
		return nil
	}
	rules := network.NewRules(network.RulesConfig{ClusterCIDR: c.Network.ClusterCIDR, Log: env.Log})
	flannel := network.NewFlannel(network.FlannelConfig{
		NodeName:    c.Node.Name,
		ClusterCIDR: c.Network.ClusterCIDR,
		Backend:     c.Network.FlannelBackend,
		Iface:       c.Network.FlannelIface,
		NodeIP:      ip,
		Client:      env.Client,
		Needs:       []string{env.Serving},
		Log:         env.Log,
	})
	return []component.Spec{
		holder,
		{Component: component.Func("cni", nil, prepare), Class: component.Retried},
		{Component: subnet, Class: component.Retried},
		{Component: after{rules, "bundle"}, Class: component.Retried},
		{Component: flannel, Class: component.Retried},
		{Component: network.NewMender(env.Log), Class: component.Retried},
	}, rules
}

// after adds needs to a component that knows nothing of its neighbours.
type after struct {
	component.Component
	need string
}

func (a after) Needs() []string { return append([]string{a.need}, a.Component.Needs()...) }

// nothing is ready at once.
func nothing(ctx context.Context, ready chan<- struct{}) error {
	close(ready)
	<-ctx.Done()
	return nil
}
