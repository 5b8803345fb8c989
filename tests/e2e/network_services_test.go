package e2e

import (
	"context"
	"fmt"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestServiceHasSeveralPortsAndOneNumberForTwoProtocols(t *testing.T) {
	s := newSpace(t)
	service := kube.Service("many", kube.Port(53, 8080), kube.UDP(53, 7000), kube.Port(54, 7001))
	service.Spec.Ports[2].Name = "tcpecho"
	s.create(service, kube.Pod("many", kube.Serve(""),
		kube.Container("udp", kube.Echo(7000)), kube.Container("tcp", kube.Testbox("tcpecho", "--port=7001"))))
	s.client()
	s.running("many")
	want(t, "the answer by TCP", s.fromPod("http://many:53"), "many")
	want(t, "the answer by UDP", s.in("client", "testbox", "send", "udp", "many:53", "ping", "--retry", "30s"), "ping")
	want(t, "the answer at the other port", s.in("client", "testbox", "send", "tcp", "many:54", "pong", "--retry", "30s"), "pong")
}

func TestServiceChangesItsType(t *testing.T) {
	s := newServers(t, kube.Service("changing", kube.Alias("www.example.org")))
	name := "changing." + s.ns + ".svc.cluster.local."
	alias := func() {
		t.Helper()
		s.WaitFor(t, "the alias", func(context.Context) (bool, error) {
			answer := s.ask(new(dns.Msg).SetQuestion(name, dns.TypeCNAME))
			if len(answer.Answer) != 1 {
				return false, fmt.Errorf("the answers are %v", answer.Answer)
			}
			target, ok := answer.Answer[0].(*dns.CNAME)
			return ok && target.Target == "www.example.org.", nil
		})
	}
	alias()
	s.create(kube.Service("changing", kube.For("server"), kube.Port(80, "http"), func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeClusterIP }))
	wantPart(t, "the answer by name", s.fromPod("http://"+name), "server-")
	s.create(kube.Service("changing", kube.For("server"), kube.Port(80, "http"), kube.NodePort))
	wantPart(t, "the answer at the node's port", s.fromNode("http://"+s.nodeAddr(s.get("service/changing", ".spec.ports[0].nodePort"))), "server-")
	s.create(kube.Service("changing", kube.Alias("www.example.org")))
	want(t, "the address of an alias", s.get("service/changing", ".spec.clusterIP"), "")
	alias()
}

func TestSessionAffinityHoldsAtNodePortsUntilItIsSwitchedOff(t *testing.T) {
	s := newServers(t, kube.Service("server", kube.NodePort, kube.Port(80, "http"), func(s *corev1.ServiceSpec) {
		s.SessionAffinity = corev1.ServiceAffinityClientIP
	}))
	o := s.outside()
	url := "http://" + s.nodeAddr(s.get("service/server", ".spec.ports[0].nodePort"))
	first := o.get(url)
	for range 20 {
		want(t, "the pod that answers", o.get(url), first)
	}
	s.kubectl("patch", "service", "server", "--type=merge", "-p", `{"spec":{"sessionAffinity":"None"}}`)
	s.WaitFor(t, "another pod to answer", func(context.Context) (bool, error) { return o.get(url) != first, nil })
}

func TestEndpointsWrittenByHandLeadToTheirAddresses(t *testing.T) {
	s := newServers(t, kube.Service("manual", kube.Manual, kube.Port(80, "http")))
	s.apply(`
apiVersion: v1
kind: Endpoints
metadata: {name: manual}
subsets:
- addresses: [{ip: ` + s.pods("app=server", 2)[0].Status.PodIP + `}]
  ports: [{name: http, port: 8080}]
`)
	wantPart(t, "the answer", s.fromPod("http://manual"), "server-")
}

func TestServicePortsMayNameOnesThatDifferBetweenPods(t *testing.T) {
	s := newSpace(t)
	old := kube.Pod("old", kube.Testbox("serve", "--port=8080"), kube.Expose("web", 8080), kube.Label("tier", "web"))
	young := kube.Pod("young", kube.Testbox("serve", "--port=9090"), kube.Expose("web", 9090), kube.Label("tier", "web"))
	service := kube.Service("web", kube.Port(80, "web"))
	service.Spec.Selector = map[string]string{"tier": "web"}
	service.Spec.Ports[0].TargetPort = intstr.FromString("web")
	s.create(old, young, service)
	s.client()
	s.running("old")
	s.running("young")
	s.reachesBoth("http://web")
}
