package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"

	ctrclient "github.com/containerd/containerd/v2/client"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/node/containerd"
	"github.com/knarr-dev/knarr/pkg/node/images"
	"github.com/knarr-dev/knarr/pkg/node/peers"
	"github.com/knarr-dev/knarr/pkg/node/registries"
	"github.com/knarr-dev/knarr/pkg/part"
)

// embeddedRegistry has the node share images with the others. sources is told
// that there are others to ask.
func embeddedRegistry(env *part.Env, sources *registries.Registries, ctr containerd.Config) component.Spec {
	p := peers.New(peers.Config{
		Name:        env.Config.Node.Name,
		Listen:      ":" + strconv.Itoa(peers.Port),
		Certificate: func() (*tls.Certificate, error) { return env.Access().NodeCertificate() },
		ClientCA:    func() string { return env.Access().ClientCA },
		Nodes:       func(ctx context.Context) ([]peers.Node, error) { return members(ctx, env) },
		Shared:      sources.Shared,
		Store: &peers.Containerd{
			Dial: func() (*ctrclient.Client, error) { return images.Dial(ctr.Socket()) },
			Root: ctr.Root,
		},
		// Nothing of the node's start waits for it.
		Needs: []string{"containerd", env.Answering},
		Log:   env.Log,
	})
	sources.Peers = func(registry string) (string, http.RoundTripper) { return peers.Host, p.Pull(registry) }
	return component.Spec{Component: p, Class: component.Retried}
}

// members are the nodes of the cluster, and where they serve images.
func members(ctx context.Context, env *part.Env) ([]peers.Node, error) {
	client, err := env.Client()
	if err != nil {
		return nil, fmt.Errorf("create client: %w", err)
	}
	// Any version will do, which spares the store.
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	all := make([]peers.Node, 0, len(list.Items))
	for _, n := range list.Items {
		all = append(all, peers.Node{Name: n.Name, Addr: peerAddr(&n)})
	}
	return all, nil
}

// peerAddr is not valid while the node is not ready.
func peerAddr(n *corev1.Node) netip.AddrPort {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			return netip.AddrPort{}
		}
	}
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		if ip, err := netip.ParseAddr(a.Address); err == nil {
			return netip.AddrPortFrom(ip, peers.Port)
		}
	}
	return netip.AddrPort{}
}
