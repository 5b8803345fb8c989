package kubelet

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	upstream "k8s.io/kubernetes/pkg/kubelet"
	"k8s.io/kubernetes/pkg/volume"
)

func TestMemoryIsReservedUnlessTheUserSaysHowMuch(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubelet.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nsystemReserved: {memory: 1Gi}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args         []string
		kube, system string
	}{
		"by default":  {nil, "ours", ""},
		"by a flag":   {[]string{"kube-reserved=memory=1Gi"}, "1Gi", ""},
		"for others":  {[]string{"system-reserved=memory=1Gi"}, "", "1Gi"},
		"to none":     {[]string{"kube-reserved="}, "", ""},
		"by the file": {[]string{"config=" + file}, "", "1Gi"},
	} {
		t.Run(name, func(t *testing.T) {
			nothing := func() string { return "" }
			k := New(Config{NodeName: "node", ClusterDNS: netip.MustParseAddr("10.43.0.10"), ClientCA: nothing, ServingCert: nothing, Args: c.args})
			_, kc, err := k.settings()
			if err != nil {
				t.Fatal(err)
			}
			got := kc.KubeReserved["memory"]
			if c.kube == "ours" {
				if n, err := strconv.ParseUint(got, 10, 64); err != nil || n < 1<<20 || n > 300<<20 {
					t.Errorf("%q bytes are reserved: %v", got, err)
				}
			} else if got != c.kube {
				t.Errorf("reserved for Knarr: %q, wanted %q", got, c.kube)
			}
			if got := kc.SystemReserved["memory"]; got != c.system {
				t.Errorf("reserved for the system: %q, wanted %q", got, c.system)
			}
		})
	}
	if r := reserved(512 << 20); r != 128<<20 {
		t.Errorf("of 512 MiB %d bytes are reserved", r)
	}
}

// prober is upstream's part that is asked to start before volume plugins are.
type prober struct{ started bool }

func (p *prober) Init() error                       { p.started = true; return errors.New("no folder") }
func (*prober) Probe() ([]volume.ProbeEvent, error) { return nil, nil }

func TestVolumePluginsAreMadeUnderTheLock(t *testing.T) {
	var lock sync.Mutex
	held := func() bool {
		if lock.TryLock() {
			lock.Unlock()
			return false
		}
		return true
	}
	theirs := &prober{}
	deps := &upstream.Dependencies{DynamicPluginProber: theirs}
	unlock := New(Config{CSI: &lock}).lockPlugins(deps)
	unlock()
	if held() {
		t.Fatal("locked before plugins are made")
	}
	if err := deps.DynamicPluginProber.Init(); err == nil || !theirs.started || !held() {
		t.Fatalf("plugins are made: %v; started %v, locked %v", err, theirs.started, held())
	}
	for _, o := range deps.Options {
		o(nil)
	}
	if held() {
		t.Error("locked although plugins are made")
	}
	unlock()
	_ = deps.DynamicPluginProber.Init()
	unlock() // as the kubelet does that fails meanwhile
	if held() {
		t.Error("locked by a kubelet that has ended")
	}
}
