// Package peers lets the nodes of a cluster have images from each other: what one
// has pulled, the others need not ask the registry for. Each node serves what its
// containerd keeps, by the pull half of the OCI distribution protocol, to other
// nodes of the cluster alone. Both ends show the certificate that they are a node
// by, over TLS.
//
// Nobody keeps an index of who has what. A node that pulls asks all others at
// once, and takes what it needs from the first that has it. containerd compares
// what comes with the digest that it asked for, whoever it comes from; that a tag
// means this digest is believed.
package peers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/knarr-dev/knarr/pkg/component"
)

// Port is where nodes serve each other. It is the one of k3s' embedded registry,
// so that firewalls need no other rule.
const Port = 5001

const (
	// membersFor is how long a list of nodes counts before it is asked for anew.
	membersFor = 30 * time.Second
	// strangersFor is the same when somebody is not in it.
	strangersFor = time.Second
	// membersTimeout bounds the wait for such a list; after it the last one counts.
	membersTimeout = 2 * time.Second
)

// Node is one of the cluster.
type Node struct {
	Name string
	// Addr is where it serves others. It is not valid while the node is not ready.
	Addr netip.AddrPort
}

// Config is what Peers is told.
type Config struct {
	// Name is this node's own.
	Name string
	// Listen is the address to serve at, such as :5001.
	Listen string
	// Certificate returns what this node shows, as a server and as a client.
	Certificate func() (*tls.Certificate, error)
	// ClientCA returns the file of the authority of nodes' certificates.
	ClientCA func() string
	// Nodes returns all nodes of the cluster.
	Nodes func(context.Context) ([]Node, error)
	// Shared tells whether images of a registry, as images name it, are shared.
	Shared func(registry string) bool
	// Store has this node's images.
	Store Store
	// Needs are the components to start after.
	Needs []string
	// Log defaults to slog.Default.
	Log *slog.Logger
}

// Peers serves this node's images, as a component, and finds those of others.
type Peers struct {
	cfg    Config
	client *http.Transport

	mu      sync.Mutex
	members []Node
	asked   time.Time
}

var _ component.Component = (*Peers)(nil)

// New returns the component; nothing happens until Run.
func New(cfg Config) *Peers {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	p := &Peers{cfg: cfg}
	p.client = &http.Transport{
		DialTLSContext:        p.dial,
		ResponseHeaderTimeout: 10 * time.Second,
		MaxIdleConnsPerHost:   2,
		MaxIdleConns:          64,
		IdleConnTimeout:       30 * time.Second,
		DisableCompression:    true,
	}
	return p
}

// Name implements component.Component.
func (p *Peers) Name() string { return "embedded-registry" }

// Needs implements component.Component.
func (p *Peers) Needs() []string { return p.cfg.Needs }

// Run implements component.Component. It is ready when other nodes are answered.
func (p *Peers) Run(ctx context.Context, ready chan<- struct{}) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", p.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen on %s for nodes that pull images from this one: %w; end the program that holds the port, or leave out --embedded-registry", p.cfg.Listen, err)
	}
	srv := &http.Server{
		Handler:           http.HandlerFunc(p.serve),
		TLSConfig:         p.serverTLS(),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		ErrorLog:          log.New(io.Discard, "", 0), // strangers, and nodes that went away
	}
	close(ready)
	defer p.client.CloseIdleConnections()
	if err := component.ServeHTTP(ctx, srv, func() error { return srv.ServeTLS(l, "", "") }); err != nil {
		return fmt.Errorf("serve images to other nodes on %s: %w", p.cfg.Listen, err)
	}
	return nil
}

// nodes are all of the cluster, as they were no longer ago than age; while the API
// server does not answer, those of before.
func (p *Peers) nodes(ctx context.Context, age time.Duration) []Node {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.asked) < age {
		return p.members
	}
	limited, cancel := context.WithTimeout(ctx, membersTimeout)
	defer cancel()
	now, err := p.cfg.Nodes(limited)
	switch {
	case err == nil:
		p.members = now
	case ctx.Err() != nil:
		return p.members // whoever asked has gone; that says nothing
	default:
		p.cfg.Log.Debug("list nodes to share images with; those of before are asked", "err", err)
	}
	p.asked = time.Now()
	return p.members
}

// member finds a node by its name. One that has just joined is found, too.
func (p *Peers) member(ctx context.Context, name string) (Node, bool) {
	for _, age := range []time.Duration{membersFor, strangersFor} {
		all := p.nodes(ctx, age)
		if i := slices.IndexFunc(all, func(n Node) bool { return n.Name == name }); i >= 0 {
			return all[i], true
		}
	}
	return Node{}, false
}

func (p *Peers) serverTLS() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.cfg.Certificate() },
		ClientAuth:     tls.RequireAnyClientCert,
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := p.verify(s)
			return err
		},
		// A node that is no member any more must not come back by a ticket.
		SessionTicketsDisabled: true,
	}
}

// dial connects to the node whose name is the address' host, and to nobody who
// can't prove to be it.
func (p *Peers) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	name, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n, ok := p.member(ctx, name)
	if !ok || !n.Addr.IsValid() {
		return nil, fmt.Errorf("node %s is not there now", name)
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: askTimeout}, Config: &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		// Nodes are known by their names in the cluster, and show the certificates
		// that they are clients by: what that means is checked below.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			who, err := p.verify(s)
			if err == nil && who != name {
				err = fmt.Errorf("node %s answers at the address of node %s", who, name)
			}
			return err
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return p.cfg.Certificate() },
	}}
	return d.DialContext(ctx, network, n.Addr.String())
}

// verify returns the node that the other end has proven to be.
func (p *Peers) verify(s tls.ConnectionState) (string, error) {
	if len(s.PeerCertificates) == 0 {
		return "", errors.New("the other end shows no certificate")
	}
	pem, err := os.ReadFile(p.cfg.ClientCA())
	if err != nil {
		return "", fmt.Errorf("read the authority of nodes: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	leaf := s.PeerCertificates[0]
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return "", fmt.Errorf("the other end is of another cluster: %w", err)
	}
	name, ok := strings.CutPrefix(leaf.Subject.CommonName, "system:node:")
	if !ok || !slices.Contains(leaf.Subject.Organization, "system:nodes") {
		return "", fmt.Errorf("the other end is %s, which is no node", leaf.Subject.CommonName)
	}
	return name, nil
}
