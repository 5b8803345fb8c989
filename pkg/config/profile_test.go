package config_test

import (
	"slices"
	"testing"
	"time"

	"github.com/knarr-dev/knarr/pkg/config"
)

func TestProfilesSetWhatTheUserHasNot(t *testing.T) {
	load := func(given ...config.Given) *config.Config {
		t.Helper()
		c, _, err := config.Load(config.Sources{Flags: append(given, config.Given{Name: "config", Value: "/dev/null"})})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // a second time changes nothing
			_ = c.Complete(config.ThisHost())
		}
		return c
	}
	plain := load()
	if plain.Audited() || plain.Store.Synchronous != "full" || len(plain.APIServerProfile())+len(plain.KubeletProfile())+len(plain.ControllerManagerProfile()) != 0 {
		t.Error("without a profile something is set")
	}
	if lease, _ := plain.KubeletTimes(); lease != 80*time.Second {
		t.Errorf("the lease of a server's own node: %s", lease)
	}
	if lease, _ := load(config.Given{Name: "kube-controller-manager-arg", Value: "node-monitor-grace-period=20s"}).KubeletTimes(); lease != 0 {
		t.Errorf("the lease of a node that counts as lost sooner: %s", lease)
	}
	profile := config.Given{Name: "profile", Value: "cis,edge"}
	both := load(profile)
	if lease, report := both.KubeletTimes(); !both.Audited() || both.Store.Synchronous != "normal" || lease != 8*time.Minute || report != time.Hour {
		t.Errorf("with both: %v, %s, %s, %s", both.Audited(), both.Store.Synchronous, lease, report)
	}
	if !slices.Contains(both.APIServerProfile(), "anonymous-auth=false") || !slices.Equal(both.ControllerManagerProfile(), []string{"node-monitor-grace-period=10m0s"}) {
		t.Errorf("flags: %q, %q", both.APIServerProfile(), both.ControllerManagerProfile())
	}
	own := load(profile, config.Given{Name: "audit", Value: "none"}, config.Given{Name: "datastore-synchronous", Value: "full"})
	if own.Audited() || own.Store.Synchronous != "full" {
		t.Errorf("the user's own: %v, %s", own.Audited(), own.Store.Synchronous)
	}
	if alone := load(config.Given{Name: "audit", Value: "metadata"}); !alone.Audited() || len(alone.APIServerProfile()) != 6 {
		t.Errorf("audit alone: %q", alone.APIServerProfile())
	}
}
