package e2e

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// published waits until a Service has the node's address, and no other.
func (s *space) published(service string) {
	s.t.Helper()
	s.waitUntil("service/"+service, "jsonpath={.status.loadBalancer.ingress[*].ip}="+s.Host.Addr().String())
}

// unpublished waits until a Service has no address.
func (s *space) unpublished(service string) {
	s.t.Helper()
	s.WaitFor(s.t, service+" to give its address back", func(context.Context) (bool, error) {
		out, err := s.kubectlErr("get", "service", service, "-o", "jsonpath={.status.loadBalancer.ingress}")
		if err == nil && out != "" {
			err = fmt.Errorf("it has %s", out)
		}
		return err == nil, err
	})
}

// refuses waits until nobody listens at an address.
func (o outside) refuses(address string) {
	o.s.t.Helper()
	o.s.WaitFor(o.s.t, address+" to be closed", func(ctx context.Context) (bool, error) {
		conn, err := o.DialContext(ctx, "tcp", address)
		if err == nil {
			conn.Close()
		}
		return fails(err, "connection refused")
	})
}

func TestLoadBalancerServiceIsReachedAtTheNodesAddress(t *testing.T) {
	s := newServers(t,
		kube.Service("balanced", kube.For("server"), kube.LoadBalancer, kube.Port(8101, "http"), kube.UDP(8101, "echo")),
		kube.Service("near", kube.For("server"), kube.LoadBalancer, kube.Port(8102, "http"), localOutside),
		kube.Service("another", kube.For("server"), kube.LoadBalancer, anotherBalancer, kube.Port(8106, "http")))
	s.published("balanced")
	s.published("near")
	want(t, "how the address is served", s.get("service/balanced", ".status.loadBalancer.ingress[0].ipMode"), "VIP")
	o := s.outside()
	wantPart(t, "the answer to a neighbour", o.get("http://"+s.nodeAddr("8101")), "server-")
	o.echoes(s.nodeAddr("8101"), "ping")
	wantPart(t, "the answer to a pod", s.fromPod("http://"+s.nodeAddr("8101")), "server-")
	wantPart(t, "the answer on the node", s.fromNode("http://"+s.nodeAddr("8101")), "server-")
	wantPart(t, "the answer on localhost", s.fromNode("http://localhost:8101"), "server-")
	s.echoes("127.0.0.1:8101")
	want(t, "the client's address with policy Local", o.sees(s.nodeAddr("8102")), o.Addr().String())

	want(t, "the addresses of another class's Service", s.get("service/another", ".status.loadBalancer.ingress"), "")
	s.kubectl("patch", "service", "balanced", "--type=merge", "-p", `{"spec":{"type":"ClusterIP"}}`)
	s.unpublished("balanced")
	o.refuses(s.nodeAddr("8101"))
	s.kubectl("scale", "deployment/server", "--replicas=0")
	s.unpublished("near")
	s.kubectl("scale", "deployment/server", "--replicas=1")
	s.published("near")
	wantPart(t, "the answer of the next pod", o.get("http://"+s.nodeAddr("8102")), "server-")
}

func TestLoadBalancerLetsInItsSourceRangesOnly(t *testing.T) {
	s := newServers(t, kube.Service("guarded", kube.For("server"), kube.LoadBalancer, kube.Port(8103, "http"), func(s *corev1.ServiceSpec) {
		s.LoadBalancerSourceRanges = []string{"198.51.100.0/24"}
		s.AllocateLoadBalancerNodePorts = new(false)
	}))
	s.published("guarded")
	want(t, "the port on every address of the node", s.get("service/guarded", ".spec.ports[0].nodePort"), "")
	o := s.outside()
	o.silent(s.nodeAddr("8103"))
	s.kubectl("patch", "service", "guarded", "--type=merge", "-p", `{"spec":{"loadBalancerSourceRanges":["`+o.Addr().String()+`/32"]}}`)
	wantPart(t, "the answer once the neighbour is let in", o.get("http://"+s.nodeAddr("8103")), "server-")
	s.WaitFor(t, "localhost to be kept out", func(ctx context.Context) (bool, error) {
		_, err := s.fetch(ctx, "http://localhost:8103")
		return fails(err, "connection refused")
	})
}

func TestLoadBalancerPortsThatAreTakenAreRefused(t *testing.T) {
	s := newSpace(t)
	testbox := s.folder() + "/testbox"
	harness.CopyFile(t, harness.Testbox(t), s.Host.Path(testbox), 0o755)
	listener := s.Host.Command(t.Context(), testbox, "serve", "--port=8104", "--body=the machine")
	listener.Stdout, listener.Stderr = t.Output(), t.Output()
	if err := listener.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = listener.Process.Kill()
		_ = listener.Wait()
	})
	want(t, "what listens on the machine", s.fromNode("http://"+s.nodeAddr("8104")), "the machine")
	s.create(kube.Pod("server", kube.Serve("the pod")),
		kube.Service("api", kube.For("server"), kube.LoadBalancer, kube.Port(6443, "http")),
		kube.Service("machine", kube.For("server"), kube.LoadBalancer, kube.Port(8104, "http")),
		kube.Service("first", kube.For("server"), kube.LoadBalancer, kube.Port(8105, "http")))
	s.event("api", "PortConflict", "port 6443/TCP belongs to the Kubernetes API")
	s.event("machine", "PortConflict", "port 8104/TCP: something on node node listens there already")
	s.published("first")
	s.create(kube.Service("second", kube.For("server"), kube.LoadBalancer, kube.Port(8105, "http")))
	s.event("second", "PortConflict", "port 8105/TCP: Service "+s.ns+"/first has it on node node")
	want(t, "the answer of the machine", s.fromNode("http://"+s.nodeAddr("8104")), "the machine")
	for _, name := range []string{"api", "machine", "second"} {
		want(t, "the addresses of "+name, s.get("service/"+name, ".status.loadBalancer.ingress"), "")
	}
	s.kubectl("delete", "service", "first")
	s.published("second")
	s.running("server")
	want(t, "the answer of the second Service", s.fromNode("http://"+s.nodeAddr("8105")), "the pod")
}
