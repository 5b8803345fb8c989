package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

const (
	corednsInHost = "/opt/coredns"
	corednsPort   = "1053"
	clusterDNS    = "10.43.0.10:53"
	dnsName       = "kubernetes.default.svc.cluster.local."

	// dnsClients each ask one question at a time.
	dnsClients = 16
	dnsWarm    = 2 * time.Second
	dnsTime    = 10 * time.Second
	dnsTimeout = 2 * time.Second
)

// corefile is what Kubernetes' own installations of CoreDNS have for the cluster's
// names, with the API of the node beside which it runs.
const corefile = `.:` + corednsPort + ` {
    errors
    bind 127.0.0.1
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig /etc/knarr/kubeconfig.yaml
        pods insecure
        ttl 30
    }
    cache 30
    loadbalance
}
`

type server struct{ system, addr string }

// dns measures the cluster DNS of a node and the program coredns beside it, with
// the same objects, on the same machine, one after the other.
func (b *bench) dns(ctx context.Context, n *node) (err error) {
	if _, err := n.timeStart(ctx); err != nil {
		return err
	}
	if err := n.rest(ctx, calmTime); err != nil {
		return err
	}
	program, err := os.ReadFile(b.coredns.file)
	if err != nil {
		return err
	}
	if err := writeFile(n.host, corednsInHost, program, 0o755); err != nil {
		return err
	}
	if err := writeFile(n.host, corednsInHost+".conf", []byte(corefile), 0o644); err != nil {
		return err
	}
	cmd := n.host.Command(ctx, corednsInHost, "-conf", corednsInHost+".conf")
	cmd.Stdout, cmd.Stderr = n.log, n.log
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, endProgram(cmd.Process, cmd.Wait)) }()
	ours, theirs := server{knarrName, clusterDNS}, server{peerName, "127.0.0.1:" + corednsPort}
	// Who is first finds another machine than who is last.
	for _, s := range []server{ours, theirs, theirs, ours} {
		took, err := n.query(ctx, s.addr)
		if err != nil {
			return fmt.Errorf("ask %s: %w", s.addr, err)
		}
		slices.Sort(took)
		at := func(share float64) float64 {
			return took[min(len(took)-1, int(share*float64(len(took))))].Seconds() * 1000
		}
		r := b.results.of(s.system)
		r.add("dns.rate", float64(len(took))/dnsTime.Seconds())
		r.add("dns.p50", at(0.5))
		r.add("dns.p99", at(0.99))
		b.say("  DNS of %s: %.0f queries/s, p50 %.3f ms, p99 %.3f ms", s.system, float64(len(took))/dnsTime.Seconds(), at(0.5), at(0.99))
	}
	return nil
}

// query asks a server as fast as it answers, and returns how long each answer
// took.
func (n *node) query(ctx context.Context, addr string) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, phaseTime)
	defer cancel()
	// Until it knows the cluster, it answers with errors.
	err := try(ctx, func() (bool, error) {
		c, err := n.host.DialContext(ctx, "udp", addr)
		if err != nil {
			return false, err
		}
		defer c.Close()
		err = exchange(c)
		return err == nil, err
	})
	if err != nil {
		return nil, err
	}
	var (
		all     = make([][]time.Duration, dnsClients)
		errs    = make([]error, dnsClients)
		clients sync.WaitGroup
		from    = time.Now().Add(dnsWarm)
	)
	for i := range dnsClients {
		clients.Go(func() { all[i], errs[i] = n.resolve(ctx, addr, from, from.Add(dnsTime)) })
	}
	clients.Wait()
	took := slices.Concat(all...)
	if len(took) == 0 {
		return nil, errors.Join(append(errs, errors.New("there was no answer"))...)
	}
	return took, errors.Join(errs...)
}

// resolve is one client; only what it asks between two times counts.
func (n *node) resolve(ctx context.Context, addr string, from, to time.Time) ([]time.Duration, error) {
	c, err := n.host.DialContext(ctx, "udp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var took []time.Duration
	for {
		begin := time.Now()
		if begin.After(to) {
			return took, nil
		}
		if err := exchange(c); err != nil {
			return took, err
		}
		if begin.After(from) {
			took = append(took, time.Since(begin))
		}
	}
}

// exchange asks for the address of dnsName.
func exchange(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(dnsTimeout)); err != nil {
		return err
	}
	conn := &dns.Conn{Conn: c, UDPSize: dns.DefaultMsgSize}
	q := new(dns.Msg).SetQuestion(dnsName, dns.TypeA)
	if err := conn.WriteMsg(q); err != nil {
		return err
	}
	a, err := conn.ReadMsg()
	if err != nil {
		return err
	}
	if a.Id != q.Id || a.Rcode != dns.RcodeSuccess || len(a.Answer) != 1 {
		return fmt.Errorf("the answer is %s with %d records", dns.RcodeToString[a.Rcode], len(a.Answer))
	}
	return nil
}

// endProgram ends a program that serves.
func endProgram(p *os.Process, wait func() error) error {
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	_ = wait() // ended as asked
	return nil
}
