package throwaway

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/imageclient"
)

// pushed is a pod of an image that only the shared registry has.
const pushed = `kubectl run app --image=localhost:$0/team/app:1 --restart=Never --command -- testbox serve --port 8080 >/dev/null
	kubectl wait pod/app --for=condition=Ready --timeout=2m >/dev/null`

func TestClustersShareARegistryThatOutlivesThem(t *testing.T) {
	u := newUser(t)
	port, err := newListener(t)
	if err != nil {
		t.Fatal(err)
	}
	_, errs, code := u.try("run", "--registry="+port, "--", "true")
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	one(t, errs, "port "+port+" of this machine is taken by another program")

	port = freePort(t)
	kubeconfig := filepath.Join(u.home, "config")
	out := u.knarr(t, "up", "--registry="+port, "--kubeconfig", kubeconfig)
	if !strings.Contains(out, "localhost:"+port) {
		t.Errorf("it does not say where the registry is: %s", out)
	}
	repository, tag := imageclient.Parse("localhost:" + port + "/team/app:1")
	if err := repository.Push(t.Context(), harness.Build(t, "shared"), tag); err != nil {
		t.Fatal(err)
	}
	u.knarr(t, "run", "--registry="+port, "--", "bash", "-ec", pushed, port)
	u.knarr(t, "down")
	u.knarr(t, "run", "--registry="+port, "--", "bash", "-ec", "test $KNARR_THROWAWAY_REGISTRY = localhost:$0\n"+pushed, port)
}
