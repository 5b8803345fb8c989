package cluster

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"

	"github.com/knarr-dev/knarr/pkg/part"
	"github.com/knarr-dev/knarr/pkg/pki"
)

// Bounds of the waits between two looks at the certificates. The longest is for
// a clock that was set meanwhile, which no timer notices.
const (
	renewalShortest = time.Second
	renewalLongest  = time.Hour
	// renewalRetry is the wait after a failure, as of a full disk.
	renewalRetry = 10 * time.Second
)

// certificates keeps the cluster's certificates and renews its leaves while
// everything runs. What upstream reads by path it reads again by itself; clients
// of this process are given a transport that lets go of the old certificate.
type certificates struct {
	cfg  pki.Config
	host string
	log  *slog.Logger
	asks chan ask

	mu         sync.Mutex
	pki        *pki.PKI
	renewed    chan struct{} // closed when pki is replaced
	transports map[pki.Client]*pki.Transport
	kubelet    []*x509.Certificate // present and past, not expired
}

func newCertificates(cfg Config) *certificates {
	c := cfg.Config
	life := c.LeafLifetime
	if life == 0 {
		life = pki.LeafLifetime
	}
	// Upstream's client of kubelets looks at its file this often, for the whole
	// process.
	if often := life / 12; often < transport.CertCallbackRefreshDuration {
		transport.CertCallbackRefreshDuration = often
	}
	return &certificates{
		cfg: pki.Config{
			Dir:           filepath.Join(c.ServerDir(), "tls"),
			NodeName:      c.Node.Name,
			NodeIPs:       append(slices.Concat(c.Node.IPs, c.Node.ExternalIPs), c.API.AdvertiseAddress),
			Names:         c.API.TLSSANs,
			ServiceIP:     c.APIServiceIP(),
			ClusterDomain: c.Network.ClusterDomain,
			LeafLifetime:  life,
		},
		log:        cfg.Log,
		asks:       make(chan ask),
		renewed:    make(chan struct{}),
		transports: map[pki.Client]*pki.Transport{},
	}
}

// ensure makes or renews what has to be, or all leaves, and puts it to use.
func (c *certificates) ensure(all bool) error {
	cfg := c.cfg
	cfg.RenewAll = all
	p, err := pki.Ensure(cfg)
	if err != nil {
		return err
	}
	for _, change := range p.Changes {
		c.log.Debug("certificate", "change", change)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	own := p.Kubelet.TLS.Leaf
	c.kubelet = slices.DeleteFunc(c.kubelet, func(old *x509.Certificate) bool { return old.Equal(own) || time.Now().After(old.NotAfter) })
	c.kubelet = append(c.kubelet, own)
	old := map[pki.Client]*pki.Leaf{}
	if c.pki != nil {
		old = c.pki.Clients()
	}
	c.pki = p
	for client, leaf := range p.Clients() {
		t := c.transports[client]
		switch {
		case t == nil:
			t, err = pki.NewTransport(p.ServerCA, leaf)
			c.transports[client] = t
		case old[client] == nil || !old[client].TLS.Leaf.Equal(leaf.TLS.Leaf):
			err = t.Use(p.ServerCA, leaf)
		}
		if err != nil {
			return err
		}
	}
	close(c.renewed)
	c.renewed = make(chan struct{})
	return nil
}

// renew renews leaves when they are due, and when it is asked to, until ctx ends.
func (c *certificates) renew(ctx context.Context) {
	wait := c.untilDue()
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case a := <-c.asks:
			a.answer <- a.do()
			wait = c.untilDue()
		case <-timer.C:
			wait = c.renewDue()
		}
		timer.Stop()
	}
}

// renewDue returns how long to wait for the next time.
func (c *certificates) renewDue() time.Duration {
	if at := c.current().RenewAt; at.IsZero() || time.Now().Before(at) {
		return c.untilDue()
	}
	if err := c.ensure(false); err != nil {
		c.log.Warn("certificates could not be renewed; this is tried again until it can be done", "err", err)
		return renewalRetry
	}
	return c.untilDue()
}

func (c *certificates) untilDue() time.Duration {
	at := c.current().RenewAt
	if at.IsZero() {
		return renewalLongest
	}
	return min(max(time.Until(at), renewalShortest), renewalLongest)
}

// rotate has every leaf renewed, and returns when they are in use.
func (c *certificates) rotate(ctx context.Context) error {
	return c.alone(ctx, func() error { return c.ensure(true) })
}

// ask is something to be done while nothing else changes the folder.
type ask struct {
	do     func() error
	answer chan<- error
}

// alone does what changes the folder, when nothing else does.
func (c *certificates) alone(ctx context.Context, do func() error) error {
	answer := make(chan error, 1)
	select {
	case c.asks <- ask{do, answer}:
	case <-ctx.Done():
		return fmt.Errorf("renew certificates: %w", errors.Join(errors.New("they are not in use now"), ctx.Err()))
	}
	return <-answer
}

// current is nil before ensure has succeeded once.
func (c *certificates) current() *pki.PKI {
	p, _ := c.follow()
	return p
}

// follow returns the certificates, and what is closed when there are others.
func (c *certificates) follow() (*pki.PKI, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pki, c.renewed
}

// own are the client certificates of this machine's kubelet.
func (c *certificates) own() []*x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.kubelet)
}

// access is how a client of this process reaches the API server.
func (c *certificates) access(client pki.Client) *rest.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.transports[client].RESTConfig(c.host)
}

func clientOf(r part.Role) pki.Client {
	switch r {
	case part.Kubelet:
		return pki.Kubelet
	case part.KubeProxy:
		return pki.KubeProxy
	case part.DNS:
		return pki.DNS
	default:
		return pki.Knarr
	}
}

// rotateTokenKey has tokens of service accounts signed by a new key, or drops former
// ones, and returns when that is in use.
func (c *Cluster) rotateTokenKey(r *http.Request) error {
	drop, err := strconv.ParseBool(cmp.Or(r.FormValue("drop"), "false"))
	if err != nil {
		return fmt.Errorf("drop: %w", err)
	}
	keep := pki.ServiceAccountKeep
	if text := r.FormValue("keep"); text != "" {
		if keep, err = time.ParseDuration(text); err != nil {
			return fmt.Errorf("keep: %w", err)
		}
	}
	return c.certs.alone(r.Context(), func() error {
		if drop {
			_, err = pki.DropServiceAccounts(c.certs.cfg.Dir)
		} else {
			err = pki.RotateServiceAccount(c.certs.cfg.Dir, time.Now(), keep)
		}
		if err != nil {
			return err
		}
		return c.certs.ensure(false)
	})
}
