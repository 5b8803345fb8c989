package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

const (
	// conflistName sorts before what most users add by hand and after what other
	// networks install under 00 to 09.
	conflistName = "10-knarr.conflist"
	networkName  = "knarr"

	// defaultLinkMTU is assumed while no link leads out.
	defaultLinkMTU = 1500
)

// CNIConfig says how pods are plugged in.
type CNIConfig struct {
	// Dir is where the CNI configuration is written. Default /etc/cni/net.d.
	Dir string
	// IPAMDir is where the addresses in use are noted. It must be empty after a
	// boot, or those of pods that died with the machine are never used again:
	// <run-dir>/cni-ipam.
	IPAMDir string
	// Backend is flannel's, on which the size of packets depends.
	Backend string
	// Iface is --flannel-iface; may be empty.
	Iface string
	// NodeIP is the node's address.
	NodeIP netip.Addr
	Log    *slog.Logger
}

// CNI writes the configuration that containerd hands to the CNI plugins.
type CNI struct{ cfg CNIConfig }

// NewCNI returns a CNI that has written nothing yet.
func NewCNI(cfg CNIConfig) *CNI {
	if cfg.Dir == "" {
		cfg.Dir = "/etc/cni/net.d"
	}
	return &CNI{cfg: cfg}
}

// Path is the file that Write writes.
func (c *CNI) Path() string { return filepath.Join(c.cfg.Dir, conflistName) }

// Write makes the plugins give pods addresses of the subnet. It leaves the file
// alone if it says so already, and if another network's comes first.
func (c *CNI) Write(subnet netip.Prefix) error {
	if err := os.MkdirAll(c.cfg.Dir, 0o755); err != nil {
		return fmt.Errorf("make folder of the CNI configuration: %w", err)
	}
	first, err := c.otherFirst()
	if err != nil {
		return err
	}
	if first != "" {
		c.cfg.Log.Info("pods use another network, whose configuration comes first", "file", first, "before", conflistName)
		return nil
	}
	if err := replace(c.Path(), c.conflist(subnet)); err != nil {
		return fmt.Errorf("write CNI configuration: %w", err)
	}
	return nil
}

// otherFirst returns the configuration of another network that containerd takes
// before ours, if there is one.
func (c *CNI) otherFirst() (string, error) {
	files, err := libcni.ConfFiles(c.cfg.Dir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return "", fmt.Errorf("list CNI configurations: %w", err)
	}
	for _, f := range files {
		if strings.Compare(f, c.Path()) < 0 {
			return f, nil
		}
	}
	return "", nil
}

// mtu is what a packet of a pod may measure, in bytes.
func (c *CNI) mtu(v6 bool) int {
	mtu := defaultLinkMTU
	if link, err := ExternalLink(c.cfg.Iface, c.cfg.NodeIP); err == nil {
		mtu = link.MTU
	}
	return mtu - overhead(c.cfg.Backend, v6)
}

type conflist struct {
	CNIVersion string   `json:"cniVersion"`
	Name       string   `json:"name"`
	Plugins    []bridge `json:"plugins"`
}

type bridge struct {
	Type             string          `json:"type"`
	Bridge           string          `json:"bridge"`
	IsDefaultGateway bool            `json:"isDefaultGateway"`
	ForceAddress     bool            `json:"forceAddress"`
	HairpinMode      bool            `json:"hairpinMode"`
	PromiscMode      bool            `json:"promiscMode"`
	IPMasq           bool            `json:"ipMasq"`
	MTU              int             `json:"mtu"`
	Capabilities     map[string]bool `json:"capabilities"`
	IPAM             ipam            `json:"ipam"`
}

type ipam struct {
	Type    string        `json:"type"`
	DataDir string        `json:"dataDir"`
	Ranges  [][]ipamRange `json:"ranges"`
}

type ipamRange struct {
	Subnet netip.Prefix `json:"subnet"`
}

func (c *CNI) conflist(subnet netip.Prefix) []byte {
	content, err := json.MarshalIndent(conflist{
		// From 1.1.0 on, containerd runs every plugin each few seconds to ask for
		// its status, which costs an idle node more than all else.
		CNIVersion: "1.0.0",
		Name:       networkName,
		Plugins: []bridge{{
			Type:             "bridge",
			Bridge:           BridgeName,
			IsDefaultGateway: true,
			// A bridge that still has another subnet's address would fail every
			// new pod.
			ForceAddress: true,
			HairpinMode:  true,
			// Rules writes these rules, since what a plugin writes is lost when
			// another program flushes the packet filter.
			IPMasq: false,
			MTU:    c.mtu(subnet.Addr().Is6()),
			// No plugin serves host ports either; but runtimes that ask whether
			// one does must be told yes, or they don't note the ports for Rules.
			Capabilities: map[string]bool{"portMappings": true},
			IPAM: ipam{
				Type:    "host-local",
				DataDir: c.cfg.IPAMDir,
				Ranges:  [][]ipamRange{{{Subnet: subnet.Masked()}}},
			},
		}},
	}, "", "  ")
	if err != nil {
		// Strings, numbers and a valid prefix can't fail; an invalid one is empty.
		return nil
	}
	return append(content, '\n')
}

// replace gives a file the content, by one write into the file that is there:
// containerd notices neither a file renamed into place nor one that is only
// created, and may read at any moment. What is longer than the content is
// overwritten by blank lines.
func replace(path string, content []byte) error {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if bytes.Equal(bytes.TrimRight(old, "\n"), bytes.TrimRight(content, "\n")) {
		return nil
	}
	if missing := len(old) - len(content); missing > 0 {
		content = append(bytes.Clone(content), bytes.Repeat([]byte{'\n'}, missing)...)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}
