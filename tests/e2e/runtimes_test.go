package e2e

import (
	"strings"
	"testing"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// crun is Debian's package, which scripts/deps.sh installs. Debian 12's refuses
// the version of the runtime specification that containerd writes, so that no pod
// is run by it here.
func TestRuntimesOfTheNodeHaveAClass(t *testing.T) {
	s := newSpace(t)
	s.kubectl("wait", "--for=create", "runtimeclass/crun", "--timeout=60s")
	want(t, "the class' handler", s.get("runtimeclass/crun", ".handler"), "crun")
	want(t, "the node's label", s.kubectl("get", "nodes", "-l", "runtime.knarr.dev/crun=true", "-o", "name"), s.kubectl("get", "nodes", "-o", "name"))
	out, err := s.kubectlErr("run", "by-none", "--image="+kube.Image, `--overrides={"spec":{"runtimeClassName":"kata"}}`)
	if err == nil || !strings.Contains(err.Error(), `RuntimeClass "kata" not found`) {
		t.Errorf("a pod of a runtime that no node has: %s, %v", out, err)
	}
}
