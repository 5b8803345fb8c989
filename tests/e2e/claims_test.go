package e2e

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// volumes makes volumes of the cluster, which go with the test.
func (s *space) volumes(volumes ...*corev1.PersistentVolume) {
	s.t.Helper()
	for _, v := range volumes {
		s.create(v)
		s.t.Cleanup(func() {
			// Those that went with their claims are as good.
			_ = s.Client.CoreV1().PersistentVolumes().Delete(context.Background(), v.Name, metav1.DeleteOptions{})
		})
	}
}

// bound waits until a claim is, and returns its volume's name.
func (s *space) bound(claim string) string {
	s.t.Helper()
	s.waitUntil("pvc/"+claim, "jsonpath={.status.phase}=Bound")
	return s.get("pvc/"+claim, ".spec.volumeName")
}

func TestClaimsBindTheVolumesTheyFit(t *testing.T) {
	s := newSpace(t)
	dir := s.folder()
	named := func(name, size string) *corev1.PersistentVolume {
		return kube.PersistentVolume(s.ns+"-"+name, s.ns, size, dir+"/"+name)
	}
	small, large, gold, chosen := named("small", "1Gi"), named("large", "8Gi"), named("gold", "8Gi"), named("chosen", "8Gi")
	large.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany, corev1.ReadOnlyMany}
	gold.Labels = map[string]string{"metal": "gold"}
	s.volumes(small, large, gold, chosen)
	s.create(
		kube.PersistentVolumeClaim("by-name", s.ns, "1Gi", func(c *corev1.PersistentVolumeClaimSpec) { c.VolumeName = chosen.Name }),
		kube.PersistentVolumeClaim("by-label", s.ns, "1Gi", func(c *corev1.PersistentVolumeClaimSpec) {
			c.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"metal": "gold"}}
		}))
	want(t, "the volume asked for by name", s.bound("by-name"), chosen.Name)
	want(t, "the volume asked for by label", s.bound("by-label"), gold.Name)
	s.create(
		kube.PersistentVolumeClaim("by-size", s.ns, "500Mi"),
		kube.PersistentVolumeClaim("by-mode", s.ns, "2Gi", kube.Access(corev1.ReadWriteMany)),
		kube.PersistentVolumeClaim("in-vain", s.ns, "4Gi", kube.Access(corev1.ReadWriteMany)))
	want(t, "the smallest volume that fits", s.bound("by-size"), small.Name)
	if one := s.bound1("by-mode", "in-vain"); one != large.Name {
		t.Errorf("a claim of many writers got %s", one)
	}

	data := kube.Mount("data", "/data", kube.Claim("by-size"))
	s.create(kube.Pod("writer", kube.Once, data, kube.Shell("echo kept > /data/note")))
	s.ended("writer", corev1.PodSucceeded)
	s.create(kube.Pod("reader", data, kube.Spec(func(p *corev1.PodSpec) {
		p.Volumes[0].PersistentVolumeClaim.ReadOnly = true
	})))
	s.running("reader")
	want(t, "what the next pod finds", s.in("reader", "sh", "-c", "cat /data/note; touch /data/other 2>&1 || true"), "kept\ntouch: /data/other: Read-only file system")
	want(t, "what the node has", s.Exec(t, "cat", dir+"/small/note"), "kept\n")
}

// bound1 waits until one of two claims is bound, while the other has to wait,
// and returns its volume's name.
func (s *space) bound1(a, b string) string {
	s.t.Helper()
	var volumes []string
	s.WaitFor(s.t, "one of two claims to be bound", func(context.Context) (bool, error) {
		out, err := s.kubectlErr("get", "pvc", a, b, "-o", "jsonpath={.items[*].spec.volumeName}")
		volumes = strings.Fields(out)
		return len(volumes) > 0, err
	})
	if len(volumes) != 1 {
		s.t.Fatalf("both claims are bound, to %s", volumes)
	}
	return volumes[0]
}

func TestVolumeIsKeptDeletedOrEmptiedAsItsPolicySays(t *testing.T) {
	s := newSpace(t)
	// What deletes folders does so below /tmp only.
	dir := "/tmp/" + s.ns
	s.Exec(t, "mkdir", "-p", dir+"/kept", dir+"/deleted", dir+"/recycled")
	kept := kube.PersistentVolume(s.ns+"-kept", s.ns+"-kept", "1Gi", dir+"/kept")
	deleted := kube.PersistentVolume(s.ns+"-deleted", s.ns+"-deleted", "1Gi", dir+"/deleted")
	deleted.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
	recycled := kube.PersistentVolume(s.ns+"-recycled", s.ns+"-recycled", "1Gi", dir+"/recycled")
	recycled.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRecycle
	s.volumes(kept, deleted, recycled)
	for _, name := range []string{"kept", "deleted", "recycled"} {
		s.create(kube.PersistentVolumeClaim(name, s.ns+"-"+name, "1Gi"))
		s.bound(name)
		s.create(kube.Pod(name, kube.Once, kube.Mount("data", "/data", kube.Claim(name)), kube.Shell("echo seen > /data/note")))
		s.ended(name, corev1.PodSucceeded)
		s.kubectl("delete", "pod/"+name, "pvc/"+name)
	}
	s.kubectl("wait", "pv/"+deleted.Name, "--for=delete", "--timeout=60s")
	if _, err := os.Stat(s.Host.Path(dir + "/deleted")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the deleted volume's folder: %v", err)
	}
	s.waitUntil("pv/"+recycled.Name, "jsonpath={.status.phase}=Available")
	want(t, "what the recycled volume has", s.Exec(t, "ls", dir+"/recycled"), "")
	s.waitUntil("pv/"+kept.Name, "jsonpath={.status.phase}=Released")
	want(t, "what the kept volume has", s.Exec(t, "cat", dir+"/kept/note"), "seen\n")
	// Nobody gets it before its administrator says so.
	s.create(kube.PersistentVolumeClaim("next", s.ns+"-kept", "1Gi"))
	s.event("next", "ProvisioningFailed", "not found")
	s.kubectl("patch", "pv", kept.Name, "--type=json", "-p", `[{"op":"remove","path":"/spec/claimRef"}]`)
	want(t, "the volume of the next claim", s.bound("next"), kept.Name)
}

func TestClaimStaysWhileAPodUsesIt(t *testing.T) {
	s := newSpace(t)
	s.volumes(kube.PersistentVolume(s.ns, s.ns, "1Gi", s.folder()))
	s.create(kube.PersistentVolumeClaim("data", s.ns, "1Gi"), kube.Pod("user", kube.Mount("data", "/data", kube.Claim("data"))))
	s.running("user")
	s.kubectl("delete", "pvc", "data", "--wait=false")
	s.kubectl("delete", "pv", s.ns, "--wait=false")
	s.in("user", "sh", "-c", "echo mine > /data/note && cat /data/note")
	wantPart(t, "the claim", s.get("pvc/data", ".metadata.finalizers"), "pvc-protection")
	wantPart(t, "the volume", s.get("pv/"+s.ns, ".metadata.finalizers"), "pv-protection")
	s.kubectl("delete", "pod", "user")
	s.kubectl("wait", "pvc/data", "pv/"+s.ns, "--for=delete", "--timeout=60s")
}

func TestLocalVolumeDrawsItsPodToItsNode(t *testing.T) {
	s := newSpace(t)
	dir := s.folder()
	s.Exec(t, "mkdir", dir+"/here")
	class := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: s.ns}, Provisioner: "kubernetes.io/no-provisioner",
		VolumeBindingMode: new(storagev1.VolumeBindingWaitForFirstConsumer),
	}
	s.create(class)
	t.Cleanup(func() {
		_ = s.Client.StorageV1().StorageClasses().Delete(context.Background(), s.ns, metav1.DeleteOptions{}) // the cluster goes too
	})
	local := func(name, node, size string) *corev1.PersistentVolume {
		v := kube.PersistentVolume(s.ns+"-"+name, s.ns, size, "")
		v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: dir + "/" + name}}
		v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
		}}}}
		return v
	}
	// The smaller one would fit better, but is out of reach.
	s.volumes(local("here", "node", "2Gi"), local("there", "elsewhere", "1Gi"))
	s.create(kube.PersistentVolumeClaim("data", s.ns, "1Gi"))
	s.event("data", "WaitForFirstConsumer", "waiting for first consumer")
	s.create(kube.Pod("user", kube.Mount("data", "/data", kube.Claim("data")), kube.Shell("echo local > /data/note; testbox sleep")))
	s.running("user")
	want(t, "the claim's volume", s.bound("data"), s.ns+"-here")
	want(t, "what the node has", s.Exec(t, "cat", dir+"/here/note"), "local\n")

	s.create(kube.PersistentVolumeClaim("more", s.ns, "1Gi"), kube.Pod("late", kube.Mount("data", "/data", kube.Claim("more"))))
	s.event("late", "FailedScheduling", "didn't find available persistent volumes to bind")
	s.create(
		kube.PersistentVolumeClaim("fixed", s.ns, "1Gi", func(c *corev1.PersistentVolumeClaimSpec) { c.VolumeName = s.ns + "-there" }),
		kube.Pod("drawn", kube.Mount("data", "/data", kube.Claim("fixed"))))
	s.bound("fixed")
	s.event("drawn", "FailedScheduling", "didn't match PersistentVolume's node affinity")
}

func TestClaimOfOnePodAtATimeMakesTheSecondWait(t *testing.T) {
	s := newSpace(t)
	volume := kube.PersistentVolume(s.ns, s.ns, "1Gi", s.folder())
	volume.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
	s.volumes(volume)
	s.create(kube.PersistentVolumeClaim("alone", s.ns, "1Gi", kube.Access(corev1.ReadWriteOncePod)),
		kube.Pod("first", kube.Mount("data", "/data", kube.Claim("alone"))))
	s.running("first")
	s.create(kube.Pod("second", kube.Mount("data", "/data", kube.Claim("alone"))))
	s.event("second", "FailedScheduling", "PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod")
	s.kubectl("delete", "pod", "first")
	s.running("second")
}

func TestClaimOfManyServesPodsAtOnce(t *testing.T) {
	s := newSpace(t)
	volume := kube.PersistentVolume(s.ns, s.ns, "1Gi", s.folder())
	volume.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	s.volumes(volume)
	s.create(kube.PersistentVolumeClaim("common", s.ns, "1Gi", kube.Access(corev1.ReadWriteMany)),
		kube.Deployment("writer", 2, kube.Mount("data", "/data", kube.Claim("common")), kube.Shell("echo here > /data/$HOSTNAME; testbox sleep")))
	for _, pod := range s.pods("app=writer", 2) {
		s.WaitFor(t, "the other pod's file", func(context.Context) (bool, error) {
			out, err := s.inErr(pod.Name, "sh", "-c", "ls /data | wc -l")
			return out == "2", err
		})
	}
}
