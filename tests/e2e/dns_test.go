package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func sortedFields(text string) string {
	f := strings.Fields(text)
	slices.Sort(f)
	return strings.Join(f, " ")
}

// resolves waits until a look-up from the pod named client has an answer, and
// returns its lines in order.
func (s *space) resolves(name, kind string) string {
	s.t.Helper()
	return s.in("client", "testbox", "lookup", name, kind, "--retry", "30s")
}

// named are a Service, a headless one, an alias, and the pod that the first two
// select.
func named() []runtime.Object {
	web := kube.Service("web", kube.Port(80, 8080), kube.UDP(53, 5353))
	web.Spec.Ports[1].Name = "dns"
	return []runtime.Object{
		web,
		kube.Service("direct", kube.For("web"), kube.Headless, kube.Port(8080, 8080)),
		kube.Service("elsewhere", kube.Alias("www.example.org")),
		kube.Pod("web", kube.Serve(""), kube.Spec(func(p *corev1.PodSpec) { p.Hostname, p.Subdomain = "one", "direct" })),
	}
}

func TestPodsResolveTheNamesOfServices(t *testing.T) {
	s := newSpace(t)
	s.create(named()...)
	s.client()
	pod := s.running("web").Status.PodIP
	service := s.get("service/web", ".spec.clusterIP")
	zone := s.ns + ".svc.cluster.local"

	for _, name := range []string{"web", "web." + s.ns, "web." + s.ns + ".svc", "web." + zone, "web." + zone + "."} {
		want(t, "A of "+name, s.resolves(name, "a"), service)
	}
	want(t, "the addresses of either kind", s.resolves("web."+zone, "host"), service)
	want(t, "SRV of a Service", s.resolves("_http._tcp.web."+zone, "srv"), "0 100 80 web."+zone+".")
	want(t, "SRV of a UDP port", s.resolves("_dns._udp.web."+zone, "srv"), "0 100 53 web."+zone+".")
	want(t, "PTR of a Service", s.resolves(service, "ptr"), "web."+zone+".")

	want(t, "A of a headless Service", s.resolves("direct."+zone, "a"), pod)
	want(t, "A of its pod", s.resolves("one.direct."+zone, "a"), pod)
	want(t, "SRV of a headless Service", s.resolves("_http._tcp.direct."+zone, "srv"), "0 100 8080 one.direct."+zone+".")
	wantPart(t, "PTR of its pod", s.resolves(pod, "ptr"), "one.direct."+zone+".")
	want(t, "A of a pod by its address", s.resolves(strings.ReplaceAll(pod, ".", "-")+"."+s.ns+".pod.cluster.local", "a"), pod)

	want(t, "A of the API", s.resolves("kubernetes.default", "a"), s.Kubectl(t, "get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"))

	s.kubectl("delete", "service", "web")
	s.WaitFor(t, "the name to be gone", func(context.Context) (bool, error) {
		_, err := s.inErr("client", "testbox", "lookup", "web."+zone, "a")
		return fails(err, "no such host")
	})
}

func TestAnswersSayWhetherANameExists(t *testing.T) {
	s := newSpace(t)
	s.create(named()...)
	s.client()
	s.running("web")
	zone := s.ns + ".svc.cluster.local."
	s.resolves("web."+zone, "a")

	for _, c := range []struct {
		name    string
		kind    uint16
		rcode   int
		answers string // the first one, in part
	}{
		{"web." + zone, dns.TypeA, dns.RcodeSuccess, "\tA\t"},
		{"web." + zone, dns.TypeAAAA, dns.RcodeSuccess, ""},
		{"web." + zone, dns.TypeMX, dns.RcodeSuccess, ""},
		{"nobody." + zone, dns.TypeA, dns.RcodeNameError, ""},
		{"nobody." + zone, dns.TypeAAAA, dns.RcodeNameError, ""},
		{"elsewhere." + zone, dns.TypeA, dns.RcodeSuccess, "CNAME\twww.example.org."},
		{"dns-version.cluster.local.", dns.TypeTXT, dns.RcodeSuccess, "1.1.0"},
	} {
		question := new(dns.Msg).SetQuestion(c.name, c.kind)
		answer := s.ask(question)
		what := c.name + " " + dns.TypeToString[c.kind]
		want(t, "the code of "+what, dns.RcodeToString[answer.Rcode], dns.RcodeToString[c.rcode])
		switch {
		case c.answers == "" && len(answer.Answer) > 0:
			t.Errorf("%s has answers: %v", what, answer.Answer)
		case c.answers != "" && len(answer.Answer) == 0:
			t.Errorf("%s has no answer", what)
		case c.answers != "":
			wantPart(t, what, answer.Answer[0].String(), c.answers)
		}
	}
}

// ask puts a question to the cluster's DNS from the node, by TCP.
func (s *space) ask(question *dns.Msg) *dns.Msg {
	s.t.Helper()
	conn, err := s.Host.DialContext(s.t.Context(), "tcp", "10.43.0.10:53")
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	answer, _, err := (&dns.Client{Timeout: 30 * time.Second}).ExchangeWithConn(question, &dns.Conn{Conn: conn})
	if err != nil {
		s.t.Fatal(err)
	}
	return answer
}

func TestPodsHaveTheClustersResolverUnlessTheyChoose(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("usual"), kube.Pod("chooser", kube.Spec(func(p *corev1.PodSpec) {
		p.DNSPolicy = corev1.DNSNone
		p.DNSConfig = &corev1.PodDNSConfig{
			Nameservers: []string{"192.0.2.53"}, Searches: []string{"example.org"},
			Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: new("1")}},
		}
		p.HostAliases = []corev1.HostAlias{{IP: "192.0.2.7", Hostnames: []string{"seven"}}}
	})))
	s.running("usual")
	conf := s.in("usual", "cat", "/etc/resolv.conf")
	wantPart(t, "resolv.conf", conf, "nameserver 10.43.0.10\n")
	wantPart(t, "resolv.conf", conf, "search "+s.ns+".svc.cluster.local svc.cluster.local cluster.local")
	wantPart(t, "resolv.conf", conf, "options ndots:5")

	s.running("chooser")
	want(t, "the chosen resolv.conf", s.in("chooser", "cat", "/etc/resolv.conf"), "search example.org\nnameserver 192.0.2.53\noptions ndots:1")
	want(t, "the alias", s.in("chooser", "testbox", "lookup", "seven"), "192.0.2.7")
}

func TestNamesOfUnreadyPodsAppearWhenTheServiceWantsThem(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("slow", kube.Ready(kube.Exec("false"))),
		kube.Service("early", kube.For("slow"), kube.Headless, func(s *corev1.ServiceSpec) { s.PublishNotReadyAddresses = true }))
	s.client()
	slow := s.pod("slow", "running", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning && p.Status.PodIP != "" })
	want(t, "the address", s.resolves("early."+s.ns+".svc.cluster.local", "a"), slow.Status.PodIP)
}
