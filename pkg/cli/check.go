package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/knarr-dev/knarr/pkg/node/peers"
	"github.com/knarr-dev/knarr/pkg/version"
)

// configurationCheck is the name of the check that the command line itself
// makes, before those of package host.
const configurationCheck = "configuration"

func newCheck(c Commands) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [flags]",
		Short: "Check whether this machine can run a server or an agent, and change nothing",
		Long: "Checks the configuration and the machine as \"knarr server\" does before it\n" +
			"starts, and tells each result in a line: what is so, where, why it matters and\n" +
			"what to do. Give it the flags, variables and files that the server gets; with\n" +
			"--agent, those of an agent. Nothing is changed, except that missing kernel\n" +
			"modules are loaded.\n\n" +
			"The exit code is 0 if all is well or there are but warnings, 1 if a server or\n" +
			"agent would not start here, and 2 if the configuration is wrong.\n\n" +
			"With --cis it judges the server that runs here by each item of the CIS\n" +
			"Kubernetes Benchmark, and exits with 1 if one fails.",
		Example: "  # a table to read\n" +
			"  sudo knarr check\n\n" +
			"  # a machine that is to join a cluster\n" +
			"  sudo knarr check --agent --server https://192.0.2.1:6443\n\n" +
			"  # for a program, with another configuration\n" +
			"  sudo knarr check --config /srv/knarr.yaml -o json\n\n" +
			"  # a running server, by the CIS benchmark\n" +
			"  sudo knarr check --cis",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	cmd.Flags().SortFlags = false
	output := outputFlag(cmd, []string{"table", "json"}, "table", "form of the output")
	all := config.AllOptions()
	for i := range all {
		if all[i].Short == "o" { // it is the output's here
			all[i].Short = ""
		}
	}
	benchmark := cmd.Flags().Bool("cis", false, "check the server that runs here by the CIS benchmark instead")
	agent := cmd.Flags().Bool("agent", false, "check for an agent instead of a server")
	given := bindOptions(cmd, all)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, warnings, err := config.Load(config.Sources{Flags: *given, Environ: os.Environ(), Agent: *agent})
		if c.Network != nil && err == nil {
			now, networkErr := host.ReadNetwork()
			if err = networkErr; err == nil {
				keepAddresses(cfg, now)
			}
		}
		err = errors.Join(err, cfg.Complete(c.Host()))
		if *benchmark {
			if err != nil {
				return &usageError{err}
			}
			return checkBenchmark(cmd.Context(), cmd.OutOrStdout(), cfg, *output)
		}
		report := checkConfiguration(warnings, err)
		code := ExitUsage
		if err == nil {
			machine := c.Check(cfg)
			report.Add(machine.Results...)
			code = ExitFailed
		}
		if err := printReport(cmd.OutOrStdout(), report, *output); err != nil {
			return err
		}
		if report.Level == host.Error {
			return exitCode(code)
		}
		return nil
	}
	return cmd
}

// checkConfiguration makes results of what is wrong with the configuration.
func checkConfiguration(warnings []string, err error) host.Report {
	var r host.Report
	add := func(l host.Level, what string) {
		r.Add(host.Result{Check: configurationCheck, Level: l, What: what})
	}
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			add(host.Error, strings.TrimSpace(line))
		}
	}
	for _, w := range warnings {
		add(host.Warning, w)
	}
	if len(r.Results) == 0 {
		add(host.OK, "every option is valid")
	}
	return r
}

func printReport(w io.Writer, r host.Report, format string) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(r)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LEVEL\tCHECK\tRESULT")
	for _, one := range r.Results {
		fmt.Fprintf(t, "%s\t%s\t%s\n", one.Level, one.Check, strings.Join(strings.Fields(one.String()), " "))
	}
	return t.Flush()
}

// checkMachine looks whether this machine can run a server of that configuration.
func checkMachine(c *config.Config) host.Report {
	built, err := time.Parse(time.RFC3339, version.Get().BuildDate)
	if err != nil {
		built = time.Time{} // a clock can't be earlier than that
	}
	snapshotter := c.Node.Snapshotter
	if c.Node.ContainerRuntimeEndpoint != "" {
		snapshotter = ""
	}
	serverDir := c.ServerDir()
	if c.Agent {
		serverDir = ""
	}
	return host.Preflight(host.Config{
		DataDir: c.DataDir, RunDir: c.RunDir, ServerDir: serverDir,
		ClusterCIDR:      known(c.Network.ClusterCIDR),
		ServiceCIDR:      known(c.Network.ServiceCIDR),
		ClusterDNS:       c.Network.ClusterDNS,
		NodeIPs:          c.Node.IPs,
		NodeIPsHeld:      c.Node.IPsHeld,
		DisableAgent:     c.DisableAgent,
		Snapshotter:      snapshotter,
		SnapshotterGiven: c.IsSet("snapshotter"),
		FlannelBackend:   c.Network.FlannelBackend,
		ResolvConf:       c.Node.ResolvConf,
		Listeners:        listeners(c),
		KubeVersion:      version.Kubernetes,
		BuildDate:        built,
		ConfigFile:       c.File,
		Outside:          outside(c),
		Kubeconfig:       c.Kubeconfig.Path, KubeconfigMode: c.Kubeconfig.Mode,
	})
}

// known leaves out a range that an agent has not been told yet.
func known(p netip.Prefix) []netip.Prefix {
	if !p.IsValid() {
		return nil
	}
	return []netip.Prefix{p}
}

// listeners are the ports that a server or an agent takes, apart from those that the kernel
// chooses and those of NodePorts.
func listeners(c *config.Config) []host.Listener {
	front := host.Listener{
		Use: "the API server", Network: "tcp", Addr: netip.AddrPortFrom(c.API.BindAddress, uint16(c.API.Port)),
		Do: "choose another --https-listen-port",
	}
	if c.Agent {
		front = host.Listener{
			Use: "the way to the API servers", Network: "tcp", Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(c.LoadBalancerPort)),
			Do: "choose another --lb-server-port",
		}
	}
	all := []host.Listener{front}
	if c.DisableAgent {
		return all
	}
	everywhere := netip.IPv4Unspecified()
	if c.Network.ClusterCIDR.Addr().Is6() {
		everywhere = netip.IPv6Unspecified()
	}
	if c.API.BindAddress.IsUnspecified() {
		everywhere = c.API.BindAddress
	}
	// Upstream's kubelet ends the process where it can't listen.
	kubelet := host.Listener{Use: "the kubelet", Network: "tcp", Addr: netip.AddrPortFrom(everywhere, 10250), Needed: true, Do: "choose another with --kubelet-arg=port="}
	proxy := host.Listener{Use: "kube-proxy's health check", Network: "tcp", Addr: netip.AddrPortFrom(everywhere, 10256), Do: "choose another with --kube-proxy-arg=healthz-bind-address="}
	if port, err := netip.ParseAddrPort("0.0.0.0:" + argument(c.Node.KubeletArgs, "port")); err == nil {
		kubelet.Addr = netip.AddrPortFrom(everywhere, port.Port())
	}
	if addr, err := netip.ParseAddrPort(argument(c.Node.KubeProxyArgs, "healthz-bind-address")); err == nil {
		proxy.Addr = addr
	}
	all = append(all, kubelet)
	if !c.Network.DisableKubeProxy {
		all = append(all, proxy)
	}
	if c.Network.FlannelBackend == "vxlan" {
		// Where all of flannel's nodes expect each other.
		all = append(all, host.Listener{Use: "flannel", Network: "udp", Addr: netip.AddrPortFrom(everywhere, 8472), Do: "use --flannel-backend=host-gw"})
	}
	if c.EmbeddedRegistry && c.Node.ContainerRuntimeEndpoint == "" {
		// Where all nodes expect each other, too.
		all = append(all, host.Listener{Use: "nodes that pull images from this one", Network: "tcp", Addr: netip.AddrPortFrom(everywhere, peers.Port), Do: "leave out --embedded-registry"})
	}
	if servesDNS(c) && c.Network.ClusterDNS.IsValid() {
		for _, network := range []string{"udp", "tcp"} {
			all = append(all, host.Listener{Use: "cluster DNS", Network: network, Addr: netip.AddrPortFrom(c.Network.ClusterDNS, 53), Needed: true,
				Do: "restrict it to its own addresses (dnsmasq: bind-interfaces), or give --disable=dns"})
		}
	}
	return all
}

// argument is the value that a flag for an upstream component was given last.
func argument(args []string, name string) string {
	value := ""
	for _, a := range args {
		if n, v, _ := strings.Cut(a, "="); n == name {
			value = v
		}
	}
	return value
}
