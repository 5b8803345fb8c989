package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// csiDriver is our driver with the sidecars of others, as their authors describe
// it: all in one pod, with the rights of each.
const csiDriver = `
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: disk.example.org}
spec: {attachRequired: true, podInfoOnMount: true, volumeLifecycleModes: [Persistent, Ephemeral]}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: disk}
provisioner: disk.example.org
allowVolumeExpansion: true
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: disk}
driver: disk.example.org
deletionPolicy: Delete
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: disk, namespace: default}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: disk, namespace: default}
spec:
  serviceName: disk
  selector: {matchLabels: {app: disk}}
  template:
    metadata: {labels: {app: disk}}
    spec:
      serviceAccountName: disk
      terminationGracePeriodSeconds: 2
      containers:
      - name: driver
        image: knarr.dev/csidriver:1
        args: [-node=$(NODE)]
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        securityContext: {privileged: true}
        volumeMounts:
        - {name: socket, mountPath: /csi}
        - {name: registration, mountPath: /registration}
        - {name: data, mountPath: /data}
        - {name: devices, mountPath: /dev}
        - {name: kubelet, mountPath: /var/lib/kubelet, mountPropagation: Bidirectional}
      - name: provisioner
        image: knarr.dev/csi-provisioner:1
        args: [--csi-address=/csi/csi.sock]
        volumeMounts: [{name: socket, mountPath: /csi}]
      - name: attacher
        image: knarr.dev/csi-attacher:1
        args: [--csi-address=/csi/csi.sock]
        volumeMounts: [{name: socket, mountPath: /csi}]
      - name: resizer
        image: knarr.dev/csi-resizer:1
        args: [--csi-address=/csi/csi.sock]
        volumeMounts: [{name: socket, mountPath: /csi}]
      - name: snapshotter
        image: knarr.dev/csi-snapshotter:1
        args: [--csi-address=/csi/csi.sock]
        volumeMounts: [{name: socket, mountPath: /csi}]
      volumes:
      - {name: socket, hostPath: {path: /var/lib/kubelet/plugins/disk.example.org, type: DirectoryOrCreate}}
      - {name: registration, hostPath: {path: /var/lib/kubelet/plugins_registry, type: Directory}}
      - {name: data, hostPath: {path: /var/lib/disk.example.org, type: DirectoryOrCreate}}
      - {name: devices, hostPath: {path: /dev, type: Directory}}
      - {name: kubelet, hostPath: {path: /var/lib/kubelet, type: Directory}}
`

// installCSI runs the driver, and the sidecars with the rights and kinds that
// their own manifests give them.
func (s *space) installCSI() {
	s.t.Helper()
	archives, manifests := harness.CSI(s.t)
	for _, a := range archives {
		data, err := os.ReadFile(a)
		if err != nil {
			s.t.Fatal(err)
		}
		s.Write(s.t, "/var/lib/knarr/agent/images/"+filepath.Base(a), string(data))
	}
	for _, a := range archives { // one after another, half a minute each on a busy machine
		image := `"knarr.dev/` + strings.TrimSuffix(filepath.Base(a), ".tar") + `:1"`
		s.WaitFor(s.t, "the image "+image, func(ctx context.Context) (bool, error) {
			out, err := s.ExecErr(ctx, s.Exe, "crictl", "images", "-o", "json")
			return strings.Contains(out, image), err
		})
	}
	s.Apply(s.t, "", manifests)
	s.Kubectl(s.t, "wait", "crd/volumesnapshots.snapshot.storage.k8s.io", "crd/volumesnapshotcontents.snapshot.storage.k8s.io",
		"crd/volumesnapshotclasses.snapshot.storage.k8s.io", "--for=condition=established", "--timeout=60s")
	s.Apply(s.t, "", csiDriver)
	for _, sidecar := range []string{"provisioner", "attacher", "resizer", "snapshotter"} {
		s.Kubectl(s.t, "create", "clusterrolebinding", "disk-"+sidecar, "--serviceaccount=default:disk", "--clusterrole=external-"+sidecar+"-runner")
	}
	s.WaitPodRunning(s.t, "default", "disk-0")
}

// csiClaim asks the driver for a volume.
func csiClaim(name, size string, opts ...kube.ClaimOption) *corev1.PersistentVolumeClaim {
	return kube.PersistentVolumeClaim(name, "disk", size, opts...)
}

// from fills the volume with what another has.
func from(kind, name string) kube.ClaimOption {
	return func(c *corev1.PersistentVolumeClaimSpec) {
		c.DataSource = &corev1.TypedLocalObjectReference{Kind: kind, Name: name}
		if kind == "VolumeSnapshot" {
			c.DataSource.APIGroup = new("snapshot.storage.k8s.io")
		}
	}
}

func TestClaimOfAClassIsServedByItsCSIDriver(t *testing.T) {
	s := newSpace(t)
	s.installCSI()
	onData := func(claim string) kube.Option { return kube.Mount("data", "/data", kube.Claim(claim)) }

	// Provisioned, attached, mounted.
	s.create(csiClaim("data", "64Mi"), kube.Pod("writer", onData("data"), kube.Shell("echo first > /data/note; testbox sleep")))
	volume := s.bound("data")
	s.running("writer")
	want(t, "the driver of the volume", s.get("pv/"+volume, ".spec.csi.driver"), "disk.example.org")
	want(t, "whether it is attached", s.Kubectl(t, "get", "volumeattachments", "-o", "jsonpath={.items[?(@.spec.source.persistentVolumeName=='"+volume+"')].status.attached}"), "true")

	// Grown while in use.
	s.kubectl("patch", "pvc", "data", "--type=merge", "-p", `{"spec":{"resources":{"requests":{"storage":"128Mi"}}}}`)
	s.waitUntil("pvc/data", "jsonpath={.status.allocatedResourceStatuses.storage}=NodeResizePending")
	// The kubelet looks at a pod's volumes each minute, and when the pod changes.
	s.kubectl("annotate", "pod", "writer", "look=again")
	s.waitUntil("pvc/data", "jsonpath={.status.capacity.storage}=128Mi")
	want(t, "the volume's size", s.get("pv/"+volume, ".spec.capacity.storage"), "128Mi")

	// As it was when a picture was taken, and as it is.
	s.apply(`
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: before}
spec:
  volumeSnapshotClassName: disk
  source: {persistentVolumeClaimName: data}
`)
	s.waitUntil("volumesnapshot/before", "jsonpath={.status.readyToUse}=true")
	s.in("writer", "sh", "-c", "echo second > /data/note")
	s.create(
		csiClaim("restored", "128Mi", from("VolumeSnapshot", "before")), kube.Pod("historian", onData("restored")),
		csiClaim("copied", "128Mi", from("PersistentVolumeClaim", "data")), kube.Pod("copyist", onData("copied")))
	s.running("historian")
	s.running("copyist")
	want(t, "the snapshot", s.in("historian", "cat", "/data/note"), "first")
	want(t, "the copy", s.in("copyist", "cat", "/data/note"), "second")

	// A device, and a volume that lives as long as its pod.
	s.create(csiClaim("raw", "8Mi", kube.RawBlock), kube.Pod("blocks", kube.Device("raw", "/dev/raw", kube.Claim("raw"))),
		kube.Pod("passing", kube.Mount("work", "/work", corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
			VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: csiClaim("", "8Mi").Spec},
		}})),
		kube.Pod("inline", kube.Mount("work", "/work", corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "disk.example.org"}})))
	s.running("blocks")
	want(t, "what a device keeps", s.in("blocks", "sh", "-c", "blockdev --getsize64 /dev/raw; echo deep | dd of=/dev/raw bs=4096 seek=100 conv=sync 2>/dev/null; sync; dd if=/dev/raw bs=4096 skip=100 count=1 2>/dev/null | head -n 1"), "8388608\ndeep")
	for _, pod := range []string{"passing", "inline"} {
		s.running(pod)
		want(t, "what the pod "+pod+" keeps", s.in(pod, "sh", "-c", "echo here > /work/note; cat /work/note"), "here")
	}
	s.bound("passing-work")

	// Nothing is left.
	s.kubectl("delete", "pods", "--all")
	s.kubectl("wait", "pvc/passing-work", "--for=delete", "--timeout=60s")
	s.kubectl("delete", "volumesnapshots", "--all")
	s.kubectl("delete", "pvc", "--all")
	s.Kubectl(t, "wait", "pv/"+volume, "--for=delete", "--timeout=60s")
	s.WaitFor(t, "the driver's folders to be empty", func(context.Context) (bool, error) {
		for _, dir := range []string{"volumes", "snapshots"} {
			left, err := os.ReadDir(s.Host.Path("/var/lib/disk.example.org/" + dir))
			if err != nil {
				return false, err
			}
			if len(left) > 0 {
				return false, fmt.Errorf("%s has %v", dir, left)
			}
		}
		return true, nil
	})
}
