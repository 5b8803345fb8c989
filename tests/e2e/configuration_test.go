package e2e

import (
	"encoding/base64"
	"strings"
	"testing"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestImmutableConfigMapsAndSecretsRefuseChanges(t *testing.T) {
	s := newSpace(t)
	settings, key := kube.ConfigMap("settings", "colour", "green"), kube.Secret("key", "key", "old")
	settings.Immutable, key.Immutable = new(true), new(true)
	s.create(settings, key, kube.Pod("reader", kube.Mount("settings", "/etc/settings", kube.Settings("settings")), kube.Mount("key", "/etc/key", kube.Secrets("key"))))
	s.running("reader")
	for what, patch := range map[string]string{
		"configmap/settings": `{"data": {"colour": "blue"}}`,
		"secret/key":         `{"stringData": {"key": "new"}}`,
	} {
		_, err := s.kubectlErr("patch", what, "--patch", patch)
		if err == nil || !strings.Contains(err.Error(), "field is immutable when `immutable` is set") {
			t.Errorf("%s was changed: %v", what, err)
		}
		if _, err := s.kubectlErr("patch", what, "--patch", `{"immutable": false}`); err == nil {
			t.Errorf("%s is no longer immutable", what)
		}
	}
	want(t, "the files", s.in("reader", "sh", "-c", "cat /etc/settings/colour /etc/key/key"), "greenold")
	// It may be replaced as a whole, for pods to come. A node that knows it looks
	// for no changes as long as a pod there uses it.
	s.kubectl("delete", "pod/reader", "configmap/settings", "--timeout=60s")
	s.create(kube.ConfigMap("settings", "colour", "blue"), kube.Pod("next", kube.Mount("settings", "/etc/settings", kube.Settings("settings"))))
	s.running("next")
	want(t, "the file of the next pod", s.in("next", "cat", "/etc/settings/colour"), "blue")
}

func TestProjectedTokenIsGoodForItsAudienceAlone(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("bearer", kube.Mount("token", "/token", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		DefaultMode: new(int32(0o444)),
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Audience: "vault", ExpirationSeconds: new(int64(600)), Path: "vault",
		}}},
	}})))
	pod := s.running("bearer")
	token := s.in("bearer", "cat", "/token/vault")
	review := func(audiences ...string) authv1.TokenReviewStatus {
		r, err := s.Client.AuthenticationV1().TokenReviews().Create(t.Context(), &authv1.TokenReview{
			Spec: authv1.TokenReviewSpec{Token: token, Audiences: audiences},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	good := review("vault", "other")
	if !good.Authenticated || strings.Join(good.Audiences, ",") != "vault" {
		t.Errorf("its audience is told %+v", good)
	}
	want(t, "whose it is", good.User.Username, "system:serviceaccount:"+s.ns+":default")
	want(t, "the pod in it", strings.Join(good.User.Extra["authentication.kubernetes.io/pod-uid"], ","), string(pod.UID))
	want(t, "the node in it", strings.Join(good.User.Extra["authentication.kubernetes.io/node-name"], ","), pod.Spec.NodeName)
	for _, other := range [][]string{nil, {"other"}} {
		if r := review(other...); r.Authenticated {
			t.Errorf("audience %v takes a token that is not for it", other)
		}
	}
}

func TestImageVolumeShowsTheFilesOfAnImage(t *testing.T) {
	s := newSpace(t)
	r := s.StartRegistry(t, harness.RegistryOptions{})
	r.Push(t, "data:1")
	files := func(reference string) corev1.VolumeSource {
		return corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: reference, PullPolicy: corev1.PullIfNotPresent}}
	}
	s.create(kube.Pod("reader",
		kube.Mount("pulled", "/pulled", files(r.Image("data:1"))),
		kube.Mount("present", "/present", files(kube.Image)),
		kube.Mount("part", "/part", files(kube.Image)),
		kube.Box(func(c *corev1.Container) { c.VolumeMounts[2].SubPath = "etc" })))
	s.running("reader")
	want(t, "what the pod sees", s.in("reader", "sh", "-c", `
cat /pulled/edition
test -s /present/bin/testbox && echo program
grep -c ^root: /part/passwd
touch /pulled/file 2>&1; true`), "data:1\nprogram\n1\ntouch: /pulled/file: Read-only file system")

	s.create(kube.Pod("lost", kube.Mount("lost", "/lost", files(r.Image("nothing:1")))))
	s.event("lost", "Failed", "not found")
}

func TestValuesMayBeBinaryOptionalAndOfTheirOwnMode(t *testing.T) {
	s := newSpace(t)
	bytes := []byte{0, 0xff, '\n', 0x80}
	settings := kube.ConfigMap("settings", "colour", "green")
	settings.BinaryData = map[string][]byte{"blob": bytes}
	source := kube.Settings("settings")
	source.ConfigMap.Items = []corev1.KeyToPath{{Key: "blob", Path: "deep/blob", Mode: new(int32(0o440))}, {Key: "colour", Path: "colour"}}
	absent := kube.Secrets("absent")
	absent.Secret.Optional = new(true)
	s.create(settings, kube.Pod("reader", kube.Mount("settings", "/etc/settings", source), kube.Mount("absent", "/etc/absent", absent)))
	s.running("reader")
	want(t, "what the pod sees", s.in("reader", "sh", "-c", `
base64 < /etc/settings/deep/blob
stat -L -c %a /etc/settings/deep/blob /etc/settings/colour
ls /etc/absent | wc -l`), base64.StdEncoding.EncodeToString(bytes)+"\n440\n644\n0")
}

func TestPodWhoseVariableIsMissingIsToldOf(t *testing.T) {
	s := newSpace(t)
	s.create(kube.ConfigMap("settings", "colour", "green"), kube.Pod("lacking", kube.Once, kube.Shell("echo $SIZE"), kube.Box(func(c *corev1.Container) {
		ref := &corev1.ConfigMapKeySelector{Key: "size"}
		ref.Name = "settings"
		c.Env = []corev1.EnvVar{{Name: "SIZE", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: ref}}}
	})))
	s.event("lacking", "Failed", "couldn't find key size in ConfigMap "+s.ns+"/settings")
	s.kubectl("patch", "configmap", "settings", "--patch", `{"data": {"size": "large"}}`)
	want(t, "the output once it is there", s.ended("lacking", corev1.PodSucceeded), "large\n")
}
