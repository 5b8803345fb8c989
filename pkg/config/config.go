// Package config holds the one Config of Knarr: what flags, environment and
// files say, nested by the part of the program that it concerns.
package config

import (
	"net/netip"
	"path/filepath"
	"time"
)

// Config is everything a server or agent is told from outside.
type Config struct {
	// DataDir keeps all state. Default /var/lib/knarr.
	DataDir string
	// RunDir keeps sockets and what a reboot may forget. Default /run/knarr.
	RunDir string

	API          API
	Kubeconfig   Kubeconfig
	Network      Network
	Node         Node
	ControlPlane ControlPlane
	Store        Store
	Backup       Backup
	Log          Log

	// Agent is set for a machine that joins a cluster as a node. Its Network is
	// the cluster's but for FlannelIface; see Join.
	Agent bool
	// Servers are the API servers of the cluster that an agent joins, as
	// https://host:port once complete.
	Servers []string
	// LoadBalancerPort is the loopback port by which an agent's own programs reach
	// the API servers. Default 6444.
	LoadBalancerPort int
	// Token is what an agent joins with, and what a server accepts from those
	// that do; empty for a server's own. It is a secret.
	Token string
	// TokenFile holds the token instead. Complete reads it.
	TokenFile string

	// LocalStoragePath is the folder of volumes on each node, until the cluster says
	// otherwise. Default <data-dir>/storage.
	LocalStoragePath string
	// LeafLifetime is how long certificates that a server makes for itself last.
	// At least ten seconds; 0 is a year.
	LeafLifetime time.Duration

	// Profiles are sets of settings for a purpose: cis, edge.
	Profiles []string
	// Audit says what is recorded of requests to the API server: none, which is
	// also the default, or metadata, which is the default of profile cis.
	Audit string

	// Disable names add-ons that are not started: deploy, dns,
	// helm-controller, local-storage, metrics-server, runtimes, servicelb.
	Disable []string
	// Registry is the registry in this process.
	Registry Registry
	// EmbeddedRegistry has nodes pull from each other the images of registries that
	// mirrors in registries.yaml has an entry for.
	EmbeddedRegistry bool
	// DisableHelmController is k3s' way to disable helm-controller.
	DisableHelmController bool
	// DisableAgent runs the control plane only, with no node in this process.
	DisableAgent bool
	// ControlPlaneOnly runs it apart from the machine as well, as any user may, for
	// tests and development: on loopback, at a free port, in a temporary folder,
	// unless told otherwise. It implies DisableAgent.
	ControlPlaneOnly bool

	// File is the configuration file that was read, beside its drop-ins in
	// File + ".d". Default /etc/knarr/config.yaml, which need not exist.
	File string

	// origins tells for each option, by name, where its values come from: one
	// entry for a single value, one for each element of a list. An option that
	// nobody set has none.
	origins map[string][]string
	// broken holds the options whose text could not be read; what depends on
	// them is not checked, lest one mistake be told twice.
	broken map[string]bool
}

// API is where the API server listens and what it is called.
type API struct {
	// Port is the HTTPS port. Default 6443.
	Port int
	// BindAddress is the address listened on. Default: all, which is 0.0.0.0, or
	// :: in an IPv6 cluster.
	BindAddress netip.Addr
	// AdvertiseAddress is published to the cluster's members. Default:
	// BindAddress where that is one address, else the node's first.
	AdvertiseAddress netip.Addr
	// TLSSANs are further names and addresses for the serving certificate.
	TLSSANs []string
}

// Kubeconfig is the administrator's kubeconfig that a server writes.
type Kubeconfig struct {
	// Path defaults to /etc/knarr/kubeconfig.yaml.
	Path string
	// Mode is the file's permission bits. Default 0600.
	Mode uint32
	// Group owns the file, by name or number. Default: root's.
	Group string
}

// Network is the cluster's address plan.
type Network struct {
	// ClusterCIDR is where pods get their addresses. Default 10.42.0.0/16.
	ClusterCIDR netip.Prefix
	// ServiceCIDR is where Services get theirs. Default 10.43.0.0/16.
	ServiceCIDR netip.Prefix
	// ClusterDNS defaults to the tenth address of ServiceCIDR.
	ClusterDNS netip.Addr
	// ClusterDomain defaults to cluster.local.
	ClusterDomain string
	// NodeMask is the length of the prefix that each node gets of ClusterCIDR, as
	// the controller-manager was told; 0 is upstream's default.
	NodeMask int
	// NodePortRange is the first and last port of NodePorts. Default 30000-32767.
	NodePortRange string
	// FlannelBackend is vxlan (default), host-gw or none.
	FlannelBackend string
	// FlannelIface is the link that flannel's packets leave by. Default: the default route's.
	FlannelIface string
	// ServiceLBPool are ranges of addresses for Services of type LoadBalancer; see
	// LoadBalancerPool. Default: none.
	ServiceLBPool []string
	// DisableKubeProxy leaves Services to another program.
	DisableKubeProxy bool
}

// Node is the machine as a node of the cluster.
type Node struct {
	// Name defaults to the lower-cased host name.
	Name string
	// IPs are the node's addresses. Default: the default route's source address.
	IPs []netip.Addr
	// IPsHeld is set by who starts a node whose addresses, those of its last start, no
	// link has: it runs although the machine has no network.
	IPsHeld bool
	// ExternalIPs are addresses that others reach the node by from outside, those
	// of a NAT in front of it for instance. They need not be the machine's own.
	ExternalIPs []netip.Addr
	// Labels and Taints are set when the node registers: key=value, key=value:effect.
	Labels []string
	Taints []string
	// PodManifestPath is the folder of static pods, or one file. Default
	// <data-dir>/agent/pod-manifests.
	PodManifestPath string
	// ResolvConf is the file that pods and the DNS forwarder take upstream servers from.
	// Default: the host's, with loopback stubs avoided; empty if the host has none.
	ResolvConf string
	// Snapshotter is overlayfs (default) or native.
	Snapshotter string
	// CredentialProviderConfig and CredentialProviderBinDir tell the kubelet which
	// programs give credentials for image pulls, and where they are; see the
	// kubelet's CredentialProviderConfig. Both or neither.
	CredentialProviderConfig string
	CredentialProviderBinDir string
	// PrivateRegistry is the file that says how images are pulled, in k3s' format.
	// Default /etc/knarr/registries.yaml, which need not exist.
	PrivateRegistry string
	// PullSocket is a unix socket whose server connects to registries in this
	// node's place (see dial.ServeSocket). Default: the node does so itself.
	PullSocket string
	// ContainerRuntimeEndpoint uses another CRI runtime, at unix://<path>;
	// containerd is then not started.
	ContainerRuntimeEndpoint string
	// KubeletArgs and KubeProxyArgs are further upstream flags, name=value.
	KubeletArgs   []string
	KubeProxyArgs []string
}

// ControlPlane holds further upstream flags, name=value.
type ControlPlane struct {
	APIServerArgs         []string
	ControllerManagerArgs []string
	SchedulerArgs         []string
}

// Store is the datastore's settings.
type Store struct {
	// Synchronous is SQLite's: full (default; every acknowledged write survives
	// power loss) or normal (survives a crash of the process only).
	Synchronous string
	// Driver is sqlite (default), our own engine, or kine-sqlite.
	Driver string
	// SecretsEncryption has a new cluster's Secrets encrypted. That of one that
	// exists already is changed by "knarr secrets-encrypt".
	SecretsEncryption On
}

// Backup says when backups are made, where they go, and how they are encrypted.
type Backup struct {
	// Schedule is a cron expression, or @every with a duration. Default: none is made
	// but by command.
	Schedule string
	// Retention is how many are kept. Default 7.
	Retention int
	// Dir is the folder they go to. Default <data-dir>/backups.
	Dir string
	// PassphraseFile and RecipientsFile hold what they are encrypted with: a passphrase,
	// or public keys of age. One of them may be given.
	PassphraseFile string
	RecipientsFile string
	// ReplicateTo is a folder or s3://bucket/folder that changes of the store are copied to
	// as they are made.
	ReplicateTo string
	S3          S3
}

// S3 is a bucket that keeps backups in place of a folder.
type S3 struct {
	Enabled bool
	// Endpoint is host[:port]. Default s3.amazonaws.com.
	Endpoint string
	// EndpointCA is a file of authorities that vouch for it, in place of the machine's.
	EndpointCA    string
	SkipSSLVerify bool
	// Insecure uses HTTP.
	Insecure bool
	Bucket   string
	// Region defaults to us-east-1.
	Region string
	// Folder is what the names of backups in the bucket begin with.
	Folder string
	// CredentialsFile has the form of AWS' own. Default: AWS' variables, then the
	// machine's role.
	CredentialsFile string
	// Timeout bounds the transfer of one backup, as a duration. Default 5m.
	Timeout string
}

// On is a switch that is on unless somebody turns it off.
type On struct{ off bool }

// Enabled tells which.
func (o On) Enabled() bool { return !o.off }

// Registry is the image registry in a server's process, which every node has on
// its loopback.
type Registry struct {
	// Enabled starts it. Default false.
	Enabled bool
	// Address is a loopback address with a port. Default 127.0.0.1:5000.
	Address string
}

// Listen is Address, or empty if there is no registry.
func (r Registry) Listen() string {
	if !r.Enabled {
		return ""
	}
	return r.Address
}

// Log is how much is said and counted, and how.
type Log struct {
	// Debug raises the level from info to debug.
	Debug bool
	// Timings prints when each component was ready.
	Timings bool
	// WorkqueueMetrics keeps metrics of every work queue.
	WorkqueueMetrics bool
	// Format is text (default) or json.
	Format string
}

// ServerDir keeps what only a server has: store, authorities, manifests.
func (c *Config) ServerDir() string { return filepath.Join(c.DataDir, "server") }

// AgentDir keeps what every node has: containerd, images, static pods.
func (c *Config) AgentDir() string { return filepath.Join(c.DataDir, "agent") }

// StatusSocket is where a running Knarr tells its components' states.
func (c *Config) StatusSocket() string { return filepath.Join(c.RunDir, "status.sock") }
