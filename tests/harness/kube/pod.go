package kube

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Spec edits what no other option does.
func Spec(edit func(*corev1.PodSpec)) Option {
	return func(t *corev1.PodTemplateSpec, _ *corev1.Container) { edit(&t.Spec) }
}

// Box edits the container in ways no other option does.
func Box(edit func(*corev1.Container)) Option {
	return func(_ *corev1.PodTemplateSpec, c *corev1.Container) { edit(c) }
}

// Label adds one.
func Label(key, value string) Option {
	return func(t *corev1.PodTemplateSpec, _ *corev1.Container) { t.Labels[key] = value }
}

// Annotation adds one.
func Annotation(key, value string) Option {
	return func(t *corev1.PodTemplateSpec, _ *corev1.Container) {
		if t.Annotations == nil {
			t.Annotations = map[string]string{}
		}
		t.Annotations[key] = value
	}
}

// Once has no container start a second time.
func Once(t *corev1.PodTemplateSpec, _ *corev1.Container) {
	t.Spec.RestartPolicy = corev1.RestartPolicyNever
}

// Grace is how many seconds the pod has to end. Default 1.
func Grace(seconds int64) Option {
	return Spec(func(s *corev1.PodSpec) { s.TerminationGracePeriodSeconds = &seconds })
}

// HostNetwork has the pod use the node's network, and the cluster's DNS.
func HostNetwork(t *corev1.PodTemplateSpec, _ *corev1.Container) {
	t.Spec.HostNetwork, t.Spec.DNSPolicy = true, corev1.DNSClusterFirstWithHostNet
}

// Node picks nodes by a label.
func Node(label, value string) Option {
	return Spec(func(s *corev1.PodSpec) {
		if s.NodeSelector == nil {
			s.NodeSelector = map[string]string{}
		}
		s.NodeSelector[label] = value
	})
}

// Tolerate lets the pod on nodes with a taint; an empty value is any.
func Tolerate(key, value string, effect corev1.TaintEffect) Option {
	return Spec(func(s *corev1.PodSpec) {
		tol := corev1.Toleration{Key: key, Value: value, Effect: effect}
		if value == "" {
			tol.Operator = corev1.TolerationOpExists
		}
		s.Tolerations = append(s.Tolerations, tol)
	})
}

// Container adds one to the pod.
func Container(name string, opts ...Option) Option {
	return func(t *corev1.PodTemplateSpec, _ *corev1.Container) {
		c := container(t, name, opts)
		t.Spec.Containers = append(t.Spec.Containers, c)
	}
}

// Init adds a container that has to succeed before the pod's own start.
func Init(name string, opts ...Option) Option {
	return func(t *corev1.PodTemplateSpec, _ *corev1.Container) {
		c := container(t, name, opts)
		t.Spec.InitContainers = append(t.Spec.InitContainers, c)
	}
}

// Sidecar adds a container that starts before the pod's own, and stays.
func Sidecar(name string, opts ...Option) Option {
	return Init(name, append(opts, Box(func(c *corev1.Container) {
		c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
	}))...)
}

// Run is the container's command.
func Run(command ...string) Option {
	return Box(func(c *corev1.Container) { c.Command = command })
}

// Shell has a shell run a script as the container's command.
func Shell(script string) Option { return Run("sh", "-c", script) }

// Testbox runs the program of the test image; see tests/images/testbox.
func Testbox(args ...string) Option { return Run(append([]string{"testbox"}, args...)...) }

// On puts a pod on a node, past the scheduler.
func On(node string) Option { return Spec(func(s *corev1.PodSpec) { s.NodeName = node }) }

// Serve answers each HTTP request to port 8080, named http, with a text; an
// empty one is the pod's name.
func Serve(text string) Option {
	return func(t *corev1.PodTemplateSpec, c *corev1.Container) {
		c.Command = []string{"testbox", "serve", "--port=8080"}
		if text != "" {
			c.Command = append(c.Command, "--body="+text)
		}
		Expose("http", 8080)(t, c)
	}
}

// Echo answers each UDP packet to a port, named echo, with the same.
func Echo(port int32) Option {
	return Box(func(c *corev1.Container) {
		c.Command = []string{"testbox", "udpecho", "--port=" + decimal(port)}
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: "echo", ContainerPort: port, Protocol: corev1.ProtocolUDP})
	})
}

// Expose names a TCP port of the container.
func Expose(name string, port int32) Option {
	return Box(func(c *corev1.Container) {
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: name, ContainerPort: port})
	})
}

// HostPort leads a port of the node to the container's last port.
func HostPort(port int32) Option {
	return Box(func(c *corev1.Container) { c.Ports[len(c.Ports)-1].HostPort = port })
}

// Env sets a variable.
func Env(name, value string) Option {
	return Box(func(c *corev1.Container) { c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: value}) })
}

// Mount shows a volume in the container. The name is that of the volume within
// the pod, which other containers may mount too, each saying what it is.
func Mount(name, path string, volume corev1.VolumeSource) Option {
	return func(t *corev1.PodTemplateSpec, c *corev1.Container) {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: path})
		if !slices.ContainsFunc(t.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == name }) {
			t.Spec.Volumes = append(t.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: volume})
		}
	}
}

// Scratch is a folder that lives as long as the pod.
func Scratch() corev1.VolumeSource {
	return corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
}

// Settings are the values of a ConfigMap, as files.
func Settings(configMap string) corev1.VolumeSource {
	v := &corev1.ConfigMapVolumeSource{}
	v.Name = configMap
	return corev1.VolumeSource{ConfigMap: v}
}

// Secrets are the values of a Secret, as files.
func Secrets(secret string) corev1.VolumeSource {
	return corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret}}
}

// Claim is the volume of a PersistentVolumeClaim.
func Claim(name string) corev1.VolumeSource {
	return corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}
}

// HostFolder is a folder of the node, which has to exist.
func HostFolder(path string) corev1.VolumeSource {
	return corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: new(corev1.HostPathDirectory)}}
}

// Request asks the scheduler for room.
func Request(name corev1.ResourceName, quantity string) Option {
	return Box(func(c *corev1.Container) { put(&c.Resources.Requests, name, quantity) })
}

// Limit bounds what the container may use, and requests as much of what is not
// requested otherwise.
func Limit(name corev1.ResourceName, quantity string) Option {
	return Box(func(c *corev1.Container) { put(&c.Resources.Limits, name, quantity) })
}

func put(list *corev1.ResourceList, name corev1.ResourceName, quantity string) {
	if *list == nil {
		*list = corev1.ResourceList{}
	}
	(*list)[name] = resource.MustParse(quantity)
}
