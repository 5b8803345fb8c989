package proxy

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	v1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestServicesAnswerOnceReady(t *testing.T) {
	lab(t)
	at := pod(t, podIP, "web")
	cidr := &networking.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networking.ServiceCIDRSpec{CIDRs: []string{"10.43.0.0/16"}}}
	start(t, cluster(cidr, endpoint("web", at), service("web", clusterIP, func(s *v1.Service) {
		s.Spec.Type, s.Spec.Ports[0].NodePort = v1.ServiceTypeNodePort, 30080
	})))
	wantAnswer(t, clusterIP+":80", "web")
	wantAnswer(t, nodeIP+":30080", "web")
	rules := nft(t, "list", "table", "ip", "kube-proxy")
	for _, want := range []string{"ip daddr 10.43.0.0/16 drop", "ip saddr != 10.42.0.0/16", "elements = { " + nodeIP + " }"} {
		if !strings.Contains(rules, want) {
			t.Errorf("rules lack %q", want)
		}
	}
	if tables := nft(t, "list", "tables"); strings.Contains(tables, "ip6 kube-proxy") {
		t.Error("there are rules for a family that the cluster does not have")
	}
}

func TestServicesOfAnotherProxyAreLeftAlone(t *testing.T) {
	lab(t)
	start(t, cluster(service("other", clusterIP, func(s *v1.Service) {
		s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
	})))
	if rules := nft(t, "list", "table", "ip", "kube-proxy"); strings.Contains(rules, clusterIP) {
		t.Error("the Service has rules")
	}
}

func TestBothFamiliesAreServedInADualStackCluster(t *testing.T) {
	lab(t)
	p, _ := start(t, cluster(
		service("four", clusterIP), endpoint("four", pod(t, podIP, "four")),
		service("six", "fd43::10"), endpoint("six", pod(t, "fd42::5", "six")),
	), func(c *Config) { c.ClusterCIDRs = append(c.ClusterCIDRs, netip.MustParsePrefix("fd42::/56")) })
	wantAnswer(t, clusterIP+":80", "four")
	wantAnswer(t, "[fd43::10]:80", "six")
	if got := fmt.Sprint(p.Tables()); got != "[ip kube-proxy ip6 kube-proxy]" {
		t.Errorf("Tables: %s", got)
	}
}

func TestServicesAndEndpointsThatComeAndGoAreFollowed(t *testing.T) {
	lab(t)
	client := cluster()
	watching := watched(client)
	start(t, client)
	watching("services")
	watching("endpointslices")
	wait := monitor(t)

	_, err := client.CoreV1().Services("default").Create(t.Context(), service("web", clusterIP), metav1.CreateOptions{})
	check(t, err)
	wait("add element ip kube-proxy no-endpoint-services")
	if _, err := ask(clusterIP + ":80"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a Service without endpoints gives %v, want connection refused", err)
	}

	slice := endpoint("web", pod(t, podIP, "web"))
	_, err = client.DiscoveryV1().EndpointSlices("default").Create(t.Context(), slice, metav1.CreateOptions{})
	check(t, err)
	wait("add element ip kube-proxy service-ips")
	wantAnswer(t, clusterIP+":80", "web")

	check(t, client.DiscoveryV1().EndpointSlices("default").Delete(t.Context(), slice.Name, metav1.DeleteOptions{}))
	wait("delete element ip kube-proxy service-ips")
	check(t, client.CoreV1().Services("default").Delete(t.Context(), "web", metav1.DeleteOptions{}))
	wait("delete element ip kube-proxy cluster-ips")
}

func TestResyncBringsFlushedRulesBack(t *testing.T) {
	lab(t)
	p, stop := start(t, cluster(service("web", clusterIP), endpoint("web", pod(t, podIP, "web"))))
	for _, loss := range []string{"flush ruleset", "delete table ip kube-proxy", "flush chain ip kube-proxy services", "flush map ip kube-proxy service-ips"} {
		nft(t, strings.Fields(loss)...)
		p.Resync(t.Context())
		if got, err := ask(clusterIP + ":80"); got != "web" {
			t.Errorf("after nft %s and Resync the Service gives %q, %v", loss, got, err)
		}
	}
	stop()
	p.Resync(t.Context()) // returns, although nobody is there
}

func TestStopLeavesTheRulesAndNothingElse(t *testing.T) {
	lab(t)
	client := cluster(endpoint("web", pod(t, podIP, "web")), service("web", clusterIP, func(s *v1.Service) {
		s.Spec.Type, s.Spec.Ports[0].NodePort = v1.ServiceTypeLoadBalancer, 30080
		s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = v1.ServiceExternalTrafficPolicyLocal, 30099
		s.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: "203.0.113.1"}}
	}))
	_, stop := start(t, client)
	r, err := http.Get("http://" + nodeIP + ":30099/")
	check(t, err)
	r.Body.Close()
	if r.StatusCode != http.StatusOK {
		t.Errorf("health check of the Service: %s", r.Status)
	}
	http.DefaultClient.CloseIdleConnections()
	stop()

	wantAnswer(t, clusterIP+":80", "web")
	for _, addr := range []string{nodeIP + ":30099", "0.0.0.0:10256"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Errorf("the port is still open: %v", err)
			continue
		}
		l.Close()
	}
	// What was closed last may still be on its way out.
	left := goroutines()
	for range 10000 {
		if left == "" {
			return
		}
		runtime.Gosched()
		left = goroutines()
	}
	t.Errorf("goroutines are left:\n%s", left)
}

// goroutines returns the stacks of those that belong to a proxy.
func goroutines() string {
	all := make([]byte, 1<<20)
	var ours []string
	for stack := range strings.SplitSeq(string(all[:runtime.Stack(all, true)]), "\n\n") {
		for _, sign := range []string{"kubernetes/pkg/proxy", "proxy.(*Proxy)", "proxy.(*family)", "client-go/tools/cache"} {
			if strings.Contains(stack, sign) {
				ours = append(ours, stack)
				break
			}
		}
	}
	return strings.Join(ours, "\n\n")
}

func TestServicesAnswerWithoutAGapWhileTheNextRunTakesOver(t *testing.T) {
	lab(t)
	at := pod(t, podIP, "web")
	_, stop := start(t, cluster(service("web", clusterIP), endpoint("web", at), service("old", "10.43.0.11"), endpoint("old", at)))
	stop()

	var over atomic.Bool
	var asked atomic.Int64
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() {
			for !over.Load() {
				got, err := ask(clusterIP + ":80")
				if got != "web" {
					// While the kernel passes from the old rules to the new, a connection
					// may meet neither, as with every change of a Service; the next one does.
					got, err = ask(clusterIP + ":80")
				}
				if got != "web" {
					t.Errorf("the Service gives %q, %v", got, err)
					return
				}
				asked.Add(1)
			}
		})
	}
	start(t, cluster(service("web", clusterIP), endpoint("web", at))) // old went meanwhile
	over.Store(true)
	clients.Wait()
	t.Logf("%d connections", asked.Load())
	if rules := nft(t, "list", "table", "ip", "kube-proxy"); strings.Contains(rules, "10.43.0.11") {
		t.Error("a Service that went while no proxy ran still has rules")
	}
}

func TestHealthServerTellsWhetherTheNodeMayBeUsed(t *testing.T) {
	lab(t)
	health := func(path string) (int, map[string]any) {
		t.Helper()
		r, err := http.Get("http://" + nodeIP + ":10256" + path)
		check(t, err)
		defer r.Body.Close()
		var body map[string]any
		check(t, json.NewDecoder(r.Body).Decode(&body))
		return r.StatusCode, body
	}
	_, stop := start(t, cluster())
	if code, body := health("/healthz"); code != http.StatusOK || body["nodeEligible"] != true {
		t.Errorf("/healthz: %d %v", code, body)
	}
	if _, err := net.Dial("tcp", "127.0.0.1:10249"); err == nil {
		t.Error("metrics are served although nobody asked for them")
	}
	stop()

	leaving := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: v1.NodeSpec{Taints: []v1.Taint{{Key: "ToBeDeletedByClusterAutoscaler"}}}}
	start(t, fake.NewClientset(leaving))
	if code, body := health("/healthz"); code != http.StatusServiceUnavailable || body["nodeEligible"] != false {
		t.Errorf("/healthz of a node that shall go: %d %v", code, body)
	}
	if code, body := health("/livez"); code != http.StatusOK || body["healthy"] != true {
		t.Errorf("/livez of a node that shall go: %d %v", code, body)
	}
}

func TestMetricsAreServedWhereAsked(t *testing.T) {
	lab(t)
	start(t, cluster(), func(c *Config) { c.Args = []string{"metrics-bind-address=127.0.0.1:10249"} })
	r, err := http.Get("http://127.0.0.1:10249/metrics")
	check(t, err)
	r.Body.Close()
	if r.StatusCode != http.StatusOK {
		t.Error(r.Status)
	}
}

func TestATakenHealthPortDoesNotStopServices(t *testing.T) {
	lab(t)
	l, err := net.Listen("tcp", "0.0.0.0:10256")
	check(t, err)
	defer l.Close()
	start(t, cluster(service("web", clusterIP), endpoint("web", pod(t, podIP, "web"))))
	wantAnswer(t, clusterIP+":80", "web")
}

func TestNodeAddressIsAwaitedWhenNotGiven(t *testing.T) {
	lab(t)
	client := cluster()
	watching := watched(client)
	go func() {
		watching("nodes")
		n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: v1.NodeStatus{Addresses: []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: nodeIP}}}}
		_, _ = client.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{})
	}()
	start(t, client, func(c *Config) { c.NodeIPs = nil })
	if rules := nft(t, "list", "set", "ip", "kube-proxy", "nodeport-ips"); !strings.Contains(rules, nodeIP) {
		t.Errorf("NodePorts are served on:\n%s", rules)
	}
}
