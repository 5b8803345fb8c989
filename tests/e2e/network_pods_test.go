package e2e

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestPodsAndTheNodeReachEachOther(t *testing.T) {
	s := newSpace(t)
	s.create(
		kube.Pod("pod", kube.Serve("pod"), kube.Container("udp", kube.Echo(7000))),
		kube.Pod("host", kube.HostNetwork, kube.Testbox("serve", "--port=18091", "--body=host")))
	s.client()
	pod := s.running("pod").Status.PodIP
	s.running("host")
	client := s.get("pod/client", ".status.podIP")

	want(t, "the pod's answer to a pod", s.fromPod("http://"+pod+":8080"), "pod")
	want(t, "the pod's UDP answer to a pod", s.in("client", "testbox", "send", "udp", pod+":7000", "ping", "--retry", "10s"), "ping")
	want(t, "a pod's address as another sees it", hostOf(t, s.fromPod("http://"+pod+":8080/remote")), client)

	want(t, "the pod's answer to the node", s.fromNode("http://"+pod+":8080"), "pod")
	s.echoes(pod + ":7000")

	host := s.nodeAddr("18091")
	want(t, "the node's answer to a pod", s.fromPod("http://"+host), "host")
	want(t, "a pod's address as the node sees it", hostOf(t, s.fromPod("http://"+host+"/remote")), client)
}

// at binds the container's last port to one address of the node.
func at(address string, port int32) kube.Option {
	return kube.Box(func(c *corev1.Container) {
		last := &c.Ports[len(c.Ports)-1]
		last.HostIP, last.HostPort = address, port
	})
}

func TestHostPortsMayBeSharedByDifferentAddressesAndProtocols(t *testing.T) {
	s := newSpace(t)
	node := s.Host.Addr().String()
	s.create(
		kube.Pod("loopback", kube.Serve(""), at("127.0.0.1", 18100)),
		kube.Pod("address", kube.Serve(""), at(node, 18100)),
		kube.Pod("datagrams", kube.Echo(7000), at(node, 18100)))
	for _, pod := range []string{"loopback", "address", "datagrams"} {
		s.running(pod)
	}
	want(t, "the answer on localhost", s.fromNode("http://127.0.0.1:18100"), "loopback")
	want(t, "the answer at the node's address", s.fromNode("http://"+s.nodeAddr("18100")), "address")
	s.echoes(s.nodeAddr("18100"))

	s.create(kube.Pod("late", kube.Serve(""), at(node, 18100)))
	s.event("late", "FailedScheduling", "didn't have free ports")
}

func TestEveryDNSPolicyGivesItsResolver(t *testing.T) {
	s := newSpace(t)
	policy := func(p corev1.DNSPolicy) kube.Option {
		return kube.Spec(func(spec *corev1.PodSpec) { spec.DNSPolicy = p })
	}
	onHost := kube.Spec(func(spec *corev1.PodSpec) { spec.HostNetwork = true })
	s.create(
		kube.Pod("nodes", policy(corev1.DNSDefault)),
		kube.Pod("first", policy(corev1.DNSClusterFirst), kube.Spec(func(spec *corev1.PodSpec) {
			spec.DNSConfig = &corev1.PodDNSConfig{
				Nameservers: []string{"192.0.2.53"}, Searches: []string{"example.org"},
				Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: new("2")}, {Name: "rotate"}},
			}
		})),
		kube.Pod("on-host", onHost, policy(corev1.DNSClusterFirst)),
		kube.Pod("on-host-too", onHost, policy(corev1.DNSClusterFirstWithHostNet)))

	// resolver are the words after those of resolv.conf's lines that begin so.
	resolver := func(pod, key string) string {
		t.Helper()
		s.running(pod)
		var words []string
		for line := range strings.Lines(s.in(pod, "cat", "/etc/resolv.conf")) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == key {
				words = append(words, f[1:]...)
			}
		}
		return strings.Join(words, " ")
	}
	var ours string
	for line := range strings.Lines(s.Exec(t, "cat", "/etc/resolv.conf")) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "nameserver "); ok {
			ours = name
		}
	}
	zones := s.ns + ".svc.cluster.local svc.cluster.local cluster.local"
	want(t, "the node's name server", resolver("nodes", "nameserver"), ours)
	want(t, "the node's domains", resolver("nodes", "search"), "")
	want(t, "the cluster's name server and one's own", resolver("first", "nameserver"), "10.43.0.10 192.0.2.53")
	want(t, "the cluster's domains and one's own", resolver("first", "search"), zones+" example.org")
	options := strings.Fields(resolver("first", "options"))
	if !slices.Contains(options, "ndots:2") || !slices.Contains(options, "rotate") {
		t.Errorf("the options are %q", options)
	}
	want(t, "the name server on the host's network", resolver("on-host", "nameserver"), ours)
	want(t, "the name server there when asked for", resolver("on-host-too", "nameserver"), "10.43.0.10")
	want(t, "the domains there when asked for", resolver("on-host-too", "search"), zones)
}

func TestPodWithoutServiceLinksHasVariablesOfTheAPIAlone(t *testing.T) {
	s := newSpace(t)
	s.create(web("any")...)
	s.create(kube.Pod("terse", kube.Spec(func(p *corev1.PodSpec) { p.EnableServiceLinks = new(false) })))
	s.running("terse")
	out := s.in("terse", "sh", "-c", "env | grep _SERVICE_HOST")
	wantPart(t, "the variables", out, "KUBERNETES_SERVICE_HOST=")
	if strings.Contains(out, "WEB_") {
		t.Errorf("a pod that wants none has variables of Services:\n%s", out)
	}
}
