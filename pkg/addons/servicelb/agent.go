package servicelb

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/host"
)

// AgentConfig is what an Agent is told.
type AgentConfig struct {
	// Client is called once the components of Needs are ready. It must be allowed to
	// read Services and to annotate its own Node, as every node is.
	Client func() (kubernetes.Interface, error)
	Needs  []string
	// Node is this machine's name in the cluster, and Addrs its addresses.
	Node  string
	Addrs []netip.Addr
	// Report has it tell which ports are taken on this machine. The server's own
	// node need not.
	Report bool
	// Log defaults to slog.Default.
	Log *slog.Logger
}

// Agent is the component that does what only a node itself can: it tells which of
// the ports that Services want something on the machine listens on, and answers
// for addresses of the pool.
type Agent struct{ cfg AgentConfig }

var _ component.Component = (*Agent)(nil)

// NewAgent returns the component; nothing happens until Run.
func NewAgent(cfg AgentConfig) *Agent {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Agent{cfg: cfg}
}

// Name implements component.Component.
func (a *Agent) Name() string { return "servicelb-node" }

// Needs implements component.Component.
func (a *Agent) Needs() []string { return a.cfg.Needs }

// Run implements component.Component. It is ready at once.
func (a *Agent) Run(ctx context.Context, ready chan<- struct{}) error {
	client, err := a.cfg.Client()
	if err != nil {
		return fmt.Errorf("create client of the service load balancer: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	changed := make(chan struct{}, 1)
	services := servicesOf(client)
	synced, err := follow(services, func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return err
	}
	tasks.Go(func() { services.RunWithContext(ctx) })
	close(ready)
	if !cache.WaitFor(ctx, "", synced) || ctx.Err() != nil {
		return nil
	}
	speaker := newSpeaker(a.cfg.Log)
	defer speaker.close()
	var told *string // what the Node has; nil if that is not known
	timer := time.NewTimer(0)
	defer timer.Stop()
	for pause := firstRetry; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-timer.C:
		}
		var list []*corev1.Service
		for _, obj := range services.GetStore().List() {
			if s, ok := obj.(*corev1.Service); ok && Wanted(s) {
				list = append(list, s)
			}
		}
		speaker.set(a.announced(list))
		if !a.cfg.Report {
			continue
		}
		if told, err = a.report(ctx, client, formatPorts(Taken(a.cfg.Addrs)(asked(list))), told); err != nil {
			if ctx.Err() == nil {
				a.cfg.Log.Debug("tell which ports are taken; it is tried again", "in", pause, "err", err)
			}
			timer.Reset(pause)
			pause = min(2*pause, longestTry)
			continue
		}
		pause = firstRetry
		timer.Stop()
		if len(list) > 0 {
			timer.Reset(lookAgain)
		}
	}
}

// report annotates the Node with what is taken, unless it says so already.
func (a *Agent) report(ctx context.Context, client kubernetes.Interface, taken string, told *string) (*string, error) {
	nodes := client.CoreV1().Nodes()
	if told == nil {
		n, err := nodes.Get(ctx, a.cfg.Node, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("read node %s: %w", a.cfg.Node, err)
		}
		told = new(n.Annotations[TakenAnnotation])
	}
	if *told == taken {
		return told, nil
	}
	value := any(taken)
	if taken == "" {
		value = nil
	}
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{TakenAnnotation: value}}})
	if err != nil {
		return nil, err
	}
	if _, err := nodes.Patch(ctx, a.cfg.Node, types.MergePatchType, data, metav1.PatchOptions{FieldManager: fieldManager}); err != nil {
		return nil, fmt.Errorf("annotate node %s: %w", a.cfg.Node, err)
	}
	return &taken, nil
}

// announced are the addresses that this node answers for.
func (a *Agent) announced(services []*corev1.Service) []netip.Addr {
	var list []netip.Addr
	for _, s := range services {
		if s.Annotations[AnnouncerAnnotation] != a.cfg.Node {
			continue
		}
		for _, in := range s.Status.LoadBalancer.Ingress {
			if addr, err := netip.ParseAddr(in.IP); err == nil {
				list = append(list, addr)
			}
		}
	}
	return list
}

// Taken returns what tells which of some ports something on this machine listens
// on, at one of its addresses or at all. What listens on loopback alone is in
// nobody's way.
func Taken(addrs []netip.Addr) func([]Port) []Port {
	return func(ports []Port) []Port {
		listening := map[corev1.Protocol]map[uint16]bool{
			corev1.ProtocolTCP: host.Listening("tcp", addrs),
			corev1.ProtocolUDP: host.Listening("udp", addrs),
		}
		var taken []Port
		for _, p := range ports {
			if listening[p.Protocol][uint16(p.Number)] {
				taken = append(taken, p)
			}
		}
		return taken
	}
}
