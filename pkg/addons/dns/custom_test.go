package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// await asks until the answer is as wanted.
func await(t *testing.T, at netip.AddrPort, name, what string, wanted func(*dns.Msg) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		m, _, err := (&dns.Client{}).ExchangeContext(ctx, question(name, dns.TypeA), at.String())
		if err == nil && wanted(m) {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s is never answered with %s: %v, %v", name, what, m, err)
		}
	}
}

func hasAddress(addr string) func(*dns.Msg) bool {
	return func(m *dns.Msg) bool {
		if len(m.Answer) != 1 {
			return false
		}
		a, ok := m.Answer[0].(*dns.A)
		return ok && a.A.String() == addr
	}
}

func customMap(pairs ...string) *corev1.ConfigMap {
	m := &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: CustomName},
		Data:       map[string]string{},
	}
	for i := 0; i < len(pairs); i += 2 {
		m.Data[pairs[i]] = pairs[i+1]
	}
	return m
}

func TestTheUsersConfigurationIsFollowed(t *testing.T) {
	general, special := newUpstream(t), newUpstream(t)
	api := newAPIServer(t, workload()...)
	sockets := listen(t)
	ready, _ := start(t, Config{REST: api.rest, ClusterIP: netip.MustParseAddr("10.43.0.10"), Upstreams: []netip.AddrPort{general.addr}, Sockets: sockets})
	<-ready
	at := sockets.Addr()
	await(t, at, "www.example.test.", "the address that upstream knows", hasAddress("192.0.2.1"))

	hosts := "hosts {\n  192.0.2.9 own.corp.test\n  fallthrough\n}\n"
	api.add(customMap("names.override", hosts,
		"zone.server", fmt.Sprintf("example.test:53 {\n    errors\n    forward . %s\n}\n", special.addr)))
	await(t, at, "own.corp.test.", "the address of the override", hasAddress("192.0.2.9"))
	before := general.asked.Load()
	await(t, at, "www.example.test.", "what the zone's server knows", hasAddress("192.0.2.1"))
	if special.asked.Load() == 0 || general.asked.Load() != before {
		t.Errorf("the zone's own name server was asked %d times, the other one %d", special.asked.Load(), general.asked.Load()-before)
	}
	await(t, at, "web.default.svc.cluster.local.", "a Service's address", hasAddress("10.43.0.20"))

	api.add(customMap("names.override", strings.Replace(hosts, "192.0.2.9", "192.0.2.10", 1)))
	await(t, at, "own.corp.test.", "the changed address", hasAddress("192.0.2.10"))
}

func TestMistakesInTheUsersConfigurationAreToldByKey(t *testing.T) {
	api := newAPIServer(t)
	d, err := New(Config{REST: api.rest, ClusterIP: netip.MustParseAddr("10.43.0.10"), Sockets: listen(t), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := api.rest()
	if err != nil {
		t.Fatal(err)
	}
	cl, err := newCluster(conn, false)
	if err != nil {
		t.Fatal(err)
	}
	fw := newForwarder(d.upstreams())
	defer fw.stop()
	for _, c := range []struct{ key, text, want string }{
		{"a.override", "log\nfrobnicate\n", "key a.override:2 - Error during parsing: Unknown directive 'frobnicate'"},
		{"a.server", "example.test {\n  frobnicate\n}\n", "key a.server:2"},
		{"a.override", "etcd\n", "the plugin etcd is not in this CoreDNS"},
		{"a.override", "forward corp.test\n", "Wrong argument count"},
		{"a.override", "forward corp.test tls://192.0.2.1\n", "only plain DNS is forwarded"},
		{"a.server", "example.test:5353 {\n  whoami\n}\n", "only DNS at port 53 is"},
		{"a.server", ".:53 {\n  whoami\n}\n", "zone . has a server already"},
		{"a.override", "rewrite stop {\n  name regex ( x\n}\n", "rewrite"},
		{"README", "not a configuration {", ""},
		{"a.override", "errors\nhealth\nreload\nprometheus :9153\nloop\n", ""},
	} {
		_, err := d.server(cl, fw, custom{c.key: c.text})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s %q: %v; want %q", c.key, c.text, err, c.want)
		}
	}
}

func TestStaleAnswersAreGivenWhileUpstreamIsGone(t *testing.T) {
	s, err := Listen(t.Context(), anyPort)
	if err != nil {
		t.Fatal(err)
	}
	udp, tcp, err := s.Serve()
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	up := &dns.Server{PacketConn: udp, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		rr, err := dns.NewRR(r.Question[0].Name + " 1 IN A 192.0.2.1")
		if err != nil {
			t.Error(err)
		}
		m.Answer = []dns.RR{rr}
		_ = w.WriteMsg(m) // the client is told otherwise
	})}
	go func() { _ = up.ActivateAndServe() }()
	api, sockets := newAPIServer(t, workload()...), listen(t)
	ready, _ := start(t, Config{REST: api.rest, ClusterIP: netip.MustParseAddr("10.43.0.10"), Upstreams: []netip.AddrPort{s.Addr()}, Sockets: sockets})
	<-ready
	await(t, sockets.Addr(), "www.example.test.", "the address", hasAddress("192.0.2.1"))
	udp.Close()
	s.Close()
	// The answer is good for five seconds, the least that the cache keeps one.
	await(t, sockets.Addr(), "www.example.test.", "the old address", func(m *dns.Msg) bool {
		if !hasAddress("192.0.2.1")(m) {
			t.Errorf("the answer is lost: %v", m)
		}
		return len(m.Answer) == 1 && m.Answer[0].Header().Ttl == 30
	})
}
