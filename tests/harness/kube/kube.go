// Package kube makes the objects that tests give a cluster, in a line or two
// each and typed, so that the compiler finds what is misspelled:
//
//	kube.Pod("web", kube.Serve("hello"), kube.Ready(kube.HTTP("/ready", 8080)))
//	kube.Service("web", kube.Port(80, 8080))
//
// Pods, and what makes pods, carry the label app=<name>, which a Service of the
// same name selects. Their one container has the same name too and runs the test
// image, which does nothing until it is told to. What an option is missing for
// is set on the object that is returned, or by [Spec] and [Box]. Node.Create of
// the harness hands objects to a cluster.
package kube

import (
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Image is the test image, which every node of the harness has.
const Image = "knarr.dev/test:1"

// An Option edits a pod, or the container that it is given for: that of the
// pod, or the one of [Container], [Init] and [Sidecar].
type Option func(*corev1.PodTemplateSpec, *corev1.Container)

// template is a pod without its name.
func template(name string, opts []Option) corev1.PodTemplateSpec {
	t := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: app(name)}}
	t.Spec.TerminationGracePeriodSeconds = new(int64(1))
	main := container(&t, name, opts)
	t.Spec.Containers = append([]corev1.Container{main}, t.Spec.Containers...)
	return t
}

func container(t *corev1.PodTemplateSpec, name string, opts []Option) corev1.Container {
	c := corev1.Container{Name: name, Image: Image}
	for _, o := range opts {
		o(t, &c)
	}
	return c
}

// Pod has a second to end once it is told to, unless [Grace] says otherwise.
func Pod(name string, opts ...Option) *corev1.Pod {
	t := template(name, opts)
	t.Name = name
	return &corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
}

// Deployment makes pods that differ in nothing.
func Deployment(name string, replicas int32, opts ...Option) *appsv1.Deployment {
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: selector(name), Template: template(name, opts),
	}}
}

// StatefulSet makes pods with names that stay, by the Service of its own name.
func StatefulSet(name string, replicas int32, opts ...Option) *appsv1.StatefulSet {
	return &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.StatefulSetSpec{
		Replicas: &replicas, ServiceName: name, Selector: selector(name), Template: template(name, opts),
	}}
}

// DaemonSet makes a pod on each node.
func DaemonSet(name string, opts ...Option) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DaemonSetSpec{
		Selector: selector(name), Template: template(name, opts),
	}}
}

// Job runs its pod once.
func Job(name string, opts ...Option) *batchv1.Job {
	return &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: batchv1.JobSpec{
		Template: template(name, append([]Option{Once}, opts...)),
	}}
}

// ConfigMap holds keys and values, which take turns.
func ConfigMap(name string, pairs ...string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: paired(pairs)}
}

// Secret holds keys and values, which take turns.
func Secret(name string, pairs ...string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: paired(pairs)}
}

func paired(pairs []string) map[string]string {
	m := map[string]string{}
	for p := range slices.Chunk(pairs, 2) {
		m[p[0]] = p[1]
	}
	return m
}

func app(name string) map[string]string { return map[string]string{"app": name} }

func selector(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: app(name)}
}
