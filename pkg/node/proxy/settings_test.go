package proxy

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func parsed(t *testing.T, args ...string) settings {
	t.Helper()
	s, err := parse(Config{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, Args: args})
	check(t, err)
	return s
}

func TestSettingsWithoutFlags(t *testing.T) {
	s := parsed(t)
	if s.Mode != "nftables" || s.HealthzBindAddress != "0.0.0.0:10256" || s.MetricsBindAddress != "" || s.MinSyncPeriod.Duration != 0 ||
		s.DetectLocalMode != "ClusterCIDR" || s.DetectLocal.ClusterCIDRs[0] != "10.42.0.0/16" || s.NodePortAddresses[0] != "primary" {
		t.Errorf("%+v", s.KubeProxyConfiguration)
	}
}

func TestUpstreamFlagsAreUnderstood(t *testing.T) {
	s := parsed(t, "nodeport-addresses=10.0.0.0/8,192.168.0.0/16", "--conntrack-max-per-core=0", "nftables-min-sync-period=2s", "masquerade-all",
		"metrics-bind-address=0.0.0.0", "healthz-bind-address=127.0.0.1:1", "cluster-cidr=10.1.0.0/16", "feature-gates=ComponentFlagz=false")
	if len(s.NodePortAddresses) != 2 || *s.Linux.Conntrack.MaxPerCore != 0 || s.MinSyncPeriod.Duration != 2*time.Second || !s.Linux.MasqueradeAll ||
		s.MetricsBindAddress != "0.0.0.0:10249" || s.HealthzBindAddress != "127.0.0.1:1" || s.DetectLocal.ClusterCIDRs[0] != "10.1.0.0/16" {
		t.Errorf("%+v", s.KubeProxyConfiguration)
	}
}

func TestFlagsOverrideTheConfigurationFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "proxy.yaml")
	check(t, os.WriteFile(path, []byte(`
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
metricsBindAddress: 127.0.0.1:1
nodePortAddresses: [10.0.0.0/8]
nftables: {masqueradeAll: true, minSyncPeriod: 3s}
`), 0o600))
	s := parsed(t, "nodeport-addresses=192.168.0.0/16", "config="+path)
	if s.MetricsBindAddress != "127.0.0.1:1" || s.NodePortAddresses[0] != "192.168.0.0/16" || !s.Linux.MasqueradeAll ||
		s.MinSyncPeriod.Duration != 3*time.Second || s.DetectLocal.ClusterCIDRs[0] != "10.42.0.0/16" {
		t.Errorf("%+v", s.KubeProxyConfiguration)
	}
}

func TestWrongFlagsAreToldWithWhatToDo(t *testing.T) {
	for arg, want := range map[string]string{
		"proxy-mode=iptables":           "nftables is the only one",
		"no-such-flag=1":                `kube-proxy has no flag "no-such-flag"`,
		"conntrack-min=many":            "--kube-proxy-arg=conntrack-min=many: ",
		"hostname-override=x":           "use --node-name",
		"healthz-bind-address=1.2.3.4:": "--kube-proxy-arg",
		"config=/does/not/exist":        "read kube-proxy's configuration",
		"feature-gates=NoSuchGate=true": "NoSuchGate",
		"nodeport-addresses=everywhere": "nodePortAddresses",
	} {
		_, err := New(Config{Args: []string{arg}})
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(want)) {
			t.Errorf("%s: %v, want %q", arg, err, want)
		}
	}
}

func TestSyncsRestLongerInLargerClusters(t *testing.T) {
	s := parsed(t)
	for took, want := range map[time.Duration]time.Duration{
		10 * time.Millisecond: 40 * time.Millisecond,
		time.Minute:           time.Second,
	} {
		if got := s.rest(took); got != want {
			t.Errorf("after %v: %v, want %v", took, got, want)
		}
	}
	s = parsed(t, "nftables-min-sync-period=5s")
	if got := s.rest(time.Millisecond); got != 5*time.Second {
		t.Errorf("with a user's least period: %v", got)
	}
}

func TestConntrackIsSizedByTheMachineAndNeverLowered(t *testing.T) {
	sizes := func(cores int, args ...string) (list []string) {
		s := parsed(t, args...)
		for _, c := range conntrackSysctls(s.Linux.Conntrack, cores) {
			name := strings.TrimPrefix(c.Name, "net.netfilter.nf_conntrack_")
			if c.AtLeast != (name == "max" || name == "buckets") {
				t.Errorf("%+v", c)
			}
			list = append(list, name+"="+c.Value)
		}
		return list
	}
	timeouts := []string{"tcp_timeout_established=86400", "tcp_timeout_close_wait=3600"}
	for _, c := range []struct {
		got, want []string
	}{
		{sizes(1), append([]string{"max=131072", "buckets=32768"}, timeouts...)},
		{sizes(8), append([]string{"max=262144", "buckets=65536"}, timeouts...)},
		{sizes(512), append([]string{"max=1048576", "buckets=262144"}, timeouts...)},
		{sizes(8, "conntrack-max-per-core=0", "conntrack-udp-timeout=7s"), append(timeouts, "udp_timeout=7")},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%v, want %v", c.got, c.want)
		}
	}
}
