package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// securePod sets the security context of a pod, and secureBox that of one of its
// containers.
func securePod(c corev1.PodSecurityContext) kube.Option {
	return kube.Spec(func(p *corev1.PodSpec) { p.SecurityContext = &c })
}

func secureBox(c corev1.SecurityContext) kube.Option {
	return kube.Box(func(b *corev1.Container) { b.SecurityContext = &c })
}

func TestContainersRunAsTheUserTheyAreTold(t *testing.T) {
	s := newSpace(t)
	tell := kube.Shell(`echo "$(id -u) $(id -g) $(id -G)"; touch /tmp/mine; stat -c '%u %g' /tmp/mine`)
	s.create(
		kube.Pod("plain", kube.Once, tell),
		kube.Pod("pods", kube.Once, tell, securePod(corev1.PodSecurityContext{
			RunAsUser: new(int64(65534)), RunAsGroup: new(int64(2000)), SupplementalGroups: []int64{3000, 3001},
		})),
		// What a container says beats what its pod says.
		kube.Pod("own", kube.Once, tell, securePod(corev1.PodSecurityContext{RunAsUser: new(int64(65534)), RunAsGroup: new(int64(2000))}),
			secureBox(corev1.SecurityContext{RunAsUser: new(int64(1234)), RunAsGroup: new(int64(4321))})),
	)
	want(t, "the image's own user", s.ended("plain", corev1.PodSucceeded), "0 0 0\n0 0\n")
	want(t, "the pod's user", s.ended("pods", corev1.PodSucceeded), "65534 2000 2000 3000 3001\n65534 2000\n")
	want(t, "the container's user", s.ended("own", corev1.PodSucceeded), "1234 4321 4321\n1234 4321\n")
}

// In the image, user 1000 belongs to group 4000.
func TestGroupsOfTheImageJoinOnlyWhereThePolicyMerges(t *testing.T) {
	s := newSpace(t)
	sailor := func(policy corev1.SupplementalGroupsPolicy) kube.Option {
		return securePod(corev1.PodSecurityContext{
			RunAsUser: new(int64(1000)), RunAsGroup: new(int64(1000)), SupplementalGroups: []int64{3000}, SupplementalGroupsPolicy: &policy,
		})
	}
	s.create(kube.Pod("merging", sailor(corev1.SupplementalGroupsPolicyMerge)), kube.Pod("strict", sailor(corev1.SupplementalGroupsPolicyStrict)))
	for name, groups := range map[string]string{"merging": "1000 3000 4000", "strict": "1000 3000"} {
		pod := s.running(name)
		want(t, "the groups of "+name, s.in(name, "id", "-G"), groups)
		user := pod.Status.ContainerStatuses[0].User
		if user == nil || user.Linux == nil || user.Linux.UID != 1000 || len(user.Linux.SupplementalGroups) != len(strings.Fields(groups)) {
			t.Errorf("the status of %s tells of the user %+v", name, user)
		}
	}
}

func TestVolumesBelongToTheGroupOfTheirPod(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Secret("key", "key", "open sesame"), kube.ConfigMap("settings", "colour", "green"),
		kube.Pod("shared", securePod(corev1.PodSecurityContext{RunAsUser: new(int64(1000)), FSGroup: new(int64(3000))}),
			kube.Mount("data", "/data", kube.Scratch()),
			kube.Mount("key", "/key", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "key", DefaultMode: new(int32(0o400))}}),
			kube.Mount("settings", "/settings", kube.Settings("settings")),
			kube.Mount("memory", "/memory", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}})))
	s.running("shared")
	want(t, "what the user may do", s.in("shared", "sh", "-c", `
id -G
for d in /data /memory; do stat -c '%g %a' $d; echo x > $d/mine && stat -c '%u %g' $d/mine; done
cat /key/key; echo; stat -L -c '%g %a' /key/key /settings/colour
cat /var/run/secrets/kubernetes.io/serviceaccount/token | wc -w`), strings.Join([]string{
		"1000 3000 4000",
		"3000 2777", "1000 3000", "3000 3777", "1000 3000",
		"open sesame", "3000 440", "3000 644", "1",
	}, "\n"))
}

func TestRootIsRefusedToAPodThatMustNotBeRoot(t *testing.T) {
	s := newSpace(t)
	notRoot := corev1.PodSecurityContext{RunAsNonRoot: new(true)}
	s.create(
		kube.Pod("by-image", securePod(notRoot)),
		kube.Pod("by-order", securePod(notRoot), secureBox(corev1.SecurityContext{RunAsUser: new(int64(0))})),
		kube.Pod("another", securePod(notRoot), secureBox(corev1.SecurityContext{RunAsUser: new(int64(1000))})),
	)
	s.event("by-image", "Failed", "container has runAsNonRoot and image will run as root")
	s.event("by-order", "Failed", "container's runAsUser breaks non-root policy")
	for _, name := range []string{"by-image", "by-order"} {
		s.waitUntil("pod/"+name, "jsonpath={.status.containerStatuses[0].state.waiting.reason}=CreateContainerConfigError")
	}
	s.running("another")
	want(t, "the user that is allowed", s.in("another", "id", "-u"), "1000")
}

// The program has the set-uid bit of root, on a volume.
func TestPrivilegesAreNotGainedWhereThatIsForbidden(t *testing.T) {
	s := newSpace(t)
	work := kube.Mount("work", "/work", kube.Scratch())
	run := kube.Run("/work/testbox", "whoami")
	user := func(gain *bool) kube.Option {
		return secureBox(corev1.SecurityContext{RunAsUser: new(int64(1000)), AllowPrivilegeEscalation: gain})
	}
	s.create(kube.Pod("gaining", kube.Once, work, run, user(nil),
		kube.Init("owner", work, kube.Shell("cp /bin/testbox /work/ && chmod 4755 /work/testbox")),
		kube.Container("allowed", work, run, user(new(true))),
		kube.Container("forbidden", work, run, user(new(false)))))
	s.ended("gaining", corev1.PodSucceeded)
	for box, who := range map[string]string{"gaining": "0 1000\n", "allowed": "0 1000\n", "forbidden": "1000 1000\n"} {
		want(t, "who the program is in "+box, s.kubectl("logs", "gaining", "-c", box), who)
	}
}
