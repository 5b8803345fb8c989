package controlplane

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/util/sets"
	genericapp "k8s.io/controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/pki"
)

func TestCertificatesOfNodesAreApprovedByPackageMembershipAlone(t *testing.T) {
	p, err := pki.Ensure(pki.Config{Dir: filepath.Join(t.TempDir(), "tls"), NodeName: "n"})
	if err != nil {
		t.Fatal(err)
	}
	opts, err := options.NewKubeControllerManagerOptions()
	if err != nil {
		t.Fatal(err)
	}
	off := app.ControllersDisabledByDefault()
	m := NewControllerManager(Config{Config: config.Default(), PKI: func() *pki.PKI { return p }})
	if err := parse(opts.Flags(app.KnownControllers(), off, app.ControllerAliases()), "", m.flags(), nil); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		names.CertificateSigningRequestApprovingController: false,
		names.CertificateSigningRequestSigningController:   true,
		names.CertificateSigningRequestCleanerController:   true,
		names.TokenCleanerController:                       true,
		names.NodeLifecycleController:                      true,
	} {
		if got := genericapp.IsControllerEnabled(name, sets.NewString(off...), opts.Generic.Controllers); got != want {
			t.Errorf("%s: enabled %v", name, got)
		}
	}
}

type testController struct {
	name string
	run  func(context.Context)
}

func (c testController) Name() string            { return c.name }
func (c testController) Run(ctx context.Context) { c.run(ctx) }

func TestControllersThatDoNotStopAreNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		obedient := func(ctx context.Context) { <-ctx.Done() }
		release := make(chan struct{})
		stuck := func(context.Context) { <-release }
		nothingToDo := func(context.Context) {}
		for _, c := range []struct {
			run  []func(context.Context)
			want string
		}{
			{[]func(context.Context){obedient, nothingToDo, obedient}, ""},
			{[]func(context.Context){stuck, obedient, stuck}, "within 3s: a, c"},
		} {
			var controllers []app.Controller
			for i, run := range c.run {
				controllers = append(controllers, testController{name: string(rune('a' + i)), run: run})
			}
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			r := newRunning(ctx, 0)
			r.start(controllers...)
			go func() { ended <- r.wait(3 * time.Second) }()
			synctest.Wait()
			if len(ended) > 0 {
				t.Fatalf("ended before the stop: %v", <-ended)
			}
			stop()
			said := ""
			if err := <-ended; err != nil {
				said = err.Error()
			}
			if !strings.HasSuffix(said, c.want) || c.want == "" && said != "" {
				t.Errorf("the stop ended with %q, want %q", said, c.want)
			}
		}
		close(release)
	})
}
