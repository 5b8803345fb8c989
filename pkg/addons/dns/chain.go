package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/kubernetes"
	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

// kubernetes makes the plugin through its own parser, the only way to its
// unexported settings.
func (d *DNS) kubernetes() (*kubernetes.Kubernetes, error) {
	stanza := fmt.Sprintf(`kubernetes %s in-addr.arpa ip6.arpa {
		pods %s
		fallthrough in-addr.arpa ip6.arpa
	}`, d.cfg.Domain, d.cfg.Pods)
	ctl := &caddy.Controller{Dispenser: caddyfile.NewDispenser("cluster DNS", strings.NewReader(stanza))}
	ctl.Next()
	k8s, err := kubernetes.ParseStanza(ctl)
	if err != nil {
		return nil, fmt.Errorf("set up cluster DNS for %s: %w", d.cfg.Domain, err)
	}
	return k8s, nil
}

// failures logs what the handlers behind it could not answer: at once when the
// last line was a minute ago, else as a number in the next line.
type failures struct {
	log  *slog.Logger
	next plugin.Handler

	mu         sync.Mutex
	quietUntil time.Time
	unsaid     int
}

func (f *failures) Name() string { return "failures" }

func (f *failures) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	rcode, err := plugin.NextOrFailure(f.Name(), f.next, ctx, w, r)
	if err != nil && !errors.Is(err, context.Canceled) {
		f.tell(request.Request{W: w, Req: r}, err)
	}
	return rcode, err
}

func (f *failures) tell(state request.Request, err error) {
	f.mu.Lock()
	now := time.Now()
	if now.Before(f.quietUntil) {
		f.unsaid++
		f.mu.Unlock()
		return
	}
	unsaid := f.unsaid
	f.quietUntil, f.unsaid = now.Add(time.Minute), 0
	f.mu.Unlock()
	f.log.Warn("DNS look-up failed", "name", state.Name(), "type", state.Type(), "client", state.IP(), "err", err, "unsaid", unsaid)
}

// shuffle hands out a name's addresses in a random order, so that clients which
// take the first are spread over all.
type shuffle struct{ next plugin.Handler }

func (s *shuffle) Name() string { return "shuffle" }

func (s *shuffle) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	return plugin.NextOrFailure(s.Name(), s.next, ctx, shuffler{w}, r)
}

type shuffler struct{ dns.ResponseWriter }

func (s shuffler) WriteMsg(m *dns.Msg) error {
	m.Answer = shuffled(m.Answer)
	return s.ResponseWriter.WriteMsg(m)
}

// shuffled leaves all but addresses where they are: an alias must stay before
// what it stands for. The answer may be the cache's own slice, so it is copied.
func shuffled(answer []dns.RR) []dns.RR {
	var at []int
	for i, rr := range answer {
		if t := rr.Header().Rrtype; t == dns.TypeA || t == dns.TypeAAAA {
			at = append(at, i)
		}
	}
	if len(at) < 2 {
		return answer
	}
	out := append([]dns.RR(nil), answer...)
	rand.Shuffle(len(at), func(i, j int) {
		out[at[i]], out[at[j]] = out[at[j]], out[at[i]]
	})
	return out
}

// reverseGuard answers that an address of the cluster's own networks has no
// name, once nothing before it knew one: no upstream server could know better.
type reverseGuard struct {
	cidrs []netip.Prefix
	next  plugin.Handler
}

func (g *reverseGuard) Name() string { return "reverse" }

func (g *reverseGuard) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	state := request.Request{W: w, Req: r}
	addr, err := netip.ParseAddr(dnsutil.ExtractAddressFromReverse(state.Name()))
	if err != nil || !g.ours(addr) {
		return plugin.NextOrFailure(g.Name(), g.next, ctx, w, r)
	}
	m := new(dns.Msg)
	m.SetRcode(r, dns.RcodeNameError)
	m.Authoritative = true
	return dns.RcodeNameError, w.WriteMsg(m)
}

func (g *reverseGuard) ours(addr netip.Addr) bool {
	for _, p := range g.cidrs {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
