package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// crun is Debian's package, which scripts/deps.sh installs.
func TestPodsAreRunByTheRuntimesOfTheNode(t *testing.T) {
	s := newSpace(t)
	s.kubectl("wait", "--for=create", "runtimeclass/crun", "--timeout=60s")
	want(t, "the class' handler", s.get("runtimeclass/crun", ".handler"), "crun")
	want(t, "the node's label", s.kubectl("get", "nodes", "-l", "runtime.knarr.dev/crun=true", "-o", "name"), s.kubectl("get", "nodes", "-o", "name"))
	s.create(kube.Pod("by-crun", kube.Spec(func(p *corev1.PodSpec) { p.RuntimeClassName = new(string); *p.RuntimeClassName = "crun" }), kube.Serve("hello")))
	s.running("by-crun")
	want(t, "exec in the pod", s.in("by-crun", "echo", "inside"), "inside")
	// Both runtimes keep their containers in the folder that containerd's shim names;
	// each lists its own.
	id := strings.TrimPrefix(s.get("pod/by-crun", ".status.containerStatuses[0].containerID"), "containerd://")
	wantPart(t, "crun's word about it", s.Exec(t, "crun", "--root", "/run/containerd/runc/k8s.io", "state", id), `"status": "running"`)
	s.kubectl("delete", "pod", "by-crun", "--grace-period=0")

	out, err := s.kubectlErr("run", "by-none", "--image="+kube.Image, `--overrides={"spec":{"runtimeClassName":"kata"}}`)
	if err == nil || !strings.Contains(err.Error(), `RuntimeClass "kata" not found`) {
		t.Errorf("a pod of a runtime that no node has: %s, %v", out, err)
	}
}
