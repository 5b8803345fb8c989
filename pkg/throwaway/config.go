package throwaway

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// Config says what a cluster is made of. The zero value with a Name and an Exe is
// a cluster of one node.
type Config struct {
	// Name tells clusters of this machine apart: 1 to 32 small letters, digits and
	// dashes.
	Name string `json:"name"`
	// Exe is the Knarr executable.
	Exe string `json:"exe"`
	// From is a file that Save has written, in which the cluster begins. Default: none.
	From string `json:"from,omitempty"`
	// ControlPlaneOnly is for a control plane without nodes, which needs no root.
	ControlPlaneOnly bool `json:"controlPlaneOnly,omitempty"`
	// Nodes is how many there are, 1 to 50; the first is the server, the others
	// are agents. Default: 1, or as many as From has, which are the least.
	Nodes int `json:"nodes"`
	// Ports are published on this machine.
	Ports []Port `json:"ports,omitempty"`
	// RegistryPort is the port of this machine's loopback at which the registry is
	// that all clusters share. Default: the cluster has no part in it.
	RegistryPort uint16 `json:"registryPort,omitempty"`
	// Net is how pods reach the world: NetNone, or NetNAT by connections that this
	// machine makes for them. Default: NetNone.
	Net string `json:"net,omitempty"`
	// Volumes are files and folders of this machine to show in every node.
	Volumes []lab.Bind `json:"volumes,omitempty"`
	// ServerConfig is the content of the server's configuration file. Default: what
	// From has.
	ServerConfig []byte `json:"serverConfig,omitempty"`
	// AllPods has Start wait for every pod too, not only for the nodes.
	AllPods bool `json:"allPods,omitempty"`
	// Kubeconfig is a file to add the cluster's context to. Default: none.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// Images are what each node has before Start returns; see [ParseImage].
	Images []Image `json:"-"`
}

// maxNodes is what a lab's /24 has room for, with much left.
const maxNodes = 50

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// CheckName tells what is wrong with a cluster's name.
func CheckName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("cluster name %q: want 1 to 32 small letters, digits and dashes, such as dev", name)
	}
	return nil
}

func (c *Config) check() error {
	if err := CheckName(c.Name); err != nil {
		return err
	}
	if err := CheckNet(c.Net); err != nil {
		return err
	}
	if c.Kubeconfig != "" {
		// The keeper works elsewhere.
		var err error
		if c.Kubeconfig, err = filepath.Abs(c.Kubeconfig); err != nil {
			return err
		}
	}
	if c.ControlPlaneOnly {
		return c.checkApart()
	}
	if c.Nodes == 0 {
		c.Nodes = 1
	}
	if c.Nodes < 1 || c.Nodes > maxNodes {
		return fmt.Errorf("%d nodes: want 1 to %d", c.Nodes, maxNodes)
	}
	for _, v := range c.Volumes {
		if _, err := os.Stat(v.Source); err != nil {
			return fmt.Errorf("volume %s: %w", v.Source, err)
		}
		if err := checkTarget(v.Target, func(path string) bool { _, err := os.Stat(path); return err == nil }); err != nil {
			return err
		}
	}
	return nil
}

// checkTarget refuses a path for which a node would have to make a folder in one
// of this machine's, which it sees read-only.
func checkTarget(path string, exists func(string) bool) error {
	top, _, below := strings.Cut(path[1:], "/")
	if !below || slices.Contains([]string{"etc", "opt", "root", "tmp", "var"}, top) || !exists("/"+top) || exists(path) {
		return nil
	}
	return fmt.Errorf("volume at %s: nodes see /%s of this machine read-only, and it has no %s: choose a path below /var, or a new one such as /volume", path, top, path)
}

// nodeName is server, agent-1, agent-2, …
func nodeName(index int) string {
	if index == 0 {
		return "server"
	}
	return fmt.Sprintf("agent-%d", index)
}

// A Port of this machine leads to one of the server's node.
type Port struct {
	// Addr is where this machine listens; with port 0 the kernel chooses one.
	Addr netip.AddrPort `json:"addr"`
	// Node is the port of the node: a hostPort, a NodePort, or that of a Service
	// of type LoadBalancer.
	Node uint16 `json:"node"`
}

// String is the form that ParsePort reads.
func (p Port) String() string { return fmt.Sprintf("%s:%d", p.Addr, p.Node) }

// ParsePort reads [ADDRESS:]PORT:NODEPORT. Without an address it is 127.0.0.1.
func ParsePort(text string) (Port, error) {
	want := func(why string) (Port, error) {
		return Port{}, fmt.Errorf("port %q: %s; want [ADDRESS:]PORT:NODEPORT, such as 8080:80", text, why)
	}
	if rest, protocol, ok := strings.Cut(text, "/"); ok {
		if protocol != "tcp" {
			return want("only TCP can be published")
		}
		text = rest
	}
	at := strings.LastIndexByte(text, ':')
	if at < 0 {
		return want("has no colon")
	}
	node, err := strconv.ParseUint(text[at+1:], 10, 16)
	if err != nil || node == 0 {
		return want("the node's port is not one of 1 to 65535")
	}
	here := text[:at]
	if !strings.Contains(here, ":") {
		here = "127.0.0.1:" + here
	}
	addr, err := netip.ParseAddrPort(here)
	if err != nil {
		return want("this machine's side is not an address and a port")
	}
	return Port{Addr: addr, Node: uint16(node)}, nil
}

// ParseVolume reads HOST:NODE[:ro], both paths.
func ParseVolume(text string) (lab.Bind, error) {
	parts := strings.Split(text, ":")
	b := lab.Bind{ReadOnly: len(parts) == 3 && parts[2] == "ro"}
	if len(parts) < 2 || len(parts) > 3 || len(parts) == 3 && !b.ReadOnly || parts[0] == "" {
		return b, fmt.Errorf("volume %q: want HOST:NODE or HOST:NODE:ro, such as ./src:/src:ro", text)
	}
	source, err := filepath.Abs(parts[0])
	if err != nil {
		return b, fmt.Errorf("volume %q: %w", text, err)
	}
	b.Source, b.Target = source, filepath.Clean(parts[1])
	top, _, _ := strings.Cut(strings.TrimPrefix(b.Target, "/"), "/")
	switch {
	case !filepath.IsAbs(parts[1]) || b.Target == "/":
		return b, fmt.Errorf("volume %q: the node's side must be an absolute path below /", text)
	case top == "proc" || top == "sys" || top == "dev" || top == "run":
		return b, fmt.Errorf("volume %q: /%s of a node is the kernel's; choose another path", text, top)
	}
	return b, nil
}
