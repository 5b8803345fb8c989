package cli

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/dial"
	"github.com/knarr-dev/knarr/pkg/edge"
	"github.com/knarr-dev/knarr/pkg/join"
	"github.com/knarr-dev/knarr/pkg/loadbalancer"
	"github.com/knarr-dev/knarr/pkg/token"
	"github.com/knarr-dev/knarr/pkg/version"
)

// join makes the machine a member of its cluster, waiting for a server as long as
// it takes, and learns the cluster's network.
func (s *server) join(ctx context.Context) error {
	c := s.cfg
	var err error
	proxies := httpproxy.FromEnvironment().ProxyFunc()
	s.dial = dial.ProxyDialer(func(r *http.Request) (*url.URL, error) { return proxies(r.URL) })
	s.servers, err = loadbalancer.New(loadbalancer.Config{
		Listen:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(c.LoadBalancerPort)),
		Servers: c.ServerAddrs(),
		File:    filepath.Join(c.AgentDir(), "servers.json"),
		Dial:    s.dial,
		Log:     s.log,
	})
	if err != nil {
		return err
	}
	var t token.Token
	if c.Token != "" {
		if t, err = token.Parse(c.Token); err != nil {
			return fmt.Errorf("--token: %w", err)
		}
	}
	if err := s.notifier.Status("joining"); err != nil {
		s.log.Debug("notify", "err", err)
	}
	began := time.Now()
	s.identity, err = join.Join(ctx, join.Config{
		Dir: s.identityDir(), Node: c.Node.Name, Token: t, Address: c.ServerAddrs()[0],
		Dial: s.servers.DialContext, Await: s.servers.Await, Version: version.Kubernetes, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.log.Debug("joined", "after", time.Since(began).Round(time.Millisecond))
	is := s.identity.Cluster
	if err := join.Skew(version.Kubernetes, is.Version); err != nil {
		return err
	}
	c.Join(config.Network{
		ClusterCIDR: is.ClusterCIDR, ServiceCIDR: is.ServiceCIDR, NodeMask: is.NodeMask,
		ClusterDNS: is.ClusterDNS, ClusterDomain: is.ClusterDomain,
		FlannelBackend: is.FlannelBackend, DisableKubeProxy: is.DisableKubeProxy,
	}, is.Disable, is.Registry, is.EmbeddedRegistry)
	if err := c.Complete(config.ThisHost()); err != nil {
		return &usageError{fmt.Errorf("this machine and the cluster's settings: %w", err)}
	}
	if err := s.preflight(); err != nil {
		return err
	}
	s.kept, err = edge.Open(edge.Config{Dir: s.keptDir(), Node: c.Node.Name, Log: s.log})
	return err
}

func (s *server) keptDir() string { return filepath.Join(s.cfg.AgentDir(), "kept") }

func (s *server) identityDir() string { return filepath.Join(s.cfg.AgentDir(), "identity") }

// keep writes what the node has read last. A node that was deleted has closed it.
func (s *server) keep() {
	if err := s.kept.Close(); err != nil {
		s.log.Warn("keep what the node lives by without a server", "err", err)
	}
}

// forget has the machine join anew, with a token, at its next start.
func (s *server) forget(why error) error {
	s.keep()
	for _, dir := range []string{s.identityDir(), s.keptDir(), filepath.Join(s.cfg.AgentDir(), "kubelet-pki")} {
		if err := join.Forget(dir); err != nil {
			s.log.Warn("forget the cluster", "err", err)
		}
	}
	return &exitError{why, ExitNotMember}
}
