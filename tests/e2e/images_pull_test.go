package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// image has the container run another image than the test image.
func image(name string) kube.Option {
	return kube.Box(func(c *corev1.Container) { c.Image = name })
}

func pull(policy corev1.PullPolicy) kube.Option {
	return kube.Box(func(c *corev1.Container) { c.ImagePullPolicy = policy })
}

// notPulled waits until an image could not be pulled, and returns what the user
// is told.
func (s *space) notPulled(pod, words string) string {
	s.t.Helper()
	s.pod(pod, "told that its image can't be pulled", func(p *corev1.Pod) bool {
		c := p.Status.ContainerStatuses
		return len(c) > 0 && c[0].State.Waiting != nil && strings.HasPrefix(c[0].State.Waiting.Reason, "ErrImagePull") || backsOff(p, "ImagePullBackOff")
	})
	return s.event(pod, "Failed", words)
}

// backsOff tells whether a pod's container waits for its next try.
func backsOff(p *corev1.Pod, reason string) bool {
	c := p.Status.ContainerStatuses
	return len(c) > 0 && c[0].State.Waiting != nil && c[0].State.Waiting.Reason == reason
}

func TestImageIsPulledByTagAndByDigest(t *testing.T) {
	s := newSpace(t)
	r := s.StartRegistry(t, harness.RegistryOptions{})
	first := r.Push(t, "team/app:1")
	r.Push(t, "team/app:2")
	r.Push(t, "team/app") // latest
	s.create(
		kube.Pod("tagged", image(r.Image("team/app:2"))),
		kube.Pod("untagged", image(r.Image("team/app"))),
		kube.Pod("digested", image(r.Image("team/app@"+first.String()))),
	)
	for pod, edition := range map[string]string{"tagged": "team/app:2", "untagged": "team/app", "digested": "team/app:1"} {
		running := s.running(pod)
		want(t, "the edition of "+pod, s.in(pod, "cat", "/edition"), edition)
		wantPart(t, "the image of "+pod, running.Status.ContainerStatuses[0].ImageID, r.Addr+"/team/app@sha256:")
	}
	wantPart(t, "the event", s.event("tagged", "Pulled", "Successfully pulled image"), r.Image("team/app:2"))
}

// A pull is told of after ten seconds.
func TestPodsAreToldHowFarTheirPullsAre(t *testing.T) {
	s := newSpace(t)
	r := s.StartRegistry(t, harness.RegistryOptions{Slow: 512 << 10})
	r.PushLarge(t, "large:1", 8<<20)
	s.create(kube.Pod("slow", image(r.Image("large:1"))))
	wantPart(t, "the event", s.event("slow", "PullProgress", "Pulling image"), " % of ")
}

func TestPullPolicyDecidesWhenTheRegistryIsAsked(t *testing.T) {
	s := newSpace(t)
	r := s.StartRegistry(t, harness.RegistryOptions{})
	r.Push(t, "app:1")
	run := func(pod string, policy corev1.PullPolicy) string {
		s.create(kube.Pod(pod, kube.Once, image(r.Image("app:1")), pull(policy), kube.Run("cat", "/edition")))
		return s.ended(pod, corev1.PodSucceeded)
	}
	s.create(kube.Pod("never", kube.Once, image(r.Image("app:1")), pull(corev1.PullNever)))
	s.event("never", "ErrImageNeverPull", "is not present with pull policy of Never")
	if asked := r.Asked(""); asked != 0 {
		t.Errorf("the registry was asked %d times although the policy is Never", asked)
	}
	want(t, "the first run", run("first", corev1.PullIfNotPresent), "app:1\n")
	asked := r.Asked("")
	if asked == 0 {
		t.Error("the registry was not asked for an image that was not there")
	}
	want(t, "the second run", run("second", corev1.PullIfNotPresent), "app:1\n")
	if again := r.Asked(""); again != asked {
		t.Errorf("the registry was asked %d times more for an image that was there", again-asked)
	}

	moved := r.Push(t, "app:2")
	r.Tag(t, "app", moved, "1")
	want(t, "the run of the tag as it was", run("kept", corev1.PullIfNotPresent), "app:1\n")
	want(t, "the run of the tag that has moved", run("always", corev1.PullAlways), "app:2\n")
}

func TestRegistryThatNobodyTrustsIsToldOf(t *testing.T) {
	s := newSpace(t)
	r := s.StartRegistry(t, harness.RegistryOptions{SelfSigned: true})
	r.Push(t, "app:1")
	s.create(kube.Pod("wary", image(r.Image("app:1"))), kube.Pod("lost", image(r.Image("nothing:1"))))
	s.notPulled("wary", "certificate signed by unknown authority")
}

func TestMissingImageIsToldOf(t *testing.T) {
	s := newSpace(t)
	r := s.StartRegistry(t, harness.RegistryOptions{})
	s.create(kube.Pod("lost", image(r.Image("nothing:1"))))
	wantPart(t, "the event", s.notPulled("lost", "not found"), r.Image("nothing:1"))
	r.Push(t, "nothing:1")
	s.running("lost") // it is tried again
}

func TestPrivateImageNeedsItsSecret(t *testing.T) {
	s := newSpace(t)
	for name, tokens := range map[string]bool{"passwords": false, "tokens": true} {
		r := s.StartRegistry(t, harness.RegistryOptions{User: "anna", Password: "right", Tokens: tokens})
		r.Push(t, "private/app:1")
		for secret, password := range map[string]string{"-right": "right", "-wrong": "wrong"} {
			s.kubectl("create", "secret", "docker-registry", name+secret, "--docker-server="+r.Addr, "--docker-username=anna", "--docker-password="+password)
		}
		with := func(secret string) kube.Option {
			return kube.Spec(func(p *corev1.PodSpec) {
				p.ImagePullSecrets = []corev1.LocalObjectReference{{Name: name + secret}}
			})
		}
		private := image(r.Image("private/app:1"))
		s.create(
			kube.Pod(name+"-none", private),
			kube.Pod(name+"-wrong", private, with("-wrong")),
			kube.Pod(name+"-absent", private, with("-absent")),
		)
		wantPart(t, "what a pod without a secret is told", s.notPulled(name+"-none", "auth"), r.Image("private/app:1"))
		wantPart(t, "what a pod with a wrong password is told", s.notPulled(name+"-wrong", "401 Unauthorized"), r.Image("private/app:1"))
		s.event(name+"-absent", "FailedToRetrieveImagePullSecret", name+"-absent")

		s.create(kube.Pod(name+"-right", private, with("-right")))
		s.running(name + "-right")
		want(t, "the edition", s.in(name+"-right", "cat", "/edition"), "private/app:1")

		// The image is on the node now, but not for everyone.
		s.create(kube.Pod(name+"-late", private, pull(corev1.PullIfNotPresent)))
		s.notPulled(name+"-late", "auth")
	}
}

func TestServiceAccountLendsItsPullSecrets(t *testing.T) {
	s := newSpace(t)
	r := s.StartRegistry(t, harness.RegistryOptions{User: "anna", Password: "right", Tokens: true})
	r.Push(t, "private/app:1")
	s.kubectl("create", "secret", "docker-registry", "key", "--docker-server="+r.Addr, "--docker-username=anna", "--docker-password=right")
	s.waitUntil("serviceaccount/default", "create")
	patch, err := json.Marshal(map[string]any{"imagePullSecrets": []map[string]string{{"name": "key"}}})
	if err != nil {
		t.Fatal(err)
	}
	s.kubectl("patch", "serviceaccount", "default", "--patch", string(patch))
	s.create(kube.Pod("app", image(r.Image("private/app:1"))))
	s.running("app")
}
