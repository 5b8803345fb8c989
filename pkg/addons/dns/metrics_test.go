package dns

import (
	"context"
	"net"
	"testing"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// remote is a writer that answers nobody.
type remote struct {
	dns.ResponseWriter
	addr net.Addr
}

func (r remote) RemoteAddr() net.Addr    { return r.addr }
func (r remote) WriteMsg(*dns.Msg) error { return nil }

func TestQueriesAreCountedByTheirAnswers(t *testing.T) {
	m := newMetrics()
	reg := prometheus.NewPedanticRegistry()
	forget := m.register(reg)
	another := newMetrics().register(reg) // of another server in the process
	ask := func(addr net.Addr, answer func(dns.ResponseWriter, *dns.Msg) int) {
		h := &measure{told: m, next: plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) { return answer(w, r), nil })}
		r := new(dns.Msg)
		r.SetQuestion("a.example.org.", dns.TypeA)
		if _, err := h.ServeDNS(t.Context(), remote{addr: addr}, r); err != nil {
			t.Fatal(err)
		}
	}
	written := func(rcode int) func(dns.ResponseWriter, *dns.Msg) int {
		return func(w dns.ResponseWriter, r *dns.Msg) int {
			_ = w.WriteMsg(new(dns.Msg).SetRcode(r, rcode))
			return dns.RcodeSuccess
		}
	}
	ask(&net.UDPAddr{}, written(dns.RcodeSuccess))
	ask(&net.TCPAddr{}, written(dns.RcodeNameError))
	// The server writes this one.
	ask(&net.UDPAddr{}, func(dns.ResponseWriter, *dns.Msg) int { return dns.RcodeServerFailure })
	ask(&net.UDPAddr{}, written(4000))
	another()
	all, err := reg.Gather()
	if err != nil || len(all) != 2 || all[1].GetMetric()[0].GetHistogram().GetSampleCount() != 4 {
		t.Fatalf("%v, %v", all, err)
	}
	got := map[string]float64{}
	for _, one := range all[0].GetMetric() {
		name := ""
		for _, l := range one.GetLabel() {
			name += l.GetValue() + " "
		}
		if n := one.GetCounter().GetValue(); n > 0 {
			got[name] = n
		}
	}
	for _, name := range []string{"udp NOERROR ", "tcp NXDOMAIN ", "udp SERVFAIL ", "udp other "} {
		if got[name] != 1 || len(got) != 4 {
			t.Errorf("%s is %v in %v", name, got[name], got)
		}
	}
	forget()
	if all, err := reg.Gather(); err != nil || len(all) != 0 {
		t.Errorf("after the server's end: %v, %v", all, err)
	}
}
