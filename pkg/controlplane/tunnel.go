package controlplane

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/authentication/user"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/egressselector"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"

	"github.com/knarr-dev/knarr/pkg/tunnel"
)

// tunnels are the ways to nodes that the API server can't reach by itself.
type tunnels struct {
	server *tunnel.Server
	nodes  cache.SharedIndexInformer
	mask   int // of the prefix that each node gets for its pods
}

// The indexes of nodes.
const (
	byNodeHost   = "knarr-host"
	byNodeSubnet = "knarr-subnet"
)

// useTunnels has the API server reach kubelets, webhooks and extension API
// servers through the tunnels of their nodes where it can't reach them directly.
// Upstream's way to set such a dialer, an egress selector, would take over the
// connections to the store, too, and only comes from a file.
func useTunnels(cfg *app.Config, mask int, log *slog.Logger) (*tunnels, error) {
	t := &tunnels{
		server: tunnel.NewServer(tunnel.ServerConfig{NodeName: nodeOfRequest, Log: log}),
		nodes:  cfg.KubeAPIs.ControlPlane.VersionedInformers.Core().V1().Nodes().Informer(),
		mask:   mask,
	}
	if err := t.nodes.AddIndexers(cache.Indexers{byNodeHost: hostsOf, byNodeSubnet: subnetsOf}); err != nil {
		return nil, fmt.Errorf("index nodes by their addresses: %w", err)
	}
	_, err := t.nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(o any) {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if n, ok := o.(*corev1.Node); ok {
			t.server.Drop(n.Name)
		}
	}})
	if err != nil {
		return nil, fmt.Errorf("watch nodes leave: %w", err)
	}
	d := tunnel.NewDialer(tunnel.DialerConfig{Tunnels: t.server, NodeOf: t.nodeOf, Log: log})
	cfg.KubeAPIs.Extra.KubeletClientConfig.Lookup = func(egressselector.NetworkContext) (utilnet.DialFunc, error) {
		return d.DialContext, nil
	}
	// Webhooks and the aggregation layer have the same transport, and take its dialer
	// from it when they connect or begin to serve.
	cfg.KubeAPIs.ControlPlane.ProxyTransport.DialContext = d.DialContext
	generic := cfg.KubeAPIs.ControlPlane.Generic
	long := generic.LongRunningFunc
	generic.LongRunningFunc = func(r *http.Request, info *apirequest.RequestInfo) bool {
		return r.URL.Path == tunnel.Path || long(r, info)
	}
	return t, nil
}

// serve takes tunnels at the API server's own port.
func (t *tunnels) serve(s *genericapiserver.GenericAPIServer) {
	s.Handler.NonGoRestfulMux.Handle(tunnel.Path, t.server)
}

// nodeOfRequest is the node that asks for a tunnel.
func nodeOfRequest(r *http.Request) (string, error) {
	u, ok := apirequest.UserFrom(r.Context())
	if !ok {
		return "", errors.New("the request has no user")
	}
	name, isNode := strings.CutPrefix(u.GetName(), "system:node:")
	if !isNode || !slices.Contains(u.GetGroups(), user.NodesGroup) {
		return "", fmt.Errorf("%s is no node", u.GetName())
	}
	return name, nil
}

// nodeOf tells which node has a host: by the node's name or address, or by the
// address of a pod.
func (t *tunnels) nodeOf(host string) (string, bool) {
	if name, ok := t.first(byNodeHost, host); ok {
		return name, true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return "", false
	}
	bits := t.mask
	if bits == 0 && ip.Is4() {
		bits = 24
	} else if bits == 0 {
		bits = 64
	}
	subnet, err := ip.Prefix(bits)
	if err != nil {
		return "", false
	}
	return t.first(byNodeSubnet, subnet.String())
}

func (t *tunnels) first(index, value string) (string, bool) {
	found, err := t.nodes.GetIndexer().ByIndex(index, value)
	if err != nil || len(found) == 0 {
		return "", false
	}
	return found[0].(*corev1.Node).Name, true
}

func hostsOf(o any) ([]string, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return nil, nil
	}
	hosts := []string{n.Name}
	for _, a := range n.Status.Addresses {
		if !slices.Contains(hosts, a.Address) {
			hosts = append(hosts, a.Address)
		}
	}
	return hosts, nil
}

func subnetsOf(o any) ([]string, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return nil, nil
	}
	return n.Spec.PodCIDRs, nil
}
