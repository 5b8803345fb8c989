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

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// outside is a machine on the node's network that is no part of the cluster.
type outside struct {
	*lab.Host
	s *space
}

func (s *space) outside() outside {
	s.t.Helper()
	o := outside{s.Neighbour(s.t), s}
	// Until its rules know an address, the node sends what is for it back to where
	// the neighbour could have sent it by itself, and says so; the neighbour would
	// pass the node by for minutes.
	o.run("sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/accept_redirects; do echo 0 > $f; done")
	return o
}

func (o outside) run(name string, args ...string) {
	o.s.t.Helper()
	if out, err := o.Command(o.s.t.Context(), name, args...).CombinedOutput(); err != nil {
		o.s.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// get asks a URL until it is answered.
func (o outside) get(url string) string {
	o.s.t.Helper()
	var answer string
	o.s.WaitFor(o.s.t, "an answer to a neighbour from "+url, func(ctx context.Context) (bool, error) {
		// What went the wrong way once does so for as long as it is tried again.
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		var err error
		answer, err = fetchBy(ctx, o.DialContext, url)
		return err == nil, err
	})
	return answer
}

// sees is the address that a server sees the neighbour come from.
func (o outside) sees(host string) string {
	o.s.t.Helper()
	return hostOf(o.s.t, o.get("http://"+host+"/remote"))
}

// silent waits until nobody answers at an address at all, not even to refuse.
func (o outside) silent(address string) {
	o.s.t.Helper()
	o.s.WaitFor(o.s.t, "silence at "+address, func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		conn, err := o.DialContext(ctx, "tcp", address)
		if err == nil {
			conn.Close()
		}
		return fails(err, "i/o timeout")
	})
}

func (o outside) route(address string) {
	o.s.t.Helper()
	o.run("ip", "route", "add", address, "via", o.s.Host.Addr().String())
}

func hostOf(t *testing.T, address string) string {
	t.Helper()
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return host
}

func localOutside(s *corev1.ServiceSpec) {
	s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

// anotherBalancer leaves a Service's addresses to the test.
func anotherBalancer(s *corev1.ServiceSpec) { s.LoadBalancerClass = new("example.org/another") }

func localInside(s *corev1.ServiceSpec) {
	s.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
}

// placed are the endpoints of a Service without a selector, each on a node.
func placed(service string, port int32, nodeOf map[string]string) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: service + "-by-hand", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: &port}},
	}
	for ip, node := range nodeOf {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, NodeName: &node})
	}
	return slice
}

func TestLocalPolicyKeepsTheAddressOfClientsOutside(t *testing.T) {
	s := newServers(t,
		kube.Service("local", kube.For("server"), kube.NodePort, kube.Port(80, "http"), localOutside),
		kube.Service("cluster", kube.For("server"), kube.NodePort, kube.Port(80, "http"), kube.UDP(7, "echo")))
	o := s.outside()
	local := s.nodeAddr(s.get("service/local", ".spec.ports[0].nodePort"))
	cluster := s.nodeAddr(s.get("service/cluster", ".spec.ports[0].nodePort"))
	want(t, "the client's address with policy Local", o.sees(local), o.Addr().String())
	if seen := o.sees(cluster); seen == o.Addr().String() {
		t.Errorf("with policy Cluster the server sees the client's own address %s; on a second node its answer would get lost", seen)
	}
	wantPart(t, "the answer", o.get("http://"+local), "server-")
	o.echoes(s.nodeAddr(s.get("service/cluster", ".spec.ports[1].nodePort")), "ping")
}

// echoes waits for a UDP answer.
func (o outside) echoes(address, answer string) {
	o.s.t.Helper()
	conn, err := o.DialContext(o.s.t.Context(), "udp", address)
	if err != nil {
		o.s.t.Fatal(err)
	}
	defer conn.Close()
	o.s.WaitFor(o.s.t, fmt.Sprintf("answer %q from %s", answer, address), func(context.Context) (bool, error) {
		return exchange(conn, answer)
	})
}

// exchange sends "ping" by a UDP socket and tells whether the answer is the one
// wanted. Answers to earlier ones may still be on their way.
func exchange(conn net.Conn, answer string) (bool, error) {
	if err := conn.SetDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		return false, err
	}
	if _, err := conn.Write([]byte("ping")); err != nil {
		return false, err
	}
	buf := make([]byte, 1024)
	n, err := conn.Read(buf)
	if err != nil {
		return false, err
	}
	if got := string(buf[:n]); got != answer {
		return false, fmt.Errorf("the answer is %q", got)
	}
	return true, nil
}

func TestLocalPolicyPassesByPodsOfOtherNodes(t *testing.T) {
	s := newServers(t,
		kube.Service("afar", kube.Manual, kube.LoadBalancer, kube.Port(80, "http"), localOutside),
		kube.Service("near", kube.Manual, kube.Port(80, "http"), localInside),
		kube.Service("nowhere", kube.Manual, kube.Port(80, "http"), localInside))
	ip := s.pods("app=server", 2)[0].Status.PodIP
	s.create(
		placed("afar", 8080, map[string]string{ip: "elsewhere"}),
		placed("near", 8080, map[string]string{ip: "node", "192.0.2.99": "elsewhere"}),
		placed("nowhere", 8080, map[string]string{ip: "elsewhere"}))

	for range 10 {
		wantPart(t, "the answer within", s.fromPod("http://near"), "server-")
	}
	s.WaitFor(t, "silence within", func(context.Context) (bool, error) {
		_, err := s.inErr("client", "testbox", "send", "tcp", "nowhere:80", "ping", "--timeout", "1s")
		return fails(err, "i/o timeout")
	})

	// The cluster itself may use every pod.
	port := s.nodeAddr(s.get("service/afar", ".spec.ports[0].nodePort"))
	wantPart(t, "the answer to a pod", s.fromPod("http://"+port), "server-")
	o := s.outside()
	o.silent(port)
}

func TestHealthCheckPortTellsWhetherANodeHasPods(t *testing.T) {
	s := newServers(t, kube.Service("server", kube.LoadBalancer, kube.Port(80, "http"), localOutside))
	o := s.outside()
	health := "http://" + s.nodeAddr(s.get("service/server", ".spec.healthCheckNodePort"))
	s.WaitFor(t, "the health check to count both pods", func(ctx context.Context) (bool, error) {
		said, err := fetchBy(ctx, o.DialContext, health)
		return err == nil && strings.Contains(said, `"localEndpoints": 2`), err
	})
	s.kubectl("scale", "deployment/server", "--replicas=0")
	s.WaitFor(t, "the health check to fail", func(ctx context.Context) (bool, error) {
		_, err := fetchBy(ctx, o.DialContext, health)
		return fails(err, "503")
	})
}

func TestOutsideReachesWhatThePublishedAddressesLeadTo(t *testing.T) {
	s := newServers(t,
		kube.Service("external", kube.For("server"), kube.Port(8001, "http"), func(s *corev1.ServiceSpec) { s.ExternalIPs = []string{"192.0.2.81"} }),
		kube.Service("balanced", kube.For("server"), kube.LoadBalancer, anotherBalancer, kube.Port(8002, "http"), localOutside),
		kube.Service("guarded", kube.For("server"), kube.LoadBalancer, anotherBalancer, kube.Port(8003, "http"), func(s *corev1.ServiceSpec) {
			s.LoadBalancerSourceRanges = []string{"198.51.100.0/24"}
		}),
		kube.Pod("port", kube.Serve(""), kube.HostPort(18081), kube.Container("udp", kube.Echo(7000), kube.HostPort(17081))))
	o := s.outside()
	o.route("192.0.2.80/29")
	o.silent("192.0.2.82:8002")
	for name, ip := range map[string]string{"balanced": "192.0.2.82", "guarded": "192.0.2.83"} {
		s.kubectl("patch", "service", name, "--subresource=status", "--type=merge", "-p", `{"status":{"loadBalancer":{"ingress":[{"ip":"`+ip+`"}]}}}`)
	}
	wantPart(t, "the answer by the external address", o.get("http://192.0.2.81:8001"), "server-")
	want(t, "the client's address by the load balancer's", o.sees("192.0.2.82:8002"), o.Addr().String())
	wantPart(t, "the answer to a pod by the load balancer's address", s.fromPod("http://192.0.2.82:8002"), "server-")
	o.silent("192.0.2.83:8003")
	s.kubectl("patch", "service", "guarded", "--type=merge", "-p", `{"spec":{"loadBalancerSourceRanges":["`+o.Addr().String()+`/32"]}}`)
	wantPart(t, "the answer once the neighbour is let in", o.get("http://192.0.2.83:8003"), "server-")

	s.running("port")
	want(t, "the client's address at a host port", o.sees(s.nodeAddr("18081")), o.Addr().String())
	o.echoes(s.nodeAddr("17081"), "ping")
}

func TestPodsReachTheWorldByTheirNodesAddress(t *testing.T) {
	s := newSpace(t)
	o := s.outside()
	cmd := o.Command(t.Context(), harness.NeighbourTestbox, "serve", "--port=8080")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.client()
	remote := s.fromPod("http://" + o.Addr().String() + ":8080/remote")
	want(t, "a pod's address as a neighbour sees it", hostOf(t, strings.TrimSpace(remote)), s.Host.Addr().String())
}

func TestUDPClientsFollowAServiceToItsNewPods(t *testing.T) {
	s := newSpace(t)
	echo := func(pod string) *corev1.Service {
		return kube.Service("echo", kube.For(pod), kube.NodePort, kube.UDP(7, 7000))
	}
	server := kube.Testbox("udpecho", "--port=7000", "--named")
	s.create(kube.Pod("one", server), kube.Pod("two", server), echo("one"))
	s.client()
	s.running("one")
	s.running("two")
	o := s.outside()
	// One socket for all of it: to the kernel it is one connection, and each
	// packet has it remember for longer where the first one was sent.
	conn, err := o.DialContext(t.Context(), "udp", s.nodeAddr(s.get("service/echo", ".spec.ports[0].nodePort")))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reach := func(pod string) {
		t.Helper()
		s.WaitFor(t, pod+" to answer a neighbour", func(context.Context) (bool, error) { return exchange(conn, pod+" ping") })
		s.WaitFor(t, pod+" to answer a pod", func(context.Context) (bool, error) {
			out, err := s.inErr("client", "testbox", "send", "udp", "echo:7", "ping", "--from=5300", "--timeout=500ms")
			if err == nil && out != pod+" ping" {
				err = fmt.Errorf("the answer is %q", out)
			}
			return err == nil, err
		})
	}
	reach("one")
	s.create(echo("two"))
	reach("two")
	s.create(echo("nobody"))
	s.create(echo("one"))
	reach("one")
	s.kubectl("delete", "pod", "one")
	s.create(kube.Pod("one", server))
	s.running("one")
	reach("one")
}
