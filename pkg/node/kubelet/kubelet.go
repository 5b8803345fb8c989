// Package kubelet runs the upstream kubelet in this process.
package kubelet

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	"k8s.io/kubernetes/pkg/features"
	upstream "k8s.io/kubernetes/pkg/kubelet"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/kubeletconfig/configfiles"
	utilfs "k8s.io/kubernetes/pkg/util/filesystem"
	"k8s.io/kubernetes/pkg/util/taints"
	"k8s.io/kubernetes/pkg/volume"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/config"
)

// Config is what the kubelet is told.
type Config struct {
	NodeName string
	NodeIPs  []netip.Addr
	// ExternalIPs are told in the Node's status as addresses of type ExternalIP.
	ExternalIPs []netip.Addr
	// Labels and Taints are set when the node registers: key=value, key=value:effect.
	Labels, Taints []string
	// ClientCA is the file whose authority may ask the kubelet; ServingCert is
	// the file, certificate and key, that it serves with, or empty for the kubelet
	// to ask the cluster for certificates and keep them in CertDir. They are called
	// once the components of Needs are ready, as is Client.
	ClientCA, ServingCert func() string
	CertDir               string
	// Client is how the kubelet reaches the API server.
	Client func() *rest.Config
	// CRI is the socket of the container runtime, without a scheme.
	CRI string
	// Tells is set if the runtime tells of every change to its pods and containers.
	Tells bool
	// CgroupDriver is cgroupfs or systemd.
	CgroupDriver  string
	ClusterDNS    netip.Addr
	ClusterDomain string
	ResolvConf    string
	// PodManifestPath is the folder of static pods.
	PodManifestPath string
	// VolumePluginDir is where flexvolume drivers are looked for.
	VolumePluginDir string
	// Kubeconfig must be a name for the kubelet to know that there is a cluster;
	// the file is never read.
	Kubeconfig string
	// OOMScoreAdj is set for this process, -999 to 1000.
	OOMScoreAdj int32
	// UserNamespace has the kubelet do without what only the machine's root may:
	// sysctls, and to hear of processes that were killed for memory.
	UserNamespace bool
	// LeaseDuration is how long the node's lease lasts, of which a quarter passes
	// between two renewals; ReportFrequency is how often its status is written though
	// nothing in it has changed. 0 is upstream's default, 40 s and 5 m.
	LeaseDuration, ReportFrequency time.Duration
	// Args are the user's upstream flags, name=value.
	Args []string
	// CSI is held while the kubelet makes its volume plugins: that for CSI keeps
	// its node in variables of its package, which controllers in this process
	// change, too.
	CSI sync.Locker
}

// Kubelet is the component.
//
// It needs the container runtime, not the API server: static pods start without
// one, and the node registers once it answers. It runs once in a process, since
// upstream registers metrics for good.
type Kubelet struct {
	cfg   Config
	needs []string
}

var _ component.Component = (*Kubelet)(nil)

// New returns the component; nothing happens until Run.
func New(cfg Config, needs ...string) *Kubelet { return &Kubelet{cfg: cfg, needs: needs} }

// Name implements component.Component.
func (k *Kubelet) Name() string { return "kubelet" }

// Needs implements component.Component.
func (k *Kubelet) Needs() []string { return k.needs }

// Run implements component.Component. It is ready when everything that could
// fail at its start is past and the loop that syncs pods begins.
func (k *Kubelet) Run(ctx context.Context, ready chan<- struct{}) error {
	flags, kc, err := k.settings()
	if err != nil {
		return err
	}
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(kc.FeatureGates); err != nil {
		return fmt.Errorf("--kubelet-arg=feature-gates: %w", err)
	}
	server := &options.KubeletServer{KubeletFlags: *flags, KubeletConfiguration: *kc}
	deps, err := app.UnsecuredDependencies(ctx, server, utilfeature.DefaultFeatureGate)
	if err != nil {
		return fmt.Errorf("prepare kubelet: %w", err)
	}
	// Given all three clients, upstream neither bootstraps nor rotates the
	// client certificate itself, which would end the process when it expires.
	if err := k.clients(deps, kc); err != nil {
		return err
	}
	stop, err := k.bootstrapServing(deps, kc)
	if err != nil {
		return err
	}
	defer stop()
	k.podSources(ctx, deps, kc)
	if err := k.addExternalIPs(deps); err != nil {
		return err
	}
	defer k.lockPlugins(deps)()
	deps.Options = append(deps.Options, func(k *upstream.Kubelet) {
		if err := hurryVolumes(k); err != nil {
			klog.FromContext(ctx).Error(err, "Pods wait for their volumes as upstream has it")
		}
	})
	// The last thing before the kubelet proper starts; upstream has no other sign.
	adjust := deps.OOMAdjuster.ApplyOOMScoreAdj
	var once sync.Once
	var listening sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer listening.Wait()
	defer cancel()
	deps.OOMAdjuster.ApplyOOMScoreAdj = func(pid, value int) error {
		once.Do(func() {
			// By now deps has the client of the runtime, and nobody has made lists by it.
			if k.cfg.Tells {
				r := remember(deps.RemoteRuntimeService)
				deps.RemoteRuntimeService = r
				listening.Go(func() { r.listen(ctx) })
			}
			close(ready)
		})
		return adjust(pid, value)
	}
	err = app.Run(ctx, server, deps, utilfeature.DefaultFeatureGate)
	// A stop during its start fails whatever is just being asked.
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("run kubelet: %w", err)
	}
	return nil
}

// lockPlugins holds Config.CSI from when the kubelet begins to make its volume
// plugins until it has, or until what is returned is called.
func (k *Kubelet) lockPlugins(deps *upstream.Dependencies) (unlock func()) {
	p := &lockedProber{DynamicPluginProber: deps.DynamicPluginProber, lock: k.cfg.CSI}
	deps.DynamicPluginProber = p
	deps.Options = append(deps.Options, func(*upstream.Kubelet) { p.unlock() })
	return p.unlock
}

// lockedProber is asked to start just before the plugins are.
type lockedProber struct {
	volume.DynamicPluginProber
	lock   sync.Locker
	mu     sync.Mutex
	locked bool
}

func (p *lockedProber) Init() error {
	p.lock.Lock()
	p.mu.Lock()
	p.locked = true
	p.mu.Unlock()
	return p.DynamicPluginProber.Init()
}

func (p *lockedProber) unlock() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.locked {
		p.locked = false
		p.lock.Unlock()
	}
}

// settings puts together upstream's defaults, the user's file, ours and the
// user's flags, in this order.
func (k *Kubelet) settings() (*options.KubeletFlags, *kubeletconfig.KubeletConfiguration, error) {
	flags := options.NewKubeletFlags()
	kc, err := options.NewKubeletConfiguration()
	if err != nil {
		return nil, nil, fmt.Errorf("make configuration of kubelet: %w", err)
	}
	for _, arg := range k.cfg.Args {
		path, ok := strings.CutPrefix(strings.TrimLeft(arg, "-"), "config=")
		if !ok {
			continue
		}
		loader, err := configfiles.NewFsLoader(&utilfs.DefaultFs{}, path)
		if err != nil {
			return nil, nil, fmt.Errorf("--kubelet-arg=%s: %w", arg, err)
		}
		if kc, err = loader.Load(context.Background()); err != nil {
			return nil, nil, fmt.Errorf("--kubelet-arg=%s: %w", arg, err)
		}
	}
	if err := k.ours(flags, kc); err != nil {
		return nil, nil, err
	}

	fs := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	flags.AddFlags(fs)
	options.AddKubeletConfigFlags(fs, kc)
	options.AddGlobalFlags(fs)
	for _, arg := range k.cfg.Args {
		name, value, ok := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		f := fs.Lookup(name)
		switch {
		case f == nil:
			return nil, nil, fmt.Errorf("--kubelet-arg=%s: the kubelet has no flag %q; see its reference for the names", arg, name)
		case !ok:
			value = f.NoOptDefVal
		}
		if err := fs.Set(name, value); err != nil {
			return nil, nil, fmt.Errorf("--kubelet-arg=%s: %w", arg, err)
		}
	}
	// Whoever asks /configz is told of the flag, too.
	kc.SeccompDefault = kc.SeccompDefault || flags.SeccompDefault
	return flags, kc, reserve(kc, fs)
}

func (k *Kubelet) ours(flags *options.KubeletFlags, kc *kubeletconfig.KubeletConfiguration) error {
	c := k.cfg
	flags.KubeConfig = c.Kubeconfig
	flags.HostnameOverride = c.NodeName
	var ips []string
	for _, ip := range c.NodeIPs {
		ips = append(ips, ip.String())
	}
	flags.NodeIP = strings.Join(ips, ",")
	for _, l := range c.Labels {
		name, value, _ := strings.Cut(l, "=")
		flags.NodeLabels[name] = value
	}
	if len(c.Taints) > 0 {
		t, _, err := taints.ParseTaints(c.Taints)
		if err != nil {
			return fmt.Errorf("--node-taint: %w", err)
		}
		kc.RegisterWithTaints = t
	}

	kc.ContainerRuntimeEndpoint = "unix://" + c.CRI
	kc.ImageServiceEndpoint = kc.ContainerRuntimeEndpoint
	kc.CgroupDriver = c.CgroupDriver
	kc.ClusterDNS = []string{c.ClusterDNS.String()}
	kc.ClusterDomain = c.ClusterDomain
	kc.ResolverConfig = c.ResolvConf
	kc.StaticPodPath = c.PodManifestPath
	kc.VolumePluginDir = c.VolumePluginDir

	// Upstream's legacy defaults are open to the world.
	kc.ReadOnlyPort = 0
	kc.Authentication.Anonymous.Enabled = false
	kc.Authentication.Webhook.Enabled = true
	kc.Authentication.X509.ClientCAFile = c.ClientCA()
	kc.Authorization.Mode = kubeletconfig.KubeletAuthorizationModeWebhook
	flags.CertDirectory = c.CertDir
	if kc.TLSCertFile = c.ServingCert(); kc.TLSCertFile == "" {
		kc.ServerTLSBootstrap = true
	}
	kc.TLSPrivateKeyFile = kc.TLSCertFile

	// `knarr status` tells more, and this listener cannot be stopped.
	kc.HealthzPort = 0
	kc.OOMScoreAdj = c.OOMScoreAdj
	if len(kc.TLSCipherSuites) == 0 {
		kc.TLSCipherSuites = config.StrongCiphers()
	}
	if c.LeaseDuration > 0 {
		kc.NodeLeaseDurationSeconds = int32(c.LeaseDuration.Seconds())
	}
	if c.ReportFrequency > 0 {
		kc.NodeStatusReportFrequency = metav1.Duration{Duration: c.ReportFrequency}
	}
	if c.UserNamespace && kc.FeatureGates == nil {
		kc.FeatureGates = map[string]bool{}
	}
	if _, told := kc.FeatureGates[string(features.KubeletInUserNamespace)]; c.UserNamespace && !told {
		kc.FeatureGates[string(features.KubeletInUserNamespace)] = true
	}
	kc.FailCgroupV1 = false
	kc.FailSwapOn = false
	kc.MakeIPTablesUtilChains = false
	kc.SerializeImagePulls = false
	kc.KubeAPIQPS, kc.KubeAPIBurst = 200, 400
	// As k3s: on a small disk upstream's 15 and 10 percent evict too early.
	if len(kc.EvictionHard) == 0 {
		kc.EvictionHard = map[string]string{
			"memory.available":  "100Mi",
			"imagefs.available": "5%", "imagefs.inodesFree": "5%",
			"nodefs.available": "5%", "nodefs.inodesFree": "5%",
			"pid.available": "10%",
		}
	}
	return nil
}

// reserve keeps memory from pods, unless the user has said how much, be it none.
func reserve(kc *kubeletconfig.KubeletConfiguration, flags *pflag.FlagSet) error {
	if len(kc.KubeReserved) > 0 || len(kc.SystemReserved) > 0 || flags.Changed("kube-reserved") || flags.Changed("system-reserved") {
		return nil
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("read the machine's memory: %w", err)
	}
	kc.KubeReserved = map[string]string{"memory": strconv.FormatUint(reserved(uint64(info.Totalram)*uint64(info.Unit)), 10)}
	return nil
}

// reserved is how many bytes of a machine's memory pods do not get, so that they
// are killed for taking too much before the machine does nothing but read its
// programs anew: what Knarr has at work, or a quarter of a small machine.
func reserved(total uint64) uint64 { return min(300<<20, total/4) }

func (k *Kubelet) clients(deps *upstream.Dependencies, kc *kubeletconfig.KubeletConfiguration) error {
	cfg := k.cfg.Client()
	cfg.ContentType, cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	cfg.UserAgent = "kubelet"
	cfg.QPS, cfg.Burst = float32(kc.KubeAPIQPS), int(kc.KubeAPIBurst)
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("create client of kubelet: %w", err)
	}
	events := rest.CopyConfig(cfg)
	events.QPS, events.Burst = float32(kc.EventRecordQPS), int(kc.EventBurst)
	eventClient, err := kubernetes.NewForConfig(events)
	if err != nil {
		return fmt.Errorf("create event client of kubelet: %w", err)
	}
	// A heartbeat that waits longer than its period only delays the next one.
	heartbeat := rest.CopyConfig(cfg)
	heartbeat.Timeout = kc.NodeStatusUpdateFrequency.Duration
	heartbeat.QPS = -1
	heartbeatClient, err := kubernetes.NewForConfig(heartbeat)
	if err != nil {
		return fmt.Errorf("create heartbeat client of kubelet: %w", err)
	}
	deps.KubeClient, deps.EventClient, deps.HeartbeatClient = client, eventClient.CoreV1(), heartbeatClient
	// Connections close with their clients; certificates are renewed by pki.
	deps.OnHeartbeatFailure = func() {}
	return nil
}
