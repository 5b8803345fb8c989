package addons

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/pkg/addons/servicelb"
	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/part"
)

// serviceLB gives Services of type LoadBalancer addresses.
func (a Addons) serviceLB(env *part.Env) ([]component.Spec, error) {
	c := env.Config
	pool, err := c.Network.LoadBalancerPool()
	if err != nil {
		return nil, err
	}
	agent := component.Spec{Class: component.Retried, Component: servicelb.NewAgent(servicelb.AgentConfig{
		Client: env.Client, Needs: []string{env.Serving}, Node: c.Node.Name, Addrs: c.Node.IPs, Report: !a.ControlPlane, Log: env.Log,
	})}
	if !a.ControlPlane {
		return []component.Spec{agent}, nil
	}
	cfg := servicelb.Config{
		Client: env.Client, Needs: []string{env.Serving}, Pool: pool, Log: env.Log,
		// They may begin to listen after a Service came.
		Reserved: map[servicelb.Port]string{
			{Protocol: corev1.ProtocolTCP, Number: int32(c.API.Port)}: "the Kubernetes API",
			{Protocol: corev1.ProtocolTCP, Number: 10250}:             "the kubelet",
		},
	}
	if !c.DisableAgent {
		cfg.Node, cfg.Taken = c.Node.Name, servicelb.Taken(c.Node.IPs)
	}
	specs := []component.Spec{{Class: component.Retried, Component: servicelb.New(cfg)}}
	if len(pool) > 0 && !c.DisableAgent {
		specs = append(specs, agent)
	}
	return specs, nil
}
