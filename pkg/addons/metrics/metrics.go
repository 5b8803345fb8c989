// Package metrics answers what `kubectl top` and autoscalers ask: how much CPU
// and memory nodes, pods and containers use. It is metrics-server as a library,
// behind the group metrics.k8s.io of the API server in this process: no pod, no
// Service and no certificate of its own.
//
// Kubelets are asked when somebody asks us, and once a minute otherwise, so that
// the first answer can tell a rate. An idle cluster pays next to nothing for it.
package metrics

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/metrics-server/pkg/api"
	"sigs.k8s.io/metrics-server/pkg/scraper"
	"sigs.k8s.io/metrics-server/pkg/scraper/client"
	"sigs.k8s.io/metrics-server/pkg/scraper/client/resource"
	"sigs.k8s.io/metrics-server/pkg/storage"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/part"
)

// Name is what `--disable` calls the add-on, as k3s does.
const Name = "metrics-server"

// Server is the add-on. Each API server that is made gets the group by Install;
// Run, once at a time, has the cluster use it.
type Server struct {
	rest  func() *rest.Config
	needs string
	log   *slog.Logger
	nodes chan struct{} // holds a word when a node has become ready

	mu      sync.Mutex
	current *source // of the newest API server
}

var _ component.Component = (*Server)(nil)

// New returns the add-on. rest is a client of Knarr's; needs is the component
// that has to be ready before it may ask.
func New(rest func() *rest.Config, needs string, log *slog.Logger) *Server {
	return &Server{rest: rest, needs: needs, log: log, nodes: make(chan struct{}, 1)}
}

// Name implements component.Component.
func (s *Server) Name() string { return Name }

// Needs implements component.Component.
func (s *Server) Needs() []string { return []string{s.needs} }

// Install adds the group to an API server that is being made.
func (s *Server) Install(a part.API) error {
	kubelets, err := resource.NewForConfig(&client.KubeletClientConfig{
		Client: rest.Config{Transport: a.Kubelets},
		// The order that the API server itself prefers.
		AddressTypePriority: []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP, corev1.NodeHostName},
		Scheme:              "https",
		DefaultPort:         10250,
		UseNodeStatusPort:   true,
	})
	if err != nil {
		return fmt.Errorf("make a client of kubelets: %w", err)
	}
	pods, err := metadata.NewForConfig(a.Server.LoopbackClientConfig)
	if err != nil {
		return fmt.Errorf("make a client of pods: %w", err)
	}
	nodes := a.Informers.Core().V1().Nodes()
	src := newSource(scraper.NewScraper(nodes.Lister(), kubelets, scrapeTimeout, nil), time.Now)
	if err := api.Install(src, podLister{client: pods}, nodes.Lister(), a.Server, nil); err != nil {
		return fmt.Errorf("install metrics.k8s.io: %w", err)
	}
	_, err = nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { s.readyNode(nil, o) },
		UpdateFunc: func(before, now any) { s.readyNode(before, now) },
	})
	if err != nil {
		return fmt.Errorf("watch nodes become ready: %w", err)
	}
	s.mu.Lock()
	s.current = src
	s.mu.Unlock()
	return nil
}

// readyNode has a node asked as soon as it can be.
func (s *Server) readyNode(before, now any) {
	was, _ := before.(*corev1.Node)
	is, ok := now.(*corev1.Node)
	if !ok || !ready(is) || was != nil && ready(was) {
		return
	}
	select {
	case s.nodes <- struct{}{}:
	default:
	}
}

func ready(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// Run implements component.Component.
func (s *Server) Run(ctx context.Context, ready chan<- struct{}) error {
	claimed, err := claim(ctx, s.rest(), s.log)
	if err != nil {
		return err
	}
	close(ready)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			<-claimed
			return nil
		case <-s.nodes:
		case <-timer.C:
		}
		s.mu.Lock()
		src := s.current // an API server that failed may have been made anew
		s.mu.Unlock()
		// Kubelets take a sample each ten seconds: sooner there is nothing new.
		if src.age() >= freshFor {
			select {
			case <-src.scrape():
			case <-ctx.Done():
			}
		}
		timer.Reset(src.next())
	}
}

// off is how things are when the add-on is disabled.
type off struct {
	rest  func() *rest.Config
	needs string
}

// Off returns what takes the group out of a cluster that had it before.
func Off(rest func() *rest.Config, needs string) component.Component { return off{rest, needs} }

func (o off) Name() string    { return Name + "-off" }
func (o off) Needs() []string { return []string{o.needs} }

func (o off) Run(ctx context.Context, ready chan<- struct{}) error {
	if err := release(ctx, o.rest()); err != nil {
		return err
	}
	close(ready)
	<-ctx.Done()
	return nil
}

var _ storage.Storage = (*source)(nil)
