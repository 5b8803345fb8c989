package servicelb

import (
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// autoscalerTaint is on a node that is about to be removed.
const autoscalerTaint = "ToBeDeletedByClusterAutoscaler"

// What follows keeps of each object what is read here, and nothing else.

func trimService(obj any) (any, error) {
	s, ok := obj.(*corev1.Service)
	if !ok {
		return obj, nil
	}
	return &corev1.Service{
		ObjectMeta: trimMeta(&s.ObjectMeta, []string{PoolLabel}, []string{AnnouncerAnnotation}),
		Spec: corev1.ServiceSpec{
			Type: s.Spec.Type, LoadBalancerClass: s.Spec.LoadBalancerClass, LoadBalancerIP: s.Spec.LoadBalancerIP,
			Ports: s.Spec.Ports, IPFamilies: s.Spec.IPFamilies, ExternalTrafficPolicy: s.Spec.ExternalTrafficPolicy,
		},
		Status: corev1.ServiceStatus{LoadBalancer: s.Status.LoadBalancer},
	}, nil
}

func trimNode(obj any) (any, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	kept := &corev1.Node{
		ObjectMeta: trimMeta(&n.ObjectMeta, []string{EnableLabel, PoolLabel, corev1.LabelNodeExcludeBalancers}, []string{TakenAnnotation}),
		Status:     corev1.NodeStatus{Addresses: n.Status.Addresses},
	}
	for _, t := range n.Spec.Taints {
		if t.Key == autoscalerTaint {
			kept.Spec.Taints = append(kept.Spec.Taints, corev1.Taint{Key: t.Key, Effect: t.Effect})
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady { // its times change all the while
			kept.Status.Conditions = append(kept.Status.Conditions, corev1.NodeCondition{Type: c.Type, Status: c.Status})
		}
	}
	return kept, nil
}

func trimSlice(obj any) (any, error) {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return obj, nil
	}
	kept := &discoveryv1.EndpointSlice{ObjectMeta: trimMeta(&s.ObjectMeta, []string{discoveryv1.LabelServiceName}, nil)}
	for _, e := range s.Endpoints {
		kept.Endpoints = append(kept.Endpoints, discoveryv1.Endpoint{NodeName: e.NodeName, Conditions: discoveryv1.EndpointConditions{Ready: e.Conditions.Ready}})
	}
	return kept, nil
}

func trimMeta(m *metav1.ObjectMeta, labels, annotations []string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp,
		Labels: pick(m.Labels, labels), Annotations: pick(m.Annotations, annotations),
	}
}

func pick(from map[string]string, keys []string) map[string]string {
	var kept map[string]string
	for _, k := range keys {
		if v, ok := from[k]; ok {
			if kept == nil {
				kept = map[string]string{}
			}
			kept[k] = v
		}
	}
	return kept
}

// asked are the ports that Services want, each once, in order.
func asked(services []*corev1.Service) []Port {
	set := map[Port]bool{}
	for _, s := range services {
		for _, p := range s.Spec.Ports {
			set[portOf(p)] = true
		}
	}
	list := make([]Port, 0, len(set))
	for p := range set {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b Port) int {
		if a.Number != b.Number {
			return int(a.Number - b.Number)
		}
		return strings.Compare(string(a.Protocol), string(b.Protocol))
	})
	return list
}

func portOf(p corev1.ServicePort) Port {
	if p.Protocol == "" {
		p.Protocol = corev1.ProtocolTCP
	}
	return Port{p.Protocol, p.Port}
}

func setOf(ports []Port) map[Port]bool {
	set := map[Port]bool{}
	for _, p := range ports {
		set[p] = true
	}
	return set
}

// formatPorts writes a TakenAnnotation.
func formatPorts(ports []Port) string {
	var texts []string
	for _, p := range ports {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ",")
}

// parsePorts reads a TakenAnnotation, and leaves out what is none.
func parsePorts(text string) map[Port]bool {
	set := map[Port]bool{}
	for one := range strings.SplitSeq(text, ",") {
		number, protocol, _ := strings.Cut(one, "/")
		if n, err := strconv.ParseUint(number, 10, 16); err == nil && n > 0 {
			set[Port{corev1.Protocol(protocol), int32(n)}] = true
		}
	}
	return set
}
