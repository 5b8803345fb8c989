package kube

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A ClaimOption edits a PersistentVolumeClaim.
type ClaimOption func(*corev1.PersistentVolumeClaimSpec)

// PersistentVolumeClaim asks a class for a volume that one node writes to. An
// empty class is that of volumes that have none.
func PersistentVolumeClaim(name, class, size string, opts ...ClaimOption) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
		StorageClassName: &class,
		AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
	}}
	for _, o := range opts {
		o(&c.Spec)
	}
	return c
}

// Access asks for other ways to use the volume.
func Access(modes ...corev1.PersistentVolumeAccessMode) ClaimOption {
	return func(c *corev1.PersistentVolumeClaimSpec) { c.AccessModes = modes }
}

// RawBlock asks for a device instead of a file system.
func RawBlock(c *corev1.PersistentVolumeClaimSpec) {
	c.VolumeMode = new(corev1.PersistentVolumeBlock)
}

// PersistentVolume is a folder of the node, made when a pod first uses it, that
// one node writes to and that is kept when its claim goes.
func PersistentVolume(name, class, size, folder string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
		StorageClassName:              class,
		AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
		Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
		PersistentVolumeSource: corev1.PersistentVolumeSource{
			HostPath: &corev1.HostPathVolumeSource{Path: folder, Type: new(corev1.HostPathDirectoryOrCreate)},
		},
	}}
}

// Device shows a volume as a device in the container.
func Device(name, path string, volume corev1.VolumeSource) Option {
	return func(t *corev1.PodTemplateSpec, c *corev1.Container) {
		c.VolumeDevices = append(c.VolumeDevices, corev1.VolumeDevice{Name: name, DevicePath: path})
		t.Spec.Volumes = append(t.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: volume})
	}
}
