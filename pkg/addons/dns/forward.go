package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

const (
	// answerWithin bounds one upstream server's answer.
	answerWithin = 2 * time.Second
	// forwardWithin bounds the whole search, below the five seconds after which
	// clients give up.
	forwardWithin = 4500 * time.Millisecond
	// inFlight bounds the queries forwarded at a time, also when a server
	// upstream forwards them back to us.
	inFlight = 1000
)

var errNoUpstream = errors.New("no name server for names outside the cluster: name one in resolv.conf, or in the file given by --resolv-conf")

// forwarder asks the upstream servers, in the order of resolv.conf but the one
// that answered last first.
//
// CoreDNS' own forward plugin keeps a ticking goroutine for each server and
// probes dead ones twice a second; here nothing runs between queries.
type forwarder struct {
	servers func() []netip.AddrPort
	good    atomic.Pointer[netip.AddrPort] // answered last
	slots   chan struct{}

	life context.Context
	stop context.CancelFunc // abandons what is under way, unanswered
}

func newForwarder(servers func() []netip.AddrPort) *forwarder {
	life, stop := context.WithCancel(context.Background())
	return &forwarder{servers: servers, slots: make(chan struct{}, inFlight), life: life, stop: stop}
}

func (f *forwarder) Name() string { return "forward" }

func (f *forwarder) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return dns.RcodeServerFailure, fmt.Errorf("%d queries are waiting for upstream name servers already", inFlight)
	}
	state := request.Request{W: w, Req: r}
	answer, err := f.ask(state)
	if f.life.Err() != nil && answer == nil {
		// No answer at all: the client asks again, and its query waits in the
		// socket for whoever serves next.
		return dns.RcodeSuccess, nil
	}
	if err != nil {
		return dns.RcodeServerFailure, err
	}
	return dns.RcodeSuccess, w.WriteMsg(answer)
}

// ask tries each server up to twice. An answer that a server can't or won't
// help is given only when no other server does better.
func (f *forwarder) ask(state request.Request) (*dns.Msg, error) {
	servers := f.order()
	if len(servers) == 0 {
		return nil, errNoUpstream
	}
	ctx, cancel := context.WithTimeout(f.life, forwardWithin)
	defer cancel()
	var refusal *dns.Msg
	var failure error
	for range 2 {
		for _, s := range servers {
			answer, err := exchange(ctx, state, s)
			switch {
			case ctx.Err() != nil && err != nil:
				return refusal, firstError(refusal, fmt.Errorf("ask name server %s: %w", s, err))
			case err != nil:
				failure = fmt.Errorf("ask name server %s: %w", s, err)
			case answer.Rcode == dns.RcodeServerFailure || answer.Rcode == dns.RcodeRefused:
				refusal = answer
			default:
				f.good.Store(&s)
				return answer, nil
			}
		}
		if refusal != nil {
			return refusal, nil
		}
	}
	return nil, failure
}

// firstError is err unless there is an answer in its stead.
func firstError(instead *dns.Msg, err error) error {
	if instead != nil {
		return nil
	}
	return err
}

func (f *forwarder) order() []netip.AddrPort {
	servers := f.servers()
	good := f.good.Load()
	if good == nil || len(servers) < 2 || servers[0] == *good {
		return servers
	}
	for i, s := range servers {
		if s == *good {
			first := append([]netip.AddrPort{s}, servers[:i]...)
			return append(first, servers[i+1:]...)
		}
	}
	return servers
}

// exchange asks one server over the transport that the client used. The
// question gets a number of its own, which a stranger would have to guess.
func exchange(ctx context.Context, state request.Request, server netip.AddrPort) (*dns.Msg, error) {
	client := &dns.Client{Net: state.Proto(), Timeout: answerWithin, UDPSize: 4096}
	conn, err := client.DialContext(ctx, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	question := state.Req.Copy()
	question.Id = dns.Id()
	answer, _, err := client.ExchangeWithConnContext(ctx, question, conn)
	if err != nil {
		return nil, err
	}
	if !state.Match(answer) {
		return nil, errors.New("the answer is for another question")
	}
	answer.Id = state.Req.Id
	return answer, nil
}
