package e2e

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestTopShowsWhatNodesAndPodsUse(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("busy", kube.Shell("while :; do :; done"), kube.Limit(corev1.ResourceCPU, "200m")))
	s.running("busy")

	var nodes, pods, containers string
	s.WaitFor(t, "figures of the node and the pod", func(context.Context) (bool, error) {
		var err error
		if nodes, err = s.KubectlErr("top", "nodes", "--no-headers"); err != nil {
			return false, err
		}
		if pods, err = s.kubectlErr("top", "pod", "busy", "--no-headers"); err != nil {
			return false, err
		}
		containers, err = s.kubectlErr("top", "pods", "--containers", "-l", "app=busy", "--no-headers")
		return err == nil && strings.Contains(containers, "busy"), err
	})
	if !regexp.MustCompile(`\s[1-9]\d*m\s.*\s[1-9]\d*Mi\s`).MatchString(nodes) {
		t.Errorf("what the node uses is told as %q", nodes)
	}
	// The limit holds it to about 200m; it gets less where others are busy, too.
	if !regexp.MustCompile(`^busy\s+([1-9]\d{0,2})m\s+\d+Mi`).MatchString(pods) {
		t.Errorf("what the pod uses is told as %q", pods)
	}
	if !regexp.MustCompile(`^busy\s+busy\s+[1-9]\d*m\s`).MatchString(containers) {
		t.Errorf("what the container uses is told as %q", containers)
	}
	// The roles of pods are those of what they use.
	s.kubectl("create", "rolebinding", "anna", "--clusterrole=view", "--user=anna")
	s.WaitFor(t, "a viewer to see what pods use", func(context.Context) (bool, error) {
		out, err := s.kubectlErr("top", "pods", "--as=anna", "--no-headers")
		return strings.Contains(out, "busy"), err
	})
	if _, err := s.kubectlErr("top", "pods", "-n", "kube-system", "--as=anna"); err == nil || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("a viewer of one namespace sees another's: %v", err)
	}
}

func TestAutoscalerFollowsCPU(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Deployment("busy", 1, kube.Shell("while :; do :; done"), kube.Limit(corev1.ResourceCPU, "100m"), kube.Request(corev1.ResourceCPU, "20m"), kube.Grace(0)))
	s.pods("app=busy", 1)
	s.apply(`
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: busy}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: busy}
  minReplicas: 1
  maxReplicas: 2
  metrics:
  - type: ContainerResource
    containerResource: {name: cpu, container: busy, target: {type: Utilization, averageUtilization: 50}}
`)
	s.WaitFor(t, "the autoscaler to add a pod", func(context.Context) (bool, error) {
		out, err := s.kubectlErr("get", "hpa/busy", "-o", "jsonpath={.status.desiredReplicas} {.status.conditions[*].message}")
		if err == nil && !strings.HasPrefix(out, "2 ") {
			err = fmt.Errorf("it says %s", out)
		}
		return err == nil, err
	})
	s.pods("app=busy", 2)
}

// A metrics server of the user's own names a Service, and is asked instead; when
// it goes, ours is back. Whoever looks at all of the API meanwhile is told that a
// part of it is missing, so that the test runs alone.
func TestMetricsStepAsideForTheUsersOwn(t *testing.T) {
	s := newSpaceAlone(t)
	const service = "apiservice/v1beta1.metrics.k8s.io"
	local := func(what string) {
		t.Helper()
		s.Kubectl(t, "wait", service, "--for=jsonpath={.status.conditions[0].reason}="+what, "--timeout=60s")
	}
	s.WaitFor(t, "our own", func(context.Context) (bool, error) {
		_, err := s.KubectlErr("get", service)
		return err == nil, err
	})
	local("Local")
	s.Apply(t, "", `
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  group: metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {namespace: `+s.ns+`, name: theirs}
`)
	local("ServiceNotFound")
	s.Kubectl(t, "delete", service)
	s.WaitFor(t, "ours to be back", func(context.Context) (bool, error) {
		out, err := s.KubectlErr("get", service, "-o", "jsonpath={.spec.service}{.status.conditions[0].reason}")
		return out == "Local", err
	})
	s.WaitFor(t, "an answer", func(context.Context) (bool, error) {
		_, err := s.KubectlErr("get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes")
		return err == nil, err
	})
}
