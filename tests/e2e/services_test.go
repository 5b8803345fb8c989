package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// newServers has two pods that answer with their names, by TCP and UDP, some
// objects more, usually the Service server, and a client.
func newServers(t *testing.T, more ...runtime.Object) *space {
	t.Helper()
	s := newSpace(t)
	s.create(append(more, kube.Deployment("server", 2, kube.Serve(""), kube.Ready(kube.TCP(8080)), kube.Container("udp", kube.Echo(7000))))...)
	s.client()
	s.pods("app=server", 2)
	return s
}

// reachesBoth asks until both servers have answered.
func (s *space) reachesBoth(url string) {
	s.t.Helper()
	names := map[string]bool{}
	s.WaitFor(s.t, "answers of both servers from "+url, func(context.Context) (bool, error) {
		names[s.fromPod(url)] = true
		if len(names) < 2 {
			return false, fmt.Errorf("only %v answered", names)
		}
		return true, nil
	})
}

func TestClusterIPServiceIsReachedByNameAndByAddress(t *testing.T) {
	s := newServers(t, kube.Service("server", kube.Port(80, "http"), kube.UDP(7, "echo")))
	ip := s.get("service/server", ".spec.clusterIP")
	for _, host := range []string{"server", "server." + s.ns, "server." + s.ns + ".svc.cluster.local", ip} {
		wantPart(t, "the answer from "+host, s.fromPod("http://"+host), "server-")
		want(t, "the UDP answer from "+host, s.in("client", "testbox", "send", "udp", host+":7", "ping", "--retry", "30s"), "ping")
	}
	s.reachesBoth("http://server")
	wantPart(t, "the answer on the node", s.fromNode("http://"+ip), "server-")
}

func TestClientsKeepTheirAddressBehindAService(t *testing.T) {
	s := newServers(t, kube.Service("server", kube.Port(80, "http")))
	remote, _, err := net.SplitHostPort(s.fromPod("http://server/remote"))
	if err != nil {
		t.Fatal(err)
	}
	want(t, "the client's address as the server sees it", remote, s.get("pod/client", ".status.podIP"))
}

func TestPodReachesItselfThroughItsService(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("alone", kube.Serve("")), kube.Service("self", kube.For("alone"), kube.Port(80, "http")))
	s.running("alone")
	want(t, "the answer", s.in("alone", "testbox", "get", "http://self", "--retry", "30s"), "alone")
}

func TestNodePortServiceIsReachedOnEveryAddressOfTheNode(t *testing.T) {
	s := newServers(t, kube.Service("server", kube.NodePort, kube.Port(80, "http"), kube.UDP(7, "echo")))
	tcp := s.get("service/server", ".spec.ports[0].nodePort")
	wantPart(t, "the answer to a pod by the node's address", s.fromPod("http://"+s.nodeAddr(tcp)), "server-")
	wantPart(t, "the answer to a pod by name", s.fromPod("http://server"), "server-")
	wantPart(t, "the answer on the node", s.fromNode("http://"+s.nodeAddr(tcp)), "server-")
	wantPart(t, "the answer on localhost", s.fromNode("http://localhost:"+tcp), "server-")

	udp := s.get("service/server", ".spec.ports[1].nodePort")
	want(t, "the UDP answer to a pod", s.in("client", "testbox", "send", "udp", s.nodeAddr(udp), "ping", "--retry", "30s"), "ping")
	s.echoes(s.nodeAddr(udp))
	s.echoes("127.0.0.1:" + udp)

	s.kubectl("delete", "service", "server")
	for _, host := range []string{s.nodeAddr(tcp), "127.0.0.1:" + tcp} {
		s.WaitFor(t, host+" to be closed", func(ctx context.Context) (bool, error) {
			_, err := s.fetch(ctx, "http://"+host)
			return fails(err, "connection refused")
		})
	}
}

// echoes waits for a UDP answer to the node itself.
func (s *space) echoes(addr string) {
	s.t.Helper()
	s.WaitFor(s.t, "a UDP answer from "+addr, func(ctx context.Context) (bool, error) {
		c, err := s.Host.DialContext(ctx, "udp", addr)
		if err != nil {
			return false, err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return false, err
		}
		if _, err := c.Write([]byte("ping")); err != nil {
			return false, err
		}
		answer := make([]byte, 4)
		_, err = c.Read(answer)
		return string(answer) == "ping", err
	})
}

func TestNodePortWithLocalPolicyServesLocalPods(t *testing.T) {
	s := newServers(t, kube.Service("server", kube.NodePort, kube.Port(80, "http"), func(s *corev1.ServiceSpec) {
		s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		local := corev1.ServiceInternalTrafficPolicyLocal
		s.InternalTrafficPolicy = &local
	}))
	port := s.get("service/server", ".spec.ports[0].nodePort")
	wantPart(t, "the answer to a pod", s.fromPod("http://"+s.nodeAddr(port)), "server-")
	wantPart(t, "the answer to a pod by name", s.fromPod("http://server"), "server-")
	wantPart(t, "the answer on the node", s.fromNode("http://"+s.nodeAddr(port)), "server-")
	wantPart(t, "the answer on localhost", s.fromNode("http://localhost:"+port), "server-")
}

func TestLoadBalancerServiceAnswersOnItsNodePort(t *testing.T) {
	s := newServers(t, kube.Service("server", kube.LoadBalancer, kube.Port(80, "http")))
	port := s.get("service/server", ".spec.ports[0].nodePort")
	wantPart(t, "the answer to a pod by name", s.fromPod("http://server"), "server-")
	wantPart(t, "the answer to a pod", s.fromPod("http://"+s.nodeAddr(port)), "server-")
	wantPart(t, "the answer on localhost", s.fromNode("http://localhost:"+port), "server-")
}

func TestExternalIPsLeadToTheService(t *testing.T) {
	s := newServers(t, kube.Service("server", kube.Port(8000, "http"), func(s *corev1.ServiceSpec) {
		s.ExternalIPs = []string{"192.0.2.80"}
	}))
	wantPart(t, "the answer to a pod", s.fromPod("http://192.0.2.80:8000"), "server-")
	wantPart(t, "the answer on the node", s.fromNode("http://192.0.2.80:8000"), "server-")
}

func TestHeadlessServiceResolvesToItsPods(t *testing.T) {
	s := newServers(t, kube.Service("server", kube.Headless, kube.Port(8080, "http")))
	wantPart(t, "the answer", s.fromPod("http://server:8080"), "server-")
	got := s.in("client", "testbox", "lookup", "server."+s.ns+".svc.cluster.local", "a")
	want(t, "the addresses", sortedFields(got), sortedFields(s.get("pods", ".items[?(@.metadata.labels.app=='server')].status.podIP")))
}

func TestExternalNameServiceIsAnotherName(t *testing.T) {
	s := newServers(t, kube.Service("server", kube.Port(80, "http")))
	s.create(kube.Service("alias", kube.Alias("server."+s.ns+".svc.cluster.local")))
	wantPart(t, "the answer", s.fromPod("http://alias"), "server-")
}

func TestSessionAffinityKeepsAClientOnOnePod(t *testing.T) {
	s := newServers(t, kube.Service("server", kube.Port(80, "http"), func(s *corev1.ServiceSpec) {
		s.SessionAffinity = corev1.ServiceAffinityClientIP
	}))
	first := s.fromPod("http://server")
	out := s.in("client", "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do testbox get http://server || exit; done")
	if other := strings.TrimSpace(strings.ReplaceAll(out, first, "")); other != "" {
		t.Errorf("%s answered first, then also %s", first, other)
	}
}

func TestServiceWithoutPodsRefusesAtOnce(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Service("empty", kube.NodePort, kube.Port(80, 80)))
	s.client()
	for _, host := range []string{"empty:80", s.nodeAddr(s.get("service/empty", ".spec.ports[0].nodePort"))} {
		s.WaitFor(t, host+" to refuse", func(context.Context) (bool, error) {
			_, err := s.inErr("client", "testbox", "send", "tcp", host, "ping", "--timeout", "10s")
			return fails(err, "connection refused")
		})
	}
}

func TestServiceWithoutSelectorUsesTheUsersEndpoints(t *testing.T) {
	s := newServers(t, kube.Service("manual", kube.Manual, kube.Port(80, "http")))
	ip := strings.Fields(s.get("pods", ".items[?(@.metadata.labels.app=='server')].status.podIP"))[0]
	s.create(&discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "manual-1", Labels: map[string]string{discoveryv1.LabelServiceName: "manual"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080))}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{ip}}},
	})
	wantPart(t, "the answer", s.fromPod("http://manual"), "server-")
}

func TestServiceFollowsItsPods(t *testing.T) {
	s := newServers(t, kube.Service("server", kube.Port(80, "http")))
	s.reachesBoth("http://server")
	s.kubectl("scale", "deployment/server", "--replicas=1")
	left := s.pods("app=server", 1)[0].Name
	s.WaitFor(t, "only the pod that is left to answer", func(context.Context) (bool, error) {
		out, err := s.inErr("client", "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do testbox get http://server || exit; done")
		return err == nil && strings.TrimSpace(strings.ReplaceAll(out, left, "")) == "", err
	})
}

// Endpoints of new Services are there within the bound that the conformance list
// sets (50 s); how fast they are is a figure.
func TestNewServicesHaveTheirEndpointsSoon(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("web", kube.Serve("web")))
	s.running("web")
	var all []runtime.Object
	for i := range 50 {
		all = append(all, kube.Service(fmt.Sprint("web-", i), kube.For("web"), kube.Port(80, 8080)))
	}
	began := time.Now()
	s.create(all...)
	s.WaitFor(t, "endpoints of 50 Services", func(ctx context.Context) (bool, error) {
		slices, err := s.Client.DiscoveryV1().EndpointSlices(s.ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		filled := 0
		for _, e := range slices.Items {
			if len(e.Endpoints) == 1 && e.Endpoints[0].Conditions.Ready != nil && *e.Endpoints[0].Conditions.Ready {
				filled++
			}
		}
		return filled == 50, nil
	})
	if took := time.Since(began); took > 50*time.Second {
		t.Errorf("the endpoints of 50 Services took %s", took)
	}
}
