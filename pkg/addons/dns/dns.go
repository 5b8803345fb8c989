// Package dns answers the cluster's name look-ups in this process.
//
// CoreDNS' kubernetes and cache plugins do the work, without its main program,
// its configuration files and its own service discovery of sockets. The server
// listens at the cluster DNS address itself, which every node has on its
// loopback link: look-ups never leave the node, need no kube-proxy and leave no
// connection tracking entries behind (see [Rules]).
//
// Sockets are made apart from the server ([Listen]) and outlive it. Queries
// that come while no server runs wait in them: before the first start, between
// two starts, and during a restart of the process that hands them over
// ([Sockets.Files], [FromFiles]).
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/pkg/component"
)

// PodRecords says which of the names a-b-c-d.namespace.pod.<domain> exist.
type PodRecords string

const (
	// PodsInsecure answers every well-formed one, as most clusters do. It is the default.
	PodsInsecure PodRecords = "insecure"
	// PodsVerified answers only those of running pods. It costs a cache of all pods.
	PodsVerified PodRecords = "verified"
	// PodsDisabled answers none.
	PodsDisabled PodRecords = "disabled"
)

const (
	// patience is how long queries are left waiting for the first list of
	// Services. Clients give up after five seconds; from then on it is kinder to
	// fail names of the cluster at once, and to answer all others.
	patience = 5 * time.Second
	// drain is how long forwarded queries may hold up a stop. What is not
	// answered by then is left to the client's retry, which waits in the socket.
	drain = 500 * time.Millisecond
)

// Config is what the server is told.
type Config struct {
	// REST gives the connection to the API server. It is called on each start.
	REST func() (*rest.Config, error)
	// APIReady is closed when the API server answers. When it is set, the server
	// starts before that and forwards what is not the cluster's: it then needs
	// "pki" only. Default nil: the server is started after "apiserver".
	APIReady <-chan struct{}
	// ClusterIP is the address of the kube-dns Service.
	ClusterIP netip.Addr
	// Domain is the cluster's. Default cluster.local.
	Domain string
	// CIDRs are the networks of pods and Services. Reverse look-ups of unknown
	// addresses in them are answered here and never forwarded.
	CIDRs []netip.Prefix
	// Pods says which pods have a name. Default PodsInsecure.
	Pods PodRecords
	// Upstreams answer for names outside the cluster. Default: the name servers
	// of ResolvConf.
	Upstreams []netip.AddrPort
	// ResolvConf names the upstream servers, in the format of resolv.conf(5). A
	// change of the file is followed. Default: the host's, see [HostResolvConf].
	ResolvConf string
	// Sockets are served; they stay open when the server stops.
	Sockets *Sockets
	// Metrics is where the metrics are registered while Run runs. Default: nowhere.
	Metrics prometheus.Registerer
	// Log hears of failed look-ups, at most once a minute. Default slog.Default().
	Log *slog.Logger
}

// DNS is the cluster's name server as a component.
type DNS struct {
	cfg  Config
	told *metrics
}

var _ component.Component = (*DNS)(nil)

// New checks cfg and fills in its defaults.
func New(cfg Config) (*DNS, error) {
	cfg = cfg.withDefaults()
	if cfg.REST == nil || cfg.Sockets == nil {
		return nil, errors.New("cluster DNS needs a connection to the API server and sockets")
	}
	if problems := validation.IsDNS1123Subdomain(cfg.Domain); len(problems) > 0 {
		return nil, fmt.Errorf("cluster domain %q is not a domain name: %s", cfg.Domain, problems[0])
	}
	switch cfg.Pods {
	case PodsInsecure, PodsVerified, PodsDisabled:
	default:
		return nil, fmt.Errorf("pod records %q: want %s, %s or %s", cfg.Pods, PodsInsecure, PodsVerified, PodsDisabled)
	}
	return &DNS{cfg: cfg, told: newMetrics()}, nil
}

func (c Config) withDefaults() Config {
	if c.Domain == "" {
		c.Domain = "cluster.local"
	}
	if c.Pods == "" {
		c.Pods = PodsInsecure
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

// Name is the component's name.
func (d *DNS) Name() string { return "dns" }

// Needs names what must be ready first: see Config.APIReady.
func (d *DNS) Needs() []string {
	if d.cfg.APIReady != nil {
		return []string{"pki"}
	}
	return []string{"apiserver"}
}

// Run serves until ctx ends. It closes ready once Services, endpoints and
// namespaces are known; queries wait in the sockets until then, for at most
// five seconds.
func (d *DNS) Run(ctx context.Context, ready chan<- struct{}) error {
	conn, err := d.cfg.REST()
	if err != nil {
		return fmt.Errorf("connect cluster DNS to the API server: %w", err)
	}
	cl, err := newCluster(conn, d.cfg.Pods == PodsVerified)
	if err != nil {
		return err
	}
	defer d.told.register(d.cfg.Metrics)()
	fw := newForwarder(d.upstreams())
	defer fw.stop()
	srv, err := d.server(cl, fw, nil)
	if err != nil {
		return err
	}

	watching, stopWatching := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { cl.run(watching, d.cfg.APIReady) })
	changed := make(chan *served)
	watch.Go(func() {
		select {
		case <-cl.synced:
			follow(watching, cl.core, func(c custom) { d.change(watching, cl, fw, c, changed) })
		case <-watching.Done():
		}
	})
	defer watch.Wait()
	defer stopWatching()

	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-cl.synced:
	case <-late.C:
		d.cfg.Log.Warn("the API server has not told its Services yet: only names outside the cluster are answered")
	}
	synced := cl.synced
	for {
		next, err := d.serve(ctx, srv, synced, changed, fw, ready)
		if err != nil || ctx.Err() != nil {
			return err
		}
		// Queries wait in the sockets meanwhile.
		srv, synced = next, nil
	}
}

// change makes the server that a user's configuration asks for, and hands it over.
// A configuration with a mistake is told, and changes nothing.
func (d *DNS) change(ctx context.Context, cl *cluster, fw *forwarder, c custom, to chan<- *served) {
	srv, err := d.server(cl, fw, c)
	if err != nil {
		d.cfg.Log.Error("the user's configuration of DNS is not applied; what was before stays", "err", err)
		return
	}
	select {
	case to <- srv:
		d.cfg.Log.Info("the user's configuration of DNS is applied", "configmap", metav1.NamespaceSystem+"/"+CustomName, "keys", slices.Sorted(maps.Keys(c)))
	case <-ctx.Done():
	}
}

// serve answers queries until ctx ends, a socket fails, or another server is to
// follow, which it returns. It closes ready when synced is closed.
func (d *DNS) serve(ctx context.Context, srv *served, synced <-chan struct{}, changed <-chan *served, fw *forwarder, ready chan<- struct{}) (*served, error) {
	udp, tcp, err := d.cfg.Sockets.Serve()
	if err != nil {
		return nil, err
	}
	defer srv.end()
	if err := srv.begin(); err != nil {
		d.cfg.Log.Warn(err.Error())
	}
	failed := make(chan error, 2)
	var serving sync.WaitGroup
	serving.Go(func() { failed <- srv.ServePacket(udp) })
	serving.Go(func() { failed <- srv.Serve(tcp) })
	defer func() {
		if ctx.Err() != nil {
			hurry := time.AfterFunc(drain, fw.stop)
			defer hurry.Stop()
		}
		srv.Stop()
		// A server that is stopped before it has begun to read does not
		// notice; closing what it reads from makes sure.
		udp.Close()
		tcp.Close()
		serving.Wait()
	}()

	for {
		select {
		case <-ctx.Done():
			return nil, nil
		case next := <-changed:
			return next, nil
		case err := <-failed:
			return nil, fmt.Errorf("serve DNS on %s: %w", d.cfg.Sockets.Addr(), err)
		case <-synced:
			close(ready)
			synced = nil
		}
	}
}

func (d *DNS) upstreams() func() []netip.AddrPort {
	if len(d.cfg.Upstreams) > 0 {
		return func() []netip.AddrPort { return d.cfg.Upstreams }
	}
	if d.cfg.ResolvConf != "" {
		return newResolvConf(d.cfg.ClusterIP, d.cfg.ResolvConf).servers
	}
	return newHostResolvConf(d.cfg.ClusterIP).servers
}
