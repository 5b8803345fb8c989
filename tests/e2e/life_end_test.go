package e2e

import (
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func restartPolicy(p corev1.RestartPolicy) kube.Option {
	return kube.Spec(func(s *corev1.PodSpec) { s.RestartPolicy = p })
}

func TestRestartPolicyDecidesWhatFollowsAnExit(t *testing.T) {
	s := newSpace(t)
	well, ill := kube.Testbox("exit", "0"), kube.Testbox("exit", "3")
	s.create(
		kube.Pod("always-well", restartPolicy(corev1.RestartPolicyAlways), well),
		kube.Pod("always-ill", restartPolicy(corev1.RestartPolicyAlways), ill),
		kube.Pod("onfailure-well", restartPolicy(corev1.RestartPolicyOnFailure), well),
		kube.Pod("onfailure-ill", restartPolicy(corev1.RestartPolicyOnFailure), ill),
		kube.Pod("never-well", restartPolicy(corev1.RestartPolicyNever), well),
		kube.Pod("never-ill", restartPolicy(corev1.RestartPolicyNever), ill),
	)
	for name, phase := range map[string]corev1.PodPhase{
		"onfailure-well": corev1.PodSucceeded, "never-well": corev1.PodSucceeded, "never-ill": corev1.PodFailed,
	} {
		pod := s.pod(name, "ended", func(p *corev1.Pod) bool { return p.Status.Phase == phase })
		if n := pod.Status.ContainerStatuses[0].RestartCount; n != 0 {
			t.Errorf("%s was restarted %d times", name, n)
		}
	}
	for name, code := range map[string]int32{"always-well": 0, "always-ill": 3, "onfailure-ill": 3} {
		pod := s.pod(name, "restarted, and then held back", func(p *corev1.Pod) bool { return backsOff(p, "CrashLoopBackOff") })
		c := pod.Status.ContainerStatuses[0]
		if c.RestartCount == 0 || c.LastTerminationState.Terminated == nil || c.LastTerminationState.Terminated.ExitCode != code {
			t.Errorf("%s has restarted %d times, after %v", name, c.RestartCount, c.LastTerminationState)
		}
		// The first restart is at once, and each wait twice the one before.
		wait := min(10*time.Second<<max(c.RestartCount-1, 0), 5*time.Minute)
		wantPart(t, "why it waits", c.State.Waiting.Message, "back-off "+wait.String()+" restarting failed container")
		s.event(name, "BackOff", "Back-off restarting failed container")
	}
}

func TestContainersAreKilledWhenTheirGraceIsOver(t *testing.T) {
	s := newSpace(t)
	soon := kube.Spec(func(p *corev1.PodSpec) { p.ActiveDeadlineSeconds = new(int64(2)) })
	s.create(
		kube.Pod("stubborn", kube.Once, kube.Grace(2), soon, kube.Testbox("sigterm-log", "--grace=1h")),
		kube.Pod("polite", kube.Once, kube.Grace(30), soon, kube.Testbox("sigterm-log", "--grace=10ms")),
	)
	for name, c := range map[string]struct {
		code int32
		said string
	}{"stubborn": {137, "waiting for SIGTERM\ngot SIGTERM\n"}, "polite": {0, "waiting for SIGTERM\ngot SIGTERM\nbye\n"}} {
		want(t, "what the "+name+" container said", s.ended(name, corev1.PodFailed), c.said)
		pod := s.pod(name, "ended", func(p *corev1.Pod) bool {
			return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Terminated != nil
		})
		want(t, "the reason", pod.Status.Reason, "DeadlineExceeded")
		if code := pod.Status.ContainerStatuses[0].State.Terminated.ExitCode; code != c.code {
			t.Errorf("the %s container ended with %d, want %d", name, code, c.code)
		}
	}
}

func TestImageMayAskForAnotherSignalThanSIGTERM(t *testing.T) {
	s := newSpace(t)
	r := s.StartRegistry(t, harness.RegistryOptions{})
	r.Push(t, "signalled:1", func(i *ocispec.Image) { i.Config.StopSignal = "SIGUSR1" })
	s.create(kube.Pod("signalled", kube.Once, kube.Grace(20), image(r.Image("signalled:1")),
		kube.Shell(`trap "echo USR1; exit" USR1; trap "echo TERM; exit" TERM; testbox sleep & wait $!`)))
	s.running("signalled")
	follow := s.start("logs", "-f", "signalled")
	s.kubectl("delete", "pod", "signalled", "--timeout=60s")
	want(t, "the signal", strings.Join(follow.rest(), ","), "USR1")
}

func TestTerminationMessageIsKept(t *testing.T) {
	s := newSpace(t)
	s.create(
		kube.Pod("file", kube.Once, kube.Shell("echo -n from the file > /dev/termination-log")),
		kube.Pod("log", kube.Once, kube.Shell("echo from the log; exit 1"), kube.Box(func(c *corev1.Container) {
			c.TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
		})),
	)
	s.ended("file", corev1.PodSucceeded)
	want(t, "the message", s.get("pod/file", ".status.containerStatuses[0].state.terminated.message"), "from the file")
	s.ended("log", corev1.PodFailed)
	want(t, "the message", s.get("pod/log", ".status.containerStatuses[0].state.terminated.message"), "from the log\n")
}
