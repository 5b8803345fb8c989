package dns

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
)

var anyPort = netip.MustParseAddrPort("127.0.0.1:0")

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func service(name, ip string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, Ports: ports},
	}
}

func externalName(name, target string) *corev1.Service {
	s := service(name, "")
	s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: target}
	return s
}

// workload is a cluster with a Service of each kind.
func workload() []runtime.Object {
	http := corev1.ServicePort{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}
	pg := corev1.ServicePort{Name: "pg", Protocol: corev1.ProtocolTCP, Port: 5432}
	return []runtime.Object{
		namespace("default"), namespace("kube-system"),
		service("web", "10.43.0.20", http), service("web6", "fd00:43::20", http),
		service("db", corev1.ClusterIPNone, pg),
		externalName("outside", "www.example.test"), externalName("inside", "web.default.svc.cluster.local"),
		&discoveryv1.EndpointSlice{
			TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "db-1", Labels: map[string]string{discoveryv1.LabelServiceName: "db"}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("pg"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To[int32](5432)}},
			Endpoints: []discoveryv1.Endpoint{
				{Addresses: []string{"10.42.0.5"}, Hostname: ptr.To("db-0")},
				{Addresses: []string{"10.42.0.6"}, Hostname: ptr.To("db-1")},
				{Addresses: []string{"10.42.0.7"}, Hostname: ptr.To("db-2"), Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}},
			},
		},
		&corev1.Pod{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db-0"},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.42.0.5"},
		},
	}
}

// upstream is a name server outside the cluster that knows www.example.test.
type upstream struct {
	addr  netip.AddrPort
	asked atomic.Int32
}

func newUpstream(t *testing.T) *upstream {
	s, err := Listen(t.Context(), anyPort)
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: s.Addr()}
	udp, tcp, err := s.Serve()
	if err != nil {
		t.Fatal(err)
	}
	for _, srv := range []*dns.Server{{PacketConn: udp, Handler: u}, {Listener: tcp, Handler: u}} {
		go srv.ActivateAndServe()
	}
	t.Cleanup(func() {
		udp.Close()
		tcp.Close()
		s.Close()
	})
	return u
}

func (u *upstream) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	u.asked.Add(1)
	m := new(dns.Msg)
	m.SetRcode(r, dns.RcodeNameError)
	if q := r.Question[0]; q.Name == "www.example.test." && q.Qtype == dns.TypeA {
		m.SetReply(r)
		rr, _ := dns.NewRR("www.example.test. 300 IN A 192.0.2.1")
		m.Answer = []dns.RR{rr}
	}
	w.WriteMsg(m)
}

// start runs a name server until the test ends, or until stop is called.
func start(t *testing.T, cfg Config) (ready <-chan struct{}, stop func()) {
	t.Helper()
	cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done, isReady := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		if err := d.Run(ctx, isReady); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return isReady, stop
}

func listen(t *testing.T) *Sockets {
	t.Helper()
	s, err := Listen(t.Context(), anyPort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func question(name string, kind uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(name, kind)
}

func ask(t *testing.T, network string, at netip.AddrPort, name string, kind uint16) *dns.Msg {
	t.Helper()
	m, _, err := (&dns.Client{Net: network}).Exchange(question(name, kind), at.String())
	if err != nil {
		t.Fatalf("ask for %s %s: %v", name, dns.TypeToString[kind], err)
	}
	return m
}

// told gives what records say, sorted, without names and times.
func told(rrs []dns.RR) string {
	var out []string
	for _, rr := range rrs {
		f := strings.Fields(rr.String())
		out = append(out, strings.Join(f[3:], " "))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func TestNamesOfTheClusterAreAnswered(t *testing.T) {
	up, sockets := newUpstream(t), listen(t)
	ready, _ := start(t, Config{
		REST: newAPIServer(t, workload()...).rest, Sockets: sockets, Upstreams: []netip.AddrPort{up.addr},
		CIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")},
	})
	<-ready
	for _, c := range []struct {
		what, name string
		kind       uint16
		rcode      int
		want       string
	}{
		{"address of a Service", "web.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, "A 10.43.0.20"},
		{"letters of any case", "WEB.Default.svc.Cluster.Local.", dns.TypeA, dns.RcodeSuccess, "A 10.43.0.20"},
		{"IPv6 address of a Service", "web6.default.svc.cluster.local.", dns.TypeAAAA, dns.RcodeSuccess, "AAAA fd00:43::20"},
		{"no IPv6 address", "web.default.svc.cluster.local.", dns.TypeAAAA, dns.RcodeSuccess, ""},
		{"port of a Service", "_http._tcp.web.default.svc.cluster.local.", dns.TypeSRV, dns.RcodeSuccess, "SRV 0 100 80 web.default.svc.cluster.local."},
		{"ports of a headless Service", "_pg._tcp.db.default.svc.cluster.local.", dns.TypeSRV, dns.RcodeSuccess,
			"SRV 0 50 5432 db-0.db.default.svc.cluster.local., SRV 0 50 5432 db-1.db.default.svc.cluster.local."},
		{"ready endpoints of a headless Service", "db.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, "A 10.42.0.5, A 10.42.0.6"},
		{"one endpoint", "db-1.db.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, "A 10.42.0.6"},
		{"name of a Service's address", "20.0.43.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, "PTR web.default.svc.cluster.local."},
		{"name of an endpoint's address", "5.0.42.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, "PTR db-0.db.default.svc.cluster.local."},
		{"alias of a name outside", "outside.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, "A 192.0.2.1, CNAME www.example.test."},
		{"alias of a name inside", "inside.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, "A 10.43.0.20, CNAME web.default.svc.cluster.local."},
		{"pod by its address", "10-42-0-9.default.pod.cluster.local.", dns.TypeA, dns.RcodeSuccess, "A 10.42.0.9"},
		{"no such Service", "nothing.default.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, ""},
		{"no such namespace", "web.nowhere.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, ""},
		{"a namespace", "default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, ""},
		{"version of the schema", "dns-version.cluster.local.", dns.TypeTXT, dns.RcodeSuccess, `TXT "1.1.0"`},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(c.what+" over "+network, func(t *testing.T) {
				m := ask(t, network, sockets.Addr(), c.name, c.kind)
				if m.Rcode != c.rcode || told(m.Answer) != c.want {
					t.Errorf("%s %q, want %s %q", dns.RcodeToString[m.Rcode], told(m.Answer), dns.RcodeToString[c.rcode], c.want)
				}
			})
		}
	}
}

func TestReverseLookupsOfTheClustersNetworksStayHere(t *testing.T) {
	up, sockets := newUpstream(t), listen(t)
	ready, _ := start(t, Config{
		REST: newAPIServer(t).rest, Sockets: sockets, Upstreams: []netip.AddrPort{up.addr},
		CIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
	})
	<-ready
	if m := ask(t, "udp", sockets.Addr(), "200.0.42.10.in-addr.arpa.", dns.TypePTR); m.Rcode != dns.RcodeNameError || up.asked.Load() != 0 {
		t.Errorf("%s, %d queries forwarded", dns.RcodeToString[m.Rcode], up.asked.Load())
	}
	if ask(t, "udp", sockets.Addr(), "1.2.0.192.in-addr.arpa.", dns.TypePTR); up.asked.Load() != 1 {
		t.Errorf("a foreign address was not asked for outside")
	}
}

func TestNewServiceIsNotHiddenByAnEarlierAnswer(t *testing.T) {
	api, sockets := newAPIServer(t, workload()...), listen(t)
	ready, _ := start(t, Config{REST: api.rest, Sockets: sockets, Upstreams: []netip.AddrPort{newUpstream(t).addr}})
	<-ready
	const name = "late.default.svc.cluster.local."
	if m := ask(t, "udp", sockets.Addr(), name, dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Fatalf("%s before the Service exists", dns.RcodeToString[m.Rcode])
	}
	api.add(service("late", "10.43.0.77", corev1.ServicePort{Port: 80}))
	for ask(t, "udp", sockets.Addr(), name, dns.TypeA).Rcode != dns.RcodeSuccess {
		if t.Context().Err() != nil {
			t.Fatal("never answered")
		}
	}
}

func TestVerifiedPodsOnlyHaveNames(t *testing.T) {
	sockets := listen(t)
	ready, _ := start(t, Config{REST: newAPIServer(t, workload()...).rest, Sockets: sockets, Pods: PodsVerified, Upstreams: []netip.AddrPort{newUpstream(t).addr}})
	<-ready
	if m := ask(t, "udp", sockets.Addr(), "10-42-0-5.default.pod.cluster.local.", dns.TypeA); told(m.Answer) != "A 10.42.0.5" {
		t.Errorf("a pod's name: %q", told(m.Answer))
	}
	if m := ask(t, "udp", sockets.Addr(), "10-42-0-9.default.pod.cluster.local.", dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Errorf("the name of no pod: %s", dns.RcodeToString[m.Rcode])
	}
}

func TestOtherNamesAreForwardedAndRemembered(t *testing.T) {
	up, sockets := newUpstream(t), listen(t)
	ready, _ := start(t, Config{REST: newAPIServer(t).rest, Sockets: sockets, Upstreams: []netip.AddrPort{up.addr}})
	<-ready
	for range 3 {
		if m := ask(t, "udp", sockets.Addr(), "www.example.test.", dns.TypeA); told(m.Answer) != "A 192.0.2.1" {
			t.Fatalf("answer %q", told(m.Answer))
		}
	}
	if n := up.asked.Load(); n != 1 {
		t.Errorf("forwarded %d times", n)
	}
}

func TestDeadUpstreamIsPassedOver(t *testing.T) {
	gone, err := Listen(t.Context(), anyPort)
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	up, sockets := newUpstream(t), listen(t)
	ready, _ := start(t, Config{REST: newAPIServer(t).rest, Sockets: sockets, Upstreams: []netip.AddrPort{gone.Addr(), up.addr}})
	<-ready
	if m := ask(t, "udp", sockets.Addr(), "www.example.test.", dns.TypeA); told(m.Answer) != "A 192.0.2.1" {
		t.Errorf("answer %q", told(m.Answer))
	}
}

func TestWithoutUpstreamOtherNamesFailAtOnce(t *testing.T) {
	sockets := listen(t)
	ready, _ := start(t, Config{REST: newAPIServer(t).rest, Sockets: sockets, ResolvConf: t.TempDir() + "/none"})
	<-ready
	if m := ask(t, "udp", sockets.Addr(), "www.example.test.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("%s", dns.RcodeToString[m.Rcode])
	}
}

func TestOtherNamesAreAnsweredBeforeTheAPIServer(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the server's patience to end")
	}
	up, sockets := newUpstream(t), listen(t)
	start(t, Config{REST: newAPIServer(t).rest, APIReady: make(chan struct{}), Sockets: sockets, Upstreams: []netip.AddrPort{up.addr}})
	conn, err := net.Dial("udp", sockets.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	send(t, &dns.Conn{Conn: conn}, "www.example.test.")
	if m := receive(t, &dns.Conn{Conn: conn}); told(m.Answer) != "A 192.0.2.1" {
		t.Errorf("answer %q", told(m.Answer))
	}
	if m := ask(t, "udp", sockets.Addr(), "web.default.svc.cluster.local.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("a name of the unknown cluster: %s", dns.RcodeToString[m.Rcode])
	}
}

func send(t *testing.T, c *dns.Conn, name string) {
	t.Helper()
	if err := c.WriteMsg(question(name, dns.TypeA)); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c *dns.Conn) *dns.Msg {
	t.Helper()
	m, err := c.ReadMsg()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// The life of the sockets: queries come before any server has run, and between
// two servers that hand them on. None is lost.
func TestQueriesWaitForASuccessor(t *testing.T) {
	api := newAPIServer(t, workload()...)
	first, err := Listen(t.Context(), anyPort)
	if err != nil {
		t.Fatal(err)
	}
	addr := first.Addr()
	dial := func(network string) *dns.Conn {
		c, err := net.Dial(network, addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return &dns.Conn{Conn: c}
	}
	const name = "web.default.svc.cluster.local."
	asks := func() []*dns.Conn {
		conns := []*dns.Conn{dial("udp"), dial("tcp")}
		for range 100 {
			conns = append(conns, dial("udp"))
		}
		for _, c := range conns {
			send(t, c, name)
		}
		return conns
	}
	answered := func(when string, conns []*dns.Conn) {
		t.Helper()
		for _, c := range conns {
			if m := receive(t, c); told(m.Answer) != "A 10.43.0.20" {
				t.Fatalf("%s: answer %q over %s", when, told(m.Answer), c.LocalAddr().Network())
			}
		}
	}

	early := asks()
	_, stop := start(t, Config{REST: api.rest, Sockets: first, Upstreams: []netip.AddrPort{addr}})
	answered("before the first server", early)
	stop()

	between := asks()
	files, err := first.Files()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := FromFiles(files...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { second.Close() })
	if second.Addr() != addr {
		t.Fatalf("the sockets moved from %s to %s", addr, second.Addr())
	}
	start(t, Config{REST: api.rest, Sockets: second, Upstreams: []netip.AddrPort{addr}})
	answered("between two servers", between)
}

func TestReadyWaitsForTheFirstLists(t *testing.T) {
	api, sockets := newAPIServer(t, workload()...), listen(t)
	open := make(chan struct{})
	ready, _ := start(t, Config{REST: api.rest, APIReady: open, Sockets: sockets, Upstreams: []netip.AddrPort{sockets.Addr()}})
	select {
	case <-ready:
		t.Fatal("ready before the API server is")
	default:
	}
	close(open)
	<-ready
	if m := ask(t, "udp", sockets.Addr(), "web.default.svc.cluster.local.", dns.TypeA); told(m.Answer) != "A 10.43.0.20" {
		t.Errorf("answer %q", told(m.Answer))
	}
}

func TestUserMayReadWhatIsReadAndNoMore(t *testing.T) {
	for _, pods := range []PodRecords{PodsInsecure, PodsVerified} {
		api, sockets := newAPIServer(t, workload()...), listen(t)
		cfg := Config{REST: api.rest, Sockets: sockets, Pods: pods, ClusterIP: netip.MustParseAddr("10.43.0.10"), Upstreams: []netip.AddrPort{sockets.Addr()}}
		ready, stop := start(t, cfg)
		<-ready
		<-api.askedFor("watch configmaps.") // comes last
		stop()
		read := map[string]bool{}
		for what := range api.asked {
			_, resource, _ := strings.Cut(what, " ")
			read[resource] = true
		}
		allowed := map[string]bool{}
		for _, o := range Objects(cfg) {
			role, ok := o.(*rbacv1.ClusterRole)
			if !ok {
				continue
			}
			for _, rule := range role.Rules {
				for _, r := range rule.Resources {
					allowed[r+"."+rule.APIGroups[0]] = true
				}
			}
		}
		if len(read) == 0 || len(read) != len(allowed) {
			t.Errorf("pods %s: reads %v, may read %v", pods, read, allowed)
		}
		for r := range read {
			if !allowed[r] {
				t.Errorf("pods %s: reads %s without leave", pods, r)
			}
		}
	}
}

func TestMalformedSettingsAreRefused(t *testing.T) {
	sockets := listen(t)
	rest := newAPIServer(t).rest
	for _, cfg := range []Config{
		{Sockets: sockets},
		{REST: rest},
		{REST: rest, Sockets: sockets, Domain: "a b {"},
		{REST: rest, Sockets: sockets, Pods: "some"},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}
