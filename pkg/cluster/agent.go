package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/dial"
	"github.com/knarr-dev/knarr/pkg/edge"
	"github.com/knarr-dev/knarr/pkg/join"
	"github.com/knarr-dev/knarr/pkg/loadbalancer"
	"github.com/knarr-dev/knarr/pkg/part"
	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/pkg/status"
	"github.com/knarr-dev/knarr/pkg/tunnel"
	"github.com/knarr-dev/knarr/pkg/version"
)

// ErrNotMember is in the error of an agent whose node was deleted from its cluster.
var ErrNotMember = errors.New("this machine is no longer a node of the cluster")

// AgentConfig is a node of a cluster whose control plane is elsewhere.
type AgentConfig struct {
	// Config must have been completed with the cluster's network.
	Config   *config.Config
	Identity *join.Identity
	Servers  *loadbalancer.LoadBalancer
	// Dial reaches a server by its address, through a proxy where there is one.
	Dial dial.Func
	// Kept is what the node lives by while no server can be reached.
	Kept *edge.Store
	// Parts are the node and its add-ons.
	Parts []part.Part
	// Log defaults to slog.Default.
	Log *slog.Logger
}

// Agent is a node that has joined.
type Agent struct {
	*process
	cfg    AgentConfig
	env    *part.Env
	tunnel *tunnel.Client
	// subnets are where the node's pods have their addresses.
	subnets atomic.Pointer[[]netip.Prefix]
	restart *restarter
	// authority is what the node has followed to, to be told of it; see join.Followed.
	authority string
}

// NewAgent checks how the parts fit together. Nothing starts, nothing is changed.
func NewAgent(cfg AgentConfig) (*Agent, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	a := &Agent{cfg: cfg, restart: newRestarter()}
	a.env = &part.Env{Config: cfg.Config, Log: cfg.Log, Answering: "loadbalancer", Serving: "loadbalancer"}
	a.env.SetAccess(part.Access{REST: a.keptAccess, ClientCA: cfg.Identity.ClientCA(), NodeCertificate: cfg.Identity.Pair})
	tls, err := cfg.Identity.TLS()
	if err != nil {
		return nil, err
	}
	a.tunnel = tunnel.NewClient(tunnel.ClientConfig{
		Servers: cfg.Config.ServerAddrs(), Dial: cfg.Dial, TLS: tls, Allow: a.mayBeReached, Log: cfg.Log,
	})
	specs := []component.Spec{
		// What the others call it: the certificates are there from the beginning.
		{Component: component.Func("pki", nil, steady), Class: component.Retried},
		{Component: cfg.Servers, Class: component.Retried},
		{Component: a.tunnel, Class: component.Retried},
		{Component: cfg.Identity.Renewer(a.RESTConfig), Class: component.Retried},
		{Component: component.Func("membership", []string{"loadbalancer"}, a.watchNode), Class: component.Critical},
		{Component: component.Func("servers", []string{"loadbalancer"}, a.followServers), Class: component.Retried},
		{Component: component.Func("cluster-info", []string{"loadbalancer"}, a.refresh), Class: component.Optional},
	}
	for _, p := range cfg.Parts {
		s, err := p.Components(a.env)
		if err != nil {
			return nil, err
		}
		specs = append(specs, s...)
	}
	group, err := component.NewGroup(cfg.Log, specs...)
	if err != nil {
		return nil, fmt.Errorf("put the agent together: %w", err)
	}
	a.env.SetGroup(group)
	a.process = newProcess(group, func() error {
		a.authority, err = cfg.Identity.Followed(filepath.Join(cfg.Config.AgentDir(), "kubelet-pki"))
		return err
	})
	a.metrics = &metrics{report: a.Status, certificates: func() ([]pki.Entry, error) {
		return pki.Inventory(time.Now(), "", filepath.Join(cfg.Config.AgentDir(), "identity"), filepath.Join(cfg.Config.AgentDir(), "kubelet-pki"))
	}}
	return a, nil
}

// Restart is closed when what was learned takes effect by a start of the process in
// place, which pods do not notice.
func (a *Agent) Restart() <-chan struct{} { return a.restart.c }

// RESTConfig is the node's own access to the API.
func (a *Agent) RESTConfig() *rest.Config {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(a.cfg.Config.LoadBalancerPort))
	return a.cfg.Identity.RESTConfig(address, a.cfg.Servers.DialContext)
}

// keptAccess is that of the node's parts, who are answered from what was kept while
// no server can be.
func (a *Agent) keptAccess(part.Role) *rest.Config {
	c := a.RESTConfig()
	c.WrapTransport = a.cfg.Kept.Wrap
	return c
}

// client asks servers and nobody else.
func (a *Agent) client() (kubernetes.Interface, error) {
	c := a.RESTConfig()
	c.UserAgent = "knarr/" + version.Get().Knarr
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("create client: %w", err)
	}
	return client, nil
}

// Status tells the state of every component, and of the way to the servers.
func (a *Agent) Status() status.Report {
	r := a.process.Status()
	lb := a.cfg.Servers.Status()
	about := &status.Agent{Node: a.cfg.Config.Node.Name, Server: lb.Current, Offline: a.cfg.Kept.Offline()}
	tunnels := map[string]tunnel.ServerStatus{}
	for _, t := range a.tunnel.Status() {
		tunnels[t.Server] = t
	}
	for _, s := range lb.Servers {
		t := tunnels[s.Address]
		one := status.APIServer{Address: s.Address, State: string(s.State), LastError: cmp.Or(s.LastError, t.LastError)}
		if t.Connected {
			one.Tunnel, one.LastError = t.Since, s.LastError
		}
		if s.LastContact.After(about.LastContact) {
			about.LastContact = s.LastContact
		}
		about.Servers = append(about.Servers, one)
	}
	if c, err := a.cfg.Identity.Certificate(); err == nil {
		about.Certificates = append(about.Certificates, status.Certificate{Use: "client", Expires: c.NotAfter})
	}
	if c, err := join.ServingCertificate(filepath.Join(a.cfg.Config.AgentDir(), "kubelet-pki")); err == nil {
		about.Certificates = append(about.Certificates, status.Certificate{Use: "serving", Expires: c.NotAfter})
	}
	r.Agent = about
	return r
}

func steady(ctx context.Context, ready chan<- struct{}) error {
	close(ready)
	<-ctx.Done()
	return nil
}

// kubeletPort is upstream's, unless the user's flags say otherwise.
const kubeletPort = 10250

// mayBeReached tells what servers may connect to through this node: its kubelet
// and its pods, and nothing else of the machine or its network.
func (a *Agent) mayBeReached(to netip.AddrPort) bool {
	c := a.cfg.Config
	port := uint16(kubeletPort)
	for _, arg := range c.Node.KubeletArgs {
		text, ok := strings.CutPrefix(strings.TrimLeft(arg, "-"), "port=")
		if n, err := strconv.ParseUint(text, 10, 16); ok && err == nil {
			port = uint16(n)
		}
	}
	if to.Addr().IsLoopback() || slices.Contains(c.Node.IPs, to.Addr()) {
		return to.Port() == port
	}
	subnets := a.subnets.Load()
	return subnets != nil && slices.ContainsFunc(*subnets, func(p netip.Prefix) bool { return p.Contains(to.Addr()) })
}

// see takes note of what the cluster says about the node.
func (a *Agent) see(n *corev1.Node) {
	var subnets []netip.Prefix
	for _, text := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(text); err == nil {
			subnets = append(subnets, p)
		}
	}
	a.subnets.Store(&subnets)
}

// watchNode ends the agent when its node is deleted.
func (a *Agent) watchNode(ctx context.Context, ready chan<- struct{}) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	close(ready)
	name := a.cfg.Config.Node.Name
	nodes := client.CoreV1().Nodes()
	pause, longest := 100*time.Millisecond, 10*time.Second
	seen := ""
	for {
		began := time.Now()
		err := a.watchOne(ctx, nodes.Watch, name, &seen, func(n *corev1.Node) { a.tellAuthority(ctx, client, n) })
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrNotMember) || join.IsRefused(err) {
			return fmt.Errorf("%w: node %s was deleted (kubectl delete node): pods here are no longer looked after; to join again, give a token (\"knarr token create\" on a server makes one) and start the agent: %w", ErrNotMember, name, err)
		}
		if time.Since(began) > longest {
			pause = 100 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, longest)
	}
}

// watchOne watches the node until its watch ends. seen is the UID that the node
// had last.
func (a *Agent) watchOne(ctx context.Context, start func(context.Context, metav1.ListOptions) (watch.Interface, error), name string, seen *string, present func(*corev1.Node)) error {
	w, err := start(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()})
	if err != nil {
		return err
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		n, ok := e.Object.(*corev1.Node)
		switch {
		case !ok || n.Name != name:
		case e.Type == watch.Deleted, *seen != "" && *seen != string(n.UID):
			return ErrNotMember
		default:
			*seen = string(n.UID)
			a.see(n)
			present(n)
		}
	}
	return nil
}

// followServers tells the load balancer which servers there are.
func (a *Agent) followServers(ctx context.Context, ready chan<- struct{}) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(metav1.NamespaceDefault), informers.WithTransform(part.Trim),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.LabelSelector = discoveryv1.LabelServiceName + "=kubernetes"
		}))
	endpoints := f.Discovery().V1().EndpointSlices().Informer()
	tell := func(any) {
		if servers := serversOf(endpoints.GetStore().List()); len(servers) > 0 {
			a.cfg.Servers.SetServers(servers)
			a.tunnel.SetServers(servers)
		}
	}
	_, err = endpoints.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: tell, UpdateFunc: func(_, now any) { tell(now) }, DeleteFunc: tell})
	if err != nil {
		return fmt.Errorf("watch the API servers' endpoints: %w", err)
	}
	f.Start(ctx.Done())
	defer f.Shutdown()
	close(ready)
	<-ctx.Done()
	return nil
}

// serversOf are the addresses, host:port, in EndpointSlices of the Service
// default/kubernetes.
func serversOf(all []any) []string {
	var found []string
	for _, o := range all {
		s, ok := o.(*discoveryv1.EndpointSlice)
		if !ok {
			continue
		}
		for _, p := range s.Ports {
			if p.Port == nil {
				continue
			}
			for _, e := range s.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready {
					continue
				}
				for _, addr := range e.Addresses {
					found = append(found, net.JoinHostPort(addr, strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// refresh keeps what is known of the cluster for the next start.
func (a *Agent) refresh(ctx context.Context, ready chan<- struct{}) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	learn := func() error { return a.learn(ctx, client) }
	if err := retry(ctx, learn); err != nil {
		return err
	}
	close(ready)
	info := client.CoreV1().ConfigMaps(join.ClusterNamespace)
	only := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, join.ClusterName).String()}
	for ctx.Err() == nil {
		var w watch.Interface
		if err := retry(ctx, func() (err error) { w, err = info.Watch(ctx, only); return err }); err != nil {
			return nil // it is told to end
		}
		for range w.ResultChan() {
			if err := retry(ctx, learn); err != nil {
				break
			}
		}
		w.Stop()
	}
	return nil
}

// learn keeps what servers say of the cluster. New authorities are followed at once,
// while the old ones are still good.
func (a *Agent) learn(ctx context.Context, client kubernetes.Interface) error {
	change, err := a.cfg.Identity.Refresh(ctx, client)
	if err != nil {
		return err
	}
	if change.Settings {
		a.cfg.Log.Warn("the cluster has other settings than this node was started with; they count from its next start")
	}
	renewed, err := a.cfg.Identity.Follow(ctx, client)
	if err != nil {
		return err
	}
	if change.Authorities || renewed {
		a.cfg.Log.Info("the cluster's authorities have changed; restarting in place")
		a.restart.ask()
	}
	return nil
}

// tellAuthority has the server know that this node is not in the way of the old
// authorities' end.
func (a *Agent) tellAuthority(ctx context.Context, client kubernetes.Interface, n *corev1.Node) {
	if a.authority == "" || n.Annotations[join.AuthorityAnnotation] == a.authority {
		return
	}
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, join.AuthorityAnnotation, a.authority)
	if _, err := client.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil && ctx.Err() == nil {
		a.cfg.Log.Warn("the server could not be told that this node follows its new authorities; this is tried again", "err", err)
	}
}

// retry tries until it succeeds or ctx ends.
func retry(ctx context.Context, try func() error) error {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 30*time.Second) {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}
