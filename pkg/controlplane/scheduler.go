package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/component-base/configz"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	schedulerconfig "k8s.io/kubernetes/cmd/kube-scheduler/app/config"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"sigs.k8s.io/yaml"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/pki"
)

// Scheduler runs the upstream scheduler in this process.
type Scheduler struct {
	cfg Config
}

var _ component.Component = (*Scheduler)(nil)

// NewScheduler returns the component; nothing happens until Run.
func NewScheduler(cfg Config) *Scheduler { return &Scheduler{cfg: cfg} }

// Name implements component.Component.
func (s *Scheduler) Name() string { return "scheduler" }

// Needs implements component.Component.
func (s *Scheduler) Needs() []string { return []string{"apiserver-tls"} }

// Run implements component.Component. It is ready when the caches are loaded
// and pods are being scheduled.
func (s *Scheduler) Run(ctx context.Context, ready chan<- struct{}) error {
	kubeconfig := filepath.Join(s.cfg.Dir, "scheduler.kubeconfig")
	if err := pki.WriteKubeconfig(kubeconfig, s.cfg.PKI().Kubeconfig(s.cfg.PKI().Scheduler, s.cfg.Host()), 0o600, -1); err != nil {
		return err
	}
	args := []string{
		"kubeconfig=" + kubeconfig,
		"leader-elect=false",
		"secure-port=0",
		"profiling=false",
		"kube-api-qps=1000",
		"kube-api-burst=2000",
	}
	user, err := s.userArgs(kubeconfig)
	if err != nil {
		return err
	}
	opts := options.NewOptions()
	if err := parse(*opts.Flags, "--kube-scheduler-arg", args, user); err != nil {
		return err
	}
	s.cfg.Settings.note("kube-scheduler", *opts.Flags)
	making.scheduler.Lock()
	made := sync.OnceFunc(making.scheduler.Unlock)
	defer made()
	if err := opts.ComponentGlobalsRegistry.Set(); err != nil {
		return fmt.Errorf("set feature gates of scheduler: %w", err)
	}
	cc, sched, err := s.setup(ctx, opts, kubeconfig)
	if err != nil {
		return fmt.Errorf("set up scheduler: %w", err)
	}
	if err := hasten(sched.Profiles); err != nil {
		return err
	}
	// It is about to register a name that may be that of another scheduler, or of one
	// before. Nobody reads the entry: /configz is on a port that is not opened.
	configz.Delete("componentconfig")
	cc.EventBroadcaster = firstEvents{cc.EventBroadcaster, made}
	known := func() bool { return sched.Cache.NodeCount() > 0 }
	if sched.NextPod, err = afterFirstNode(ctx, cc.InformerFactory.Core().V1().Nodes().Informer(), known, sched.NextPod); err != nil {
		return err
	}

	go func() {
		cc.InformerFactory.WaitForCacheSync(ctx.Done())
		if ctx.Err() == nil {
			close(ready)
		}
	}()
	err = app.Run(ctx, cc, sched)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// setup is app.Setup with a way to the API server that outlives the certificate
// in the kubeconfig file, which upstream's takes clients and informers from.
func (s *Scheduler) setup(ctx context.Context, opts *options.Options, kubeconfig string) (*schedulerconfig.CompletedConfig, *scheduler.Scheduler, error) {
	defaults, err := latest.Default()
	if err != nil {
		return nil, nil, err
	}
	opts.ComponentConfig = defaults
	if errs := opts.Validate(); len(errs) > 0 {
		return nil, nil, errors.Join(errs...)
	}
	c, err := opts.Config(ctx)
	if err != nil {
		return nil, nil, err
	}
	if c.ComponentConfig.ClientConnection.Kubeconfig == kubeconfig {
		if err := useSchedulerAccess(ctx, c, s.cfg.Access(pki.Scheduler)); err != nil {
			return nil, nil, err
		}
	}
	cc := c.Complete()
	sched, err := scheduler.New(ctx, cc.Client, cc.InformerFactory, cc.DynInformerFactory,
		func(name string) events.EventRecorderLogger { return cc.EventBroadcaster.NewRecorder(name) },
		scheduler.WithComponentConfigVersion(cc.ComponentConfig.APIVersion),
		scheduler.WithKubeConfig(cc.KubeConfig),
		scheduler.WithProfiles(cc.ComponentConfig.Profiles...),
		scheduler.WithPercentageOfNodesToScore(cc.ComponentConfig.PercentageOfNodesToScore),
		scheduler.WithPodMaxBackoffSeconds(cc.ComponentConfig.PodMaxBackoffSeconds),
		scheduler.WithPodInitialBackoffSeconds(cc.ComponentConfig.PodInitialBackoffSeconds),
		scheduler.WithPodMaxInUnschedulablePodsDuration(cc.PodMaxInUnschedulablePodsDuration),
		scheduler.WithExtenders(cc.ComponentConfig.Extenders...),
		scheduler.WithParallelism(cc.ComponentConfig.Parallelism),
	)
	if err != nil {
		return nil, nil, err
	}
	return &cc, sched, nil
}

func useSchedulerAccess(ctx context.Context, c *schedulerconfig.Config, access *rest.Config) error {
	c.KubeConfig = withAccess(c.KubeConfig, access)
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(c.KubeConfig), "scheduler"))
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	eventClient, err := kubernetes.NewForConfig(c.KubeConfig)
	if err != nil {
		return fmt.Errorf("create client of events: %w", err)
	}
	dynamicClient, err := dynamic.NewForConfig(c.KubeConfig)
	if err != nil {
		return fmt.Errorf("create dynamic client: %w", err)
	}
	c.EventBroadcaster.Shutdown()
	c.EventBroadcaster = events.NewEventBroadcasterAdapterWithContext(ctx, eventClient)
	c.Client = client
	c.InformerFactory = scheduler.NewInformerFactory(client, 0)
	c.DynInformerFactory = dynamicinformer.NewFilteredDynamicSharedInformerFactory(dynamicClient, 0, metav1.NamespaceAll, nil)
	return nil
}

// firstEvents tells when a scheduler begins to send events, which is the first that
// it does once it has registered itself.
type firstEvents struct {
	events.EventBroadcasterAdapter
	began func()
}

// StartRecordingToSink implements events.EventBroadcasterAdapter.
func (e firstEvents) StartRecordingToSink(stop <-chan struct{}) {
	e.began()
	e.EventBroadcasterAdapter.StartRecordingToSink(stop)
}

// firstNodeWithin is how long pods wait for a cluster's first node before they
// are told that there is none.
const firstNodeWithin = 5 * time.Second

// afterFirstNode holds next back until there is a node. Upstream takes a pod
// that finds none for an unexpected error, and lets it wait for one to two
// seconds whether a node comes meanwhile or not: every pod that is created
// while a cluster starts.
//
// known tells whether the scheduler has a node: it hears of one from the same
// informer, a moment before or after this does.
func afterFirstNode(ctx context.Context, nodes cache.SharedIndexInformer, known func() bool, next func(klog.Logger) (*framework.QueuedPodInfo, error)) (func(klog.Logger) (*framework.QueuedPodInfo, error), error) {
	ctx, found := context.WithTimeout(ctx, firstNodeWithin)
	_, err := nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) {
		for !known() && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		found()
	}})
	if err != nil {
		found()
		return nil, fmt.Errorf("watch nodes for the scheduler: %w", err)
	}
	return func(log klog.Logger) (*framework.QueuedPodInfo, error) {
		<-ctx.Done()
		return next(log)
	}, nil
}

// userArgs returns the user's arguments with a KubeSchedulerConfiguration
// completed: with such a file, upstream takes client and leader election from
// it alone, and the user's file knows neither our kubeconfig nor that losing
// the lease would end the whole process.
func (s *Scheduler) userArgs(kubeconfig string) ([]string, error) {
	var args []string
	for _, arg := range s.cfg.Config.ControlPlane.SchedulerArgs {
		path, ok := strings.CutPrefix(strings.TrimLeft(arg, "-"), "config=")
		if !ok {
			args = append(args, arg)
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("--kube-scheduler-arg=%s: read the scheduler's configuration: %w", arg, err)
		}
		var file map[string]any
		if err := yaml.Unmarshal(data, &file); err != nil {
			return nil, fmt.Errorf("--kube-scheduler-arg=%s: %s is not a KubeSchedulerConfiguration: %w", arg, path, err)
		}
		set(file, "clientConnection", "kubeconfig", kubeconfig)
		set(file, "leaderElection", "leaderElect", false)
		if data, err = yaml.Marshal(file); err != nil {
			return nil, fmt.Errorf("write the scheduler's configuration: %w", err)
		}
		completed := filepath.Join(s.cfg.Dir, "scheduler.yaml")
		if err := os.WriteFile(completed, data, 0o600); err != nil {
			return nil, fmt.Errorf("write the scheduler's configuration: %w", err)
		}
		args = append(args, "config="+completed)
	}
	return args, nil
}

func set(file map[string]any, section, key string, value any) {
	m, ok := file[section].(map[string]any)
	if !ok {
		m = map[string]any{}
		file[section] = m
	}
	m[key] = value
}

func readFile(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read authority %s: %w", path, err)
	}
	return data, nil
}
