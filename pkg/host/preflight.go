package host

import (
	"net/netip"
	"sync"
	"time"
)

// Config is what Preflight must know of the configuration.
type Config struct {
	DataDir, RunDir          string
	ClusterCIDR, ServiceCIDR []netip.Prefix
	// ClusterDNS is the address of the cluster's DNS server.
	ClusterDNS netip.Addr
	// NodeIPs are the addresses that the user names. Default: none.
	NodeIPs []netip.Addr
	// NodeIPsHeld is set if no link need have them: the node has had them before, and
	// they are kept on the loopback link.
	NodeIPsHeld bool
	// DisableAgent leaves out everything that only a node needs.
	DisableAgent bool
	// Snapshotter is probed if it is overlayfs. Empty: containerd is not ours.
	Snapshotter string
	// SnapshotterGiven is set if the user chose it: nothing else is used then.
	SnapshotterGiven bool
	// FlannelBackend is vxlan, host-gw or none. With none the pod network is
	// another program's care, and so are its links.
	FlannelBackend string
	// ResolvConf names the name servers for pods and DNS; empty if there is none.
	ResolvConf string
	// Listeners are the ports that will be listened on.
	Listeners []Listener
	// KubeVersion is ours, v1.36.4+knarr1; ServerDir, if set, holds the store
	// that it is compared with.
	KubeVersion, ServerDir string
	// BuildDate is when this program was built: it can't be earlier now.
	BuildDate time.Time
	// ConfigFile and Kubeconfig are files that others must not write or read.
	ConfigFile, Kubeconfig string
	// Outside are the files and folders that are made outside of the data dir.
	Outside []string
	// KubeconfigMode is what the user wants the kubeconfig to have.
	KubeconfigMode uint32
}

// check is one thing that is looked at.
type check struct {
	name string
	// node is set if only a node needs it; first, if it needs no rights.
	node, first bool
	// run adds what is wrong, or returns what is right. With neither, the check
	// does not concern this machine.
	run func(*survey, *findings) (fine string)
}

// checks lists all of them in the order of the report. Each has a row in
// docs/check.md.
func checks() []check {
	return []check{
		{name: "root", node: true, first: true, run: (*survey).checkRoot},
		{name: "capabilities", node: true, first: true, run: (*survey).checkCapabilities},
		{name: "oom-score", node: true, run: (*survey).checkOOMScore},
		{name: "kernel", node: true, run: (*survey).checkKernel},
		{name: "kernel-features", node: true, run: (*survey).checkFeatures},
		{name: "kernel-files", node: true, run: (*survey).checkKernelFiles},
		{name: "nftables", node: true, run: (*survey).checkNFTables},
		{name: "links", node: true, run: (*survey).checkLinks},
		{name: "br_netfilter", node: true, run: (*survey).checkBridgeFilter},
		{name: "cgroups", node: true, run: (*survey).checkCgroups},
		{name: "cgroup-driver", node: true, run: (*survey).checkDriver},
		{name: "swap", node: true, run: (*survey).checkSwap},
		{name: "memory", run: (*survey).checkMemory},
		{name: "clock", run: (*survey).checkClock},
		{name: "run-dir", run: (*survey).checkRunDir},
		{name: "data-dir", run: (*survey).checkDataDir},
		{name: "other-folders", run: (*survey).checkOutside},
		{name: "disk", run: (*survey).checkDisk},
		{name: "snapshotter", node: true, run: (*survey).checkSnapshotter},
		{name: "database", run: (*survey).checkDatabase},
		{name: "modes", run: (*survey).checkModes},
		{name: "store-version", first: true, run: (*survey).checkStoreVersion},
		{name: "second-knarr", first: true, run: (*survey).checkSecondKnarr},
		{name: "other-kubernetes", node: true, run: (*survey).checkOtherKubernetes},
		{name: "ports", run: (*survey).checkPorts},
		{name: "addresses", first: true, run: (*survey).checkPlan},
		{name: "node-address", node: true, run: (*survey).checkNodeAddress},
		{name: "routes", node: true, run: (*survey).checkRoutes},
		{name: "resolv-conf", node: true, run: (*survey).checkResolvConf},
		{name: "firewall", node: true, run: (*survey).checkFirewall},
		{name: "nm-cloud-setup", node: true, run: (*survey).checkCloudSetup},
	}
}

// Checks are the names of all checks, in the order of a report.
func Checks() []string {
	var names []string
	for _, c := range checks() {
		names = append(names, c.name)
	}
	return names
}

// survey is one look at a machine. What several checks need is read once.
type survey struct {
	*Machine
	cfg Config

	mountTable func() []mount
	groups     func() Cgroups
	net        func() (Network, error)
	ledger     func() (*Ledger, error)
	holder     func() int // of the data dir's lock; 0 if there is none
	processes  func() []process

	snapshotter string // written by its check alone
}

func (m *Machine) survey(cfg Config) *survey {
	s := &survey{Machine: m, cfg: cfg, snapshotter: cfg.Snapshotter}
	s.mountTable = sync.OnceValue(m.mountTable)
	s.groups = sync.OnceValue(func() Cgroups { return m.cgroupsOn(s.mountTable()) })
	s.net = sync.OnceValues(m.kernel().Network)
	s.ledger = sync.OnceValues(func() (*Ledger, error) { return m.OpenLedger(cfg.DataDir) })
	s.holder = sync.OnceValue(func() int { return m.lockHolder(cfg.DataDir) })
	s.processes = sync.OnceValue(m.processes)
	return s
}

// Preflight checks the real machine.
func Preflight(cfg Config) Report { return new(Machine).Preflight(cfg) }

// Preflight checks whether the machine can carry what cfg asks for. It changes
// nothing, except that missing kernel modules are loaded.
func (m *Machine) Preflight(cfg Config) Report {
	s := m.survey(cfg)
	able := cfg.DisableAgent || m.root() && len(m.missingCapabilities()) == 0
	all := checks()
	found := make([][]Result, len(all))
	// The kernel makes the probes of overlay and nftables wait some ten
	// milliseconds each, for nothing that they need: the others run meanwhile.
	var running sync.WaitGroup
	for i, c := range all {
		// Without rights the other checks would tell of what is not so.
		if c.node && cfg.DisableAgent || !c.first && !able {
			continue
		}
		running.Go(func() { found[i] = s.run(c) })
	}
	running.Wait()
	var r Report
	for _, results := range found {
		r.Add(results...)
	}
	r.Snapshotter = s.snapshotter
	return r
}

func (s *survey) run(c check) []Result {
	f := findings{check: c.name}
	fine := c.run(s, &f)
	if len(f.results) == 0 && fine != "" {
		f.add(OK, fine, "", "", "")
	}
	return f.results
}
