package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestRuntimeClassChoosesHowPodsRun(t *testing.T) {
	s := newSpace(t)
	class := func(name, handler string) {
		t.Helper()
		s.Create(t, "", &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: s.ns + name}, Handler: handler,
			Overhead:   &nodev1.Overhead{PodFixed: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("8Mi")}},
			Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{corev1.LabelOSStable: "linux"}}})
		t.Cleanup(func() { _, _ = s.KubectlErr("delete", "runtimeclass", s.ns+name, "--ignore-not-found") })
	}
	class("-known", "runc")
	class("-unknown", "nothing")
	of := func(name string) kube.Option {
		return kube.Spec(func(p *corev1.PodSpec) { p.RuntimeClassName = new(s.ns + name) })
	}
	s.create(kube.Pod("known", of("-known")), kube.Pod("unknown", of("-unknown")))
	p := s.running("known")
	want(t, "the overhead", p.Spec.Overhead.Memory().String(), "8Mi")
	want(t, "the class's choice of nodes", p.Spec.NodeSelector[corev1.LabelOSStable], "linux")
	s.event("unknown", "FailedCreatePodSandBox", `no runtime for "nothing" is configured`)
	s.Kubectl(t, "delete", "runtimeclass", s.ns+"-known")
	for _, name := range []string{"-known", "-never"} {
		_, err := s.Client.CoreV1().Pods(s.ns).Create(t.Context(), kube.Pod("late", of(name)), metav1.CreateOptions{})
		if err == nil || !strings.Contains(err.Error(), "RuntimeClass") {
			t.Errorf("a pod of a class that is not there: %v", err)
		}
	}
}

func TestPodCountsTheChangesOfItsSpec(t *testing.T) {
	s := newSpace(t)
	pod := kube.Pod("counted", kube.Grace(5), kube.Testbox("sigterm-log", "--grace=1ms"), kube.Tolerate("a", "", corev1.TaintEffectNoSchedule))
	pod.Generation = 100 // not the user's to set
	s.create(pod)
	observed := func(generation int64) {
		t.Helper()
		s.pod("counted", "observed", func(p *corev1.Pod) bool {
			return p.Generation == generation && p.Status.ObservedGeneration == generation
		})
	}
	s.running("counted")
	observed(1)
	s.kubectl("label", "pod", "counted", "a=b")
	observed(1)
	s.kubectl("patch", "pod", "counted", "--patch", `{"spec": {"tolerations": [{"key": "b", "operator": "Exists"}, {"key": "a", "operator": "Exists", "effect": "NoSchedule"}]}}`)
	observed(2)
	s.kubectl("patch", "pod", "counted", "--patch", `{"spec": {"activeDeadlineSeconds": 1}}`)
	p := s.pod("counted", "past its deadline", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	want(t, "why the pod ended", p.Status.Reason, "DeadlineExceeded")
	if p.Generation != 3 {
		t.Errorf("after three versions of its spec, the generation is %d", p.Generation)
	}
}
