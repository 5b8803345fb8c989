package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	v1 "k8s.io/api/core/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/metrics"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
	proxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/apis/config/scheme"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
	utilnode "k8s.io/kubernetes/pkg/util/node"
	"sigs.k8s.io/yaml"
)

// owner is the flag of ours that hands upstream's over.
const owner = "--kube-proxy-arg"

// settings are upstream's configuration, completed.
type settings struct {
	*proxyconfig.KubeProxyConfiguration
	families []v1.IPFamily // the first is the primary one
	addrs    []netip.Addr  // the node's; none if the Node shall tell
}

// foreign names the flags that would do nothing here, and what does.
var foreign = map[string]string{
	"kubeconfig": "Knarr connects kube-proxy itself", "master": "Knarr connects kube-proxy itself",
	"kube-api-content-type": "Knarr connects kube-proxy itself",
	"kube-api-qps":          "Knarr connects kube-proxy itself", "kube-api-burst": "Knarr connects kube-proxy itself",
	"hostname-override": "use --node-name",
	"oom-score-adj":     "kube-proxy is not a process of its own",
	"cleanup":           "kube-proxy is not a process of its own", "init-only": "kube-proxy is not a process of its own",
	"write-config-to": "kube-proxy is not a process of its own",
	"v":               "use --debug", "vmodule": "use --debug", "logging-format": "use --log-format",
}

// alias gives two flags the names one would look for: upstream kept those of its
// first mode for all.
var alias = map[string]string{
	"nftables-sync-period":     "iptables-sync-period",
	"nftables-min-sync-period": "iptables-min-sync-period",
}

// parse reads the user's flags. A configuration file among them (config=…) comes
// first, and flags override what it says.
func parse(cfg Config) (settings, error) {
	opts := app.NewOptions()
	config, err := unexported[*proxyconfig.KubeProxyConfiguration](opts, "config")
	if err != nil {
		return settings{}, fmt.Errorf("read kube-proxy's configuration: %w", err)
	}
	s := settings{KubeProxyConfiguration: config, addrs: cfg.NodeIPs, families: families(cfg)}

	file, args, err := splitFile(cfg.Args)
	if err != nil {
		return settings{}, err
	}
	said, err := file.load(config)
	if err != nil {
		return settings{}, err
	}
	if !said("mode") {
		config.Mode = proxyconfig.ProxyModeNFTables
	}
	if !said("healthzBindAddress") && s.families[0] == v1.IPv6Protocol {
		config.HealthzBindAddress = "[::]:10256"
	}
	if !said("nftables", "minSyncPeriod") {
		// Upstream's second would come between a Service and its first endpoint. The
		// sync loop paces itself by what a sync costs.
		config.MinSyncPeriod.Duration = 0
	}
	if !said("clusterCIDR") {
		config.DetectLocal.ClusterCIDRs = nil
		for _, c := range cfg.ClusterCIDRs {
			config.DetectLocal.ClusterCIDRs = append(config.DetectLocal.ClusterCIDRs, c.String())
		}
	}

	fs := pflag.NewFlagSet("kube-proxy", pflag.ContinueOnError)
	opts.AddFlags(fs)
	for _, arg := range args {
		if err := set(fs, arg); err != nil {
			return settings{}, err
		}
	}
	if config.Mode != proxyconfig.ProxyModeNFTables {
		return settings{}, fmt.Errorf("%s: proxy mode %q is not built in, nftables is the only one; for another proxy, give --disable-kube-proxy and deploy it", owner, config.Mode)
	}
	// The process's gates remember a wrong name for ever: try on a copy.
	if err := utilfeature.DefaultMutableFeatureGate.DeepCopy().SetFromMap(config.FeatureGates); err != nil {
		return settings{}, fmt.Errorf("%s: %w", owner, err)
	}
	if err := opts.Complete(fs); err != nil {
		return settings{}, fmt.Errorf("%s: %w", owner, err)
	}
	if err := opts.Validate(); err != nil {
		return settings{}, fmt.Errorf("%s: %w", owner, err)
	}
	if !said("metricsBindAddress") && !fs.Changed("metrics-bind-address") && !fs.Changed("metrics-port") {
		config.MetricsBindAddress = "" // upstream insists on one until here
	}
	if config.ShowHiddenMetricsForVersion != "" {
		metrics.SetShowHidden()
	}
	return s, nil
}

// set sets one flag, given as name=value.
func set(fs *pflag.FlagSet, arg string) error {
	name, value, ok := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
	if to := alias[name]; to != "" {
		name = to
	}
	if why, no := foreign[name]; no {
		return fmt.Errorf("%s=%s: this flag has no effect here: %s", owner, arg, why)
	}
	f := fs.Lookup(name)
	if f == nil {
		return fmt.Errorf("%s=%s: kube-proxy has no flag %q; see its reference for the names", owner, arg, name)
	}
	if !ok {
		value = f.NoOptDefVal
	}
	if err := fs.Set(name, value); err != nil {
		return fmt.Errorf("%s=%s: %w", owner, arg, err)
	}
	return nil
}

// file is the path of a KubeProxyConfiguration; empty for none.
type file string

func splitFile(all []string) (f file, args []string, err error) {
	for _, arg := range all {
		name, value, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		switch {
		case name != "config":
			args = append(args, arg)
		case f != "":
			return "", nil, fmt.Errorf("%s=%s: there is one configuration file already, %s", owner, arg, f)
		default:
			f = file(value)
		}
	}
	return f, args, nil
}

// load reads the file into the configuration. What it returns tells whether the
// file says something under a key, which upstream's defaults would hide.
func (f file) load(into *proxyconfig.KubeProxyConfiguration) (said func(keys ...string) bool, err error) {
	if f == "" {
		return func(...string) bool { return false }, nil
	}
	data, err := os.ReadFile(string(f))
	if err != nil {
		return nil, fmt.Errorf("%s=config=%s: read kube-proxy's configuration: %w", owner, f, err)
	}
	var text map[string]any
	if err := yaml.Unmarshal(data, &text); err != nil {
		return nil, fmt.Errorf("%s=config=%s: not a KubeProxyConfiguration: %w", owner, f, err)
	}
	if mode, _ := text["mode"].(string); mode == "" && text != nil {
		text["mode"] = "nftables" // decides which section is read
	}
	if data, err = yaml.Marshal(text); err != nil {
		return nil, fmt.Errorf("%s=config=%s: %w", owner, f, err)
	}
	obj, _, err := scheme.Codecs.UniversalDecoder().Decode(data, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("%s=config=%s: not a KubeProxyConfiguration: %w", owner, f, err)
	}
	config, ok := obj.(*proxyconfig.KubeProxyConfiguration)
	if !ok {
		return nil, fmt.Errorf("%s=config=%s: not a KubeProxyConfiguration but a %T", owner, f, obj)
	}
	*into = *config
	return func(keys ...string) bool {
		var at any = text
		for _, k := range keys {
			m, _ := at.(map[string]any)
			if at = m[k]; at == nil {
				return false
			}
		}
		return true
	}, nil
}

// families lists what is proxied. A family that no pod has an address of has no
// Services either, and would cost as many runs of nft as the other.
func families(cfg Config) []v1.IPFamily {
	var list []v1.IPFamily
	add := func(a netip.Addr) {
		f := familyOf(a)
		if len(list) == 0 || len(list) == 1 && list[0] != f {
			list = append(list, f)
		}
	}
	for _, c := range cfg.ClusterCIDRs {
		add(c.Addr())
	}
	if len(list) == 0 {
		for _, a := range cfg.NodeIPs {
			add(a)
		}
	}
	if len(list) == 0 {
		return []v1.IPFamily{v1.IPv4Protocol}
	}
	return list
}

func familyOf(a netip.Addr) v1.IPFamily {
	if a.Unmap().Is4() {
		return v1.IPv4Protocol
	}
	return v1.IPv6Protocol
}

// tableFamily is what nft calls a family.
func tableFamily(f v1.IPFamily) string {
	if f == v1.IPv6Protocol {
		return "ip6"
	}
	return "ip"
}

// complete says whether a Node, which may be nil, tells what it is needed for.
func (s *settings) complete(n *v1.Node) bool {
	if s.DetectLocalMode == proxyconfig.LocalModeNodeCIDR && (n == nil || len(n.Spec.PodCIDRs) == 0) {
		return false
	}
	if len(s.addrs) > 0 {
		return true
	}
	if n == nil {
		return false
	}
	ips, err := utilnode.GetNodeHostIPs(n)
	return err == nil && len(ips) > 0
}

// nodeIPs returns the node's address of each family; loopback where it has none,
// as upstream does.
func (s *settings) nodeIPs(n *v1.Node) map[v1.IPFamily]net.IP {
	ips := map[v1.IPFamily]net.IP{v1.IPv4Protocol: net.IPv4(127, 0, 0, 1), v1.IPv6Protocol: net.IPv6loopback}
	var known []net.IP
	for _, a := range s.addrs {
		known = append(known, ipOf(a))
	}
	if len(known) == 0 && n != nil {
		known, _ = utilnode.GetNodeHostIPs(n) // complete has seen that there are some
	}
	if a, err := netip.ParseAddr(s.BindAddress); err == nil && !a.IsUnspecified() {
		known = append([]net.IP{ipOf(a)}, known...) // upstream's name for the primary address
	}
	for i := len(known) - 1; i >= 0; i-- { // the first of a family wins
		ips[proxyutil.GetIPFamilyFromIP(known[i])] = known[i]
	}
	return ips
}

// nodePorts returns the networks in which NodePorts are served.
func (s *settings) nodePorts(ips map[v1.IPFamily]net.IP) []string {
	if len(s.NodePortAddresses) != 1 || s.NodePortAddresses[0] != proxyconfig.NodePortAddressesPrimary {
		return s.NodePortAddresses
	}
	var list []string
	for _, f := range s.families {
		if ip := ips[f]; !ip.IsLoopback() {
			a, _ := netip.AddrFromSlice(ip)
			a = a.Unmap()
			list = append(list, netip.PrefixFrom(a, a.BitLen()).String())
		}
	}
	return list
}

// localTraffic returns what tells a pod's packet from one that came from outside
// the cluster.
func (s *settings) localTraffic(f v1.IPFamily, n *v1.Node) proxyutil.LocalTrafficDetector {
	var cidrs []string
	switch s.DetectLocalMode {
	case proxyconfig.LocalModeClusterCIDR:
		cidrs = s.DetectLocal.ClusterCIDRs
	case proxyconfig.LocalModeNodeCIDR:
		cidrs = n.Spec.PodCIDRs
	case proxyconfig.LocalModeBridgeInterface:
		return proxyutil.NewDetectLocalByBridgeInterface(s.DetectLocal.BridgeInterface)
	case proxyconfig.LocalModeInterfaceNamePrefix:
		return proxyutil.NewDetectLocalByInterfaceNamePrefix(s.DetectLocal.InterfaceNamePrefix)
	}
	if own := proxyutil.MapCIDRsByIPFamily(cidrs)[f]; len(own) > 0 {
		return proxyutil.NewDetectLocalByCIDR(own[0].String())
	}
	return proxyutil.NewNoOpLocalDetector()
}

// rest is how long to wait after a sync that took so long. Under steady change a
// sync then takes a fifth of the time, however large the cluster, while a single
// Service and its endpoints, a few milliseconds later, are both served at once.
func (s *settings) rest(took time.Duration) time.Duration {
	return max(min(4*took, time.Second), s.MinSyncPeriod.Duration)
}
