package kube

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// A ServiceOption edits a Service. What is missing here is one too:
//
//	func(s *corev1.ServiceSpec) { s.ExternalIPs = []string{"192.0.2.80"} }
type ServiceOption func(*corev1.ServiceSpec)

// Service selects the pods with the label app=<its name>.
func Service(name string, opts ...ServiceOption) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Selector: app(name)}}
	for _, o := range opts {
		o(&s.Spec)
	}
	return s
}

// For selects the pods of another name.
func For(name string) ServiceOption {
	return func(s *corev1.ServiceSpec) { s.Selector = app(name) }
}

// Manual selects no pods: somebody else makes the endpoints.
func Manual(s *corev1.ServiceSpec) { s.Selector = nil }

// Port adds a TCP port that leads to a port of the pods, by number or name. Its
// own name is http.
func Port[P int | string](port int32, target P) ServiceOption {
	return servicePort("http", corev1.ProtocolTCP, port, target)
}

// UDP adds a UDP port that leads to a port of the pods, by number or name. Its
// own name is echo.
func UDP[P int | string](port int32, target P) ServiceOption {
	return servicePort("echo", corev1.ProtocolUDP, port, target)
}

func servicePort(name string, protocol corev1.Protocol, port int32, target any) ServiceOption {
	p := corev1.ServicePort{Name: name, Protocol: protocol, Port: port}
	switch to := target.(type) {
	case int:
		p.TargetPort = intstr.FromInt(to)
	case string:
		p.TargetPort = intstr.FromString(to)
	}
	return func(s *corev1.ServiceSpec) { s.Ports = append(s.Ports, p) }
}

// Headless gives the Service no address of its own.
func Headless(s *corev1.ServiceSpec) { s.ClusterIP = corev1.ClusterIPNone }

// NodePort opens the Service on each node too.
func NodePort(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeNodePort }

// LoadBalancer asks for an address outside of the cluster too.
func LoadBalancer(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeLoadBalancer }

// Alias makes the Service another name for a host.
func Alias(host string) ServiceOption {
	return func(s *corev1.ServiceSpec) {
		s.Type, s.ExternalName, s.Selector = corev1.ServiceTypeExternalName, host, nil
	}
}
