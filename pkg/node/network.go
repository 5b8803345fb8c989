package node

import (
	"context"
	"fmt"
	"os"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/part"
)

// interim: replaced by pkg/node/network.
func (n *Node) network(env *part.Env) ([]component.Spec, error) {
	return []component.Spec{{Component: component.Func("cni", nil, func(ctx context.Context, ready chan<- struct{}) error {
		if err := os.MkdirAll("/etc/cni/net.d", 0o755); err != nil {
			return fmt.Errorf("cni: %w", err)
		}
		conf := `{"cniVersion":"1.0.0","name":"knarr","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,"ipMasq":false,"ipam":{"type":"host-local","dataDir":"/run/knarr/ipam","ranges":[[{"subnet":"10.42.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`
		if err := os.WriteFile("/etc/cni/net.d/10-knarr.conflist", []byte(conf), 0o600); err != nil {
			return fmt.Errorf("cni: %w", err)
		}
		close(ready)
		<-ctx.Done()
		return nil
	}), Class: component.Retried}}, nil
}
