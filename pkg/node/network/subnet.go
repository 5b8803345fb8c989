package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/knarr-dev/knarr/pkg/component"
)

// SubnetConfig says where to look for the node's subnet.
type SubnetConfig struct {
	NodeName string
	// ClusterCIDR holds the subnets of all nodes.
	ClusterCIDR netip.Prefix
	// MaskSize is the length of a node's prefix. Default: that of the controller
	// manager, 24 for IPv4 and 64 for IPv6.
	MaskSize int
	// NewCluster is set when no node has ever been in the cluster. Its first
	// node gets the first subnet.
	NewCluster bool
	// File remembers the subnet: <agent-dir>/network/subnet.
	File string
	// Client is called once the components in Needs are ready.
	Client func() (kubernetes.Interface, error)
	Needs  []string
	Log    *slog.Logger
}

// Subnet gives the node's pods addresses: at once if their range is known or
// certain enough, and else once the cluster has decided.
type Subnet struct {
	cfg SubnetConfig
	cni *CNI

	mu sync.Mutex
	// now is what the CNI configuration says; invalid before it is written.
	now netip.Prefix
}

var _ component.Component = (*Subnet)(nil)

// NewSubnet returns the subnet of a node, for which nothing is written yet.
func NewSubnet(cfg SubnetConfig, cni *CNI) *Subnet {
	if cfg.MaskSize == 0 {
		cfg.MaskSize = 24
		if cfg.ClusterCIDR.Addr().Is6() {
			cfg.MaskSize = 64
		}
	}
	return &Subnet{cfg: cfg, cni: cni}
}

// Prepare writes the CNI configuration if the subnet is known before the API
// server answers, and returns the subnet; else an invalid one. Call it before
// the container runtime starts and before Run.
func (s *Subnet) Prepare() (netip.Prefix, error) {
	subnet := s.remembered()
	if s.cfg.NewCluster {
		subnet = s.predicted()
	}
	if !subnet.IsValid() {
		return subnet, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return subnet, s.write(subnet)
}

// Assume gives pods addresses of the first subnet, if nothing is known of
// another: for static pods of a server whose API server fails before it has
// ever told the subnet. The cluster will give the node that one unless it has
// had other nodes; then what the cluster says replaces it, with a warning. A
// server that joins others must not call it.
func (s *Subnet) Assume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now.IsValid() {
		return nil
	}
	subnet := s.predicted()
	s.cfg.Log.Info("the API server can't tell this node's pod subnet; taking the first for static pods", "subnet", subnet)
	return s.write(subnet)
}

// write is for those that hold mu.
func (s *Subnet) write(subnet netip.Prefix) error {
	if err := s.cni.Write(subnet); err != nil {
		return err
	}
	s.now = subnet
	return nil
}

// predicted is the subnet that the controller manager gives the first node.
func (s *Subnet) predicted() netip.Prefix {
	c := s.cfg.ClusterCIDR.Masked()
	return netip.PrefixFrom(c.Addr(), max(s.cfg.MaskSize, c.Bits()))
}

// memory is the content of the file.
type memory struct {
	Subnet netip.Prefix `json:"subnet"`
}

// remembered is the subnet of the last start, if it may still be right.
func (s *Subnet) remembered() netip.Prefix {
	content, err := os.ReadFile(s.cfg.File)
	if errors.Is(err, fs.ErrNotExist) {
		return netip.Prefix{}
	}
	var m memory
	if err == nil {
		err = json.Unmarshal(content, &m)
	}
	if err != nil {
		s.cfg.Log.Warn("the pod subnet of the last start can't be read; waiting for the API server to tell it", "file", s.cfg.File, "err", err)
		return netip.Prefix{}
	}
	if c := s.cfg.ClusterCIDR; !c.Contains(m.Subnet.Addr()) || m.Subnet.Bits() < c.Bits() {
		return netip.Prefix{}
	}
	return m.Subnet
}

func (s *Subnet) remember(subnet netip.Prefix) error {
	content, err := json.Marshal(memory{subnet})
	if err != nil {
		return fmt.Errorf("remember pod subnet: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(s.cfg.File), 0o700); err != nil {
		return fmt.Errorf("remember pod subnet: %w", err)
	}
	// A file torn by a crash is like none, see remembered.
	if err := os.WriteFile(s.cfg.File, append(content, '\n'), 0o600); err != nil {
		return fmt.Errorf("remember pod subnet: %w", err)
	}
	return nil
}

// Name implements component.Component.
func (s *Subnet) Name() string { return "pod-subnet" }

// Needs implements component.Component.
func (s *Subnet) Needs() []string { return s.cfg.Needs }

// Run follows what the cluster says about the node's subnet. It closes ready
// once pods get addresses of that.
func (s *Subnet) Run(ctx context.Context, ready chan<- struct{}) error {
	client, err := s.cfg.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	v6 := s.cfg.ClusterCIDR.Addr().Is6()
	told := make(chan netip.Prefix)
	watchNodes(ctx, client, s.cfg.NodeName, func(old, now *corev1.Node) {
		subnet := podSubnet(now, v6)
		if !subnet.IsValid() || subnet == podSubnet(old, v6) {
			return
		}
		select {
		case told <- subnet:
		case <-ctx.Done():
		}
	})
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case subnet := <-told:
			if err := s.settle(subnet); err != nil {
				return err
			}
			if ready != nil {
				close(ready)
				ready = nil
			}
		}
	}
}

// settle makes the subnet the one that pods get addresses of.
func (s *Subnet) settle(subnet netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now.IsValid() && s.now != subnet {
		s.cfg.Log.Info("the cluster gives this node another pod subnet", "was", s.now, "is", subnet)
	}
	// Also when the subnet was right: the way out may have come up since.
	if err := s.write(subnet); err != nil {
		return err
	}
	if s.remembered() != subnet {
		if err := s.remember(subnet); err != nil {
			return err
		}
	}
	pods, err := ensureNoBridge(BridgeName, subnet)
	if pods > 0 {
		s.cfg.Log.Warn("pods from before have addresses outside of the node's subnet and will lose their network; delete them so that they are made again",
			"pods", pods, "subnet", subnet)
	}
	return err
}
