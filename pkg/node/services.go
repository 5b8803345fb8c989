package node

import (
	"context"
	"fmt"
	"net/netip"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/node/network"
	"github.com/knarr-dev/knarr/pkg/node/nftwatch"
	"github.com/knarr-dev/knarr/pkg/node/nodeport"
	"github.com/knarr-dev/knarr/pkg/node/proxy"
	"github.com/knarr-dev/knarr/pkg/part"
)

// nftProcess is the name that the bundle's nft has in the process list; see
// loaderName in cmd/knarr-bundle.
const nftProcess = "knarr-nft"

// services lists what makes Services work, and what keeps our packet-filter
// rules whole. rules is nil where another program networks the pods.
func (n *Node) services(env *part.Env, rules *network.Rules) ([]component.Spec, error) {
	c := env.Config
	tables := n.Tables
	if rules != nil {
		tables = append(tables, nftwatch.Table{Name: network.Table, Restore: func(ctx context.Context) {
			if err := rules.Apply(ctx); err != nil {
				env.Log.Warn("restore packet-filter rules", "table", network.Table, "err", err)
			}
		}})
	}
	var specs []component.Spec
	if !c.Network.DisableKubeProxy {
		p, err := proxy.New(proxy.Config{
			NodeName:     c.Node.Name,
			NodeIPs:      c.Node.IPs,
			ClusterCIDRs: []netip.Prefix{c.Network.ClusterCIDR},
			Client: func() (kubernetes.Interface, error) {
				return kubernetes.NewForConfig(env.RESTConfig(part.KubeProxy))
			},
			Needs:      []string{env.Answering},
			SetSysctls: n.SetSysctls,
			Args:       c.Node.KubeProxyArgs,
			Log:        env.Log,
		})
		if err != nil {
			return nil, err
		}
		for _, t := range p.Tables() {
			tables = append(tables, nftwatch.Table{Name: t, Restore: p.Resync})
		}
		specs = append(specs,
			component.Spec{Component: p, Class: component.Retried},
			component.Spec{Component: component.Func("nodeport", []string{env.Answering}, loopbackNodePorts(env)), Class: component.Optional},
		)
	}
	return append(specs, component.Spec{Component: nftwatch.New(env.Log, nftProcess, tables...), Class: component.Retried}), nil
}

// loopbackNodePorts serves NodePorts on the node's own loopback addresses.
func loopbackNodePorts(env *part.Env) func(context.Context, chan<- struct{}) error {
	return func(ctx context.Context, ready chan<- struct{}) error {
		client, err := env.Client()
		if err != nil {
			return fmt.Errorf("create client: %w", err)
		}
		f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(part.Trim))
		services := f.Core().V1().Services().Informer()
		f.Start(ctx.Done())
		defer f.Shutdown()
		return nodeport.New(services, env.Config.Node.IPs, env.Log).Run(ctx, ready)
	}
}
