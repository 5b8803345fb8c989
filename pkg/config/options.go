package config

import (
	"slices"
	"strings"
)

// Option is one setting: a flag, an environment variable, a key of the
// configuration files and a line of the reference are all made from it.
type Option struct {
	// Name is the flag without its dashes, and the key in files.
	Name string
	// Short is the one-letter flag, or empty.
	Short string
	// Group is the heading that help and reference show the option under.
	Group string
	// Arg stands for the value in help texts. Empty for a switch.
	Arg string
	// Help is one sentence without a full stop, begun in lower case.
	Help string
	// Default is the value when nobody sets one, as a user would write it.
	Default string
	// DefaultText tells in words a default that is found on the machine or
	// follows from other options; Default is then empty.
	DefaultText string
	// Choices are the only values allowed, if not empty.
	Choices []string
	// Hidden keeps the option out of help and reference.
	Hidden bool
	// Secret values are never shown.
	Secret bool

	// whole values are not split at commas, since they may hold some.
	whole bool
	// notInFile options choose the file, so a file can't set them.
	notInFile bool
	// of is whom the option concerns.
	of role
	// alias is a second variable that sets the option, or empty.
	alias string
	// field points to where the value goes.
	field func(*Config) any
}

// role is whom an option concerns.
type role int

const (
	everyNode role = iota
	serverOnly
	agentOnly
)

// The headings, in the order of help and reference.
const (
	groupGeneral    = "General"
	groupJoining    = "Joining"
	groupNode       = "Node"
	groupNetwork    = "Network"
	groupAPI        = "API server"
	groupKubeconfig = "Administrator's kubeconfig"
	groupParts      = "What runs"
	groupBackup     = "Backups"
	groupUpstream   = "Further flags of Kubernetes' own components"
)

// Groups returns the headings of options in the order they are shown.
func Groups() []string {
	return []string{groupGeneral, groupJoining, groupNode, groupNetwork, groupAPI, groupKubeconfig, groupParts, groupBackup, groupUpstream}
}

// DefaultFile is read when nobody names a configuration file. It need not exist.
const DefaultFile = "/etc/knarr/config.yaml"

// Options returns every option of a server, in the order of the reference.
func Options() []Option {
	return slices.DeleteFunc(AllOptions(), func(o Option) bool { return o.of == agentOnly })
}

// AgentOptions returns every option of an agent, in the order of the reference.
func AgentOptions() []Option {
	return slices.DeleteFunc(AllOptions(), func(o Option) bool { return o.of == serverOnly })
}

// options are those of the Config's role.
func (c *Config) options() []Option {
	if c.Agent {
		return AgentOptions()
	}
	return Options()
}

// AllOptions returns every option of a server or an agent, in the order of the
// reference.
func AllOptions() []Option {
	return []Option{
		{Name: "config", Short: "c", Group: groupGeneral, Arg: "file", Default: DefaultFile, notInFile: true,
			Help:  "configuration file; then the folder of that name with .d behind it is read",
			field: func(c *Config) any { return &c.File }},
		{Name: "data-dir", Short: "d", Group: groupGeneral, Arg: "folder", Default: "/var/lib/knarr",
			Help:  "folder of all state",
			field: func(c *Config) any { return &c.DataDir }},
		{Name: "run-dir", Group: groupGeneral, Arg: "folder", Default: "/run/knarr", Hidden: true,
			Help:  "folder of sockets and of what a reboot may forget",
			field: func(c *Config) any { return &c.RunDir }},
		{Name: "debug", Group: groupGeneral,
			Help:  "log at debug level",
			field: func(c *Config) any { return &c.Log.Debug }},
		{Name: "log-format", Group: groupGeneral, Arg: "format", Default: "text", Choices: []string{"text", "json"},
			Help:  "form of log lines",
			field: func(c *Config) any { return &c.Log.Format }},
		{Name: "timings", Group: groupGeneral,
			Help:  "print when each component was ready",
			field: func(c *Config) any { return &c.Log.Timings }},
		{Name: "workqueue-metrics", Group: groupGeneral,
			Help:  "serve workqueue_* metrics too, for about a percent of a core at all times",
			field: func(c *Config) any { return &c.Log.WorkqueueMetrics }},

		{Name: "server", Short: "s", Group: groupJoining, Arg: "url,...", of: agentOnly, alias: "KNARR_URL",
			Help:  "servers of the cluster to join, such as https://192.0.2.1:6443",
			field: func(c *Config) any { return &c.Servers }},
		{Name: "lb-server-port", Group: groupJoining, Arg: "port", Default: "6444", of: agentOnly,
			Help:  "port on loopback that leads to the API servers",
			field: func(c *Config) any { return &c.LoadBalancerPort }},
		{Name: "token", Short: "t", Group: groupJoining, Arg: "token", Secret: true, DefaultText: "a server's own, in server/node-token of its data-dir",
			Help:  "token that nodes join with; better given by file or variable",
			field: func(c *Config) any { return &c.Token }},
		{Name: "token-file", Group: groupJoining, Arg: "file",
			Help:  "file that holds the token",
			field: func(c *Config) any { return &c.TokenFile }},

		{Name: "node-name", Group: groupNode, Arg: "name", DefaultText: "the host name in lower case",
			Help:  "name of this node",
			field: func(c *Config) any { return &c.Node.Name }},
		{Name: "node-ip", Group: groupNode, Arg: "address,...", DefaultText: "the default route's source address",
			Help:  "addresses of this node, the first being its main one",
			field: func(c *Config) any { return &c.Node.IPs }},
		{Name: "node-external-ip", Group: groupNode, Arg: "address,...",
			Help:  "addresses by which this node is reached from outside, told in its status",
			field: func(c *Config) any { return &c.Node.ExternalIPs }},
		{Name: "node-label", Group: groupNode, Arg: "key=value,...",
			Help:  "labels that the node registers with",
			field: func(c *Config) any { return &c.Node.Labels }},
		{Name: "node-taint", Group: groupNode, Arg: "key=value:effect,...",
			Help:  "taints that the node registers with",
			field: func(c *Config) any { return &c.Node.Taints }},
		{Name: "resolv-conf", Group: groupNode, Arg: "file", DefaultText: "the host's; with systemd-resolved, the one that names its upstream servers",
			Help:  "file that pods and the cluster's DNS take upstream name servers from",
			field: func(c *Config) any { return &c.Node.ResolvConf }},
		{Name: "pod-manifest-path", Group: groupNode, Arg: "path", DefaultText: "agent/pod-manifests in data-dir",
			Help:  "folder of static pods",
			field: func(c *Config) any { return &c.Node.PodManifestPath }},
		{Name: "snapshotter", Group: groupNode, Arg: "name", Default: "overlayfs", Choices: []string{"overlayfs", "native"},
			Help:  "how containerd keeps image layers; native copies them, and stands in by itself where overlays do not work",
			field: func(c *Config) any { return &c.Node.Snapshotter }},
		{Name: "private-registry", Group: groupNode, Arg: "file", Default: "/etc/knarr/registries.yaml",
			Help:  "mirrors of registries, their certificates and credentials; read at each pull",
			field: func(c *Config) any { return &c.Node.PrivateRegistry }},
		{Name: "image-credential-provider-config", Group: groupNode, Arg: "file",
			Help:  "which programs give credentials for image pulls, as a CredentialProviderConfig of the kubelet",
			field: func(c *Config) any { return &c.Node.CredentialProviderConfig }},
		{Name: "image-credential-provider-bin-dir", Group: groupNode, Arg: "folder",
			Help:  "folder of those programs",
			field: func(c *Config) any { return &c.Node.CredentialProviderBinDir }},
		{Name: "pull-socket", Group: groupNode, Arg: "socket", Hidden: true,
			Help:  "unix socket of a process that connects to registries for this node",
			field: func(c *Config) any { return &c.Node.PullSocket }},
		{Name: "container-runtime-endpoint", Group: groupNode, Arg: "socket", DefaultText: "the containerd in this process",
			Help:  "unix socket of another container runtime (CRI) to use",
			field: func(c *Config) any { return &c.Node.ContainerRuntimeEndpoint }},

		{Name: "cluster-cidr", Group: groupNetwork, of: serverOnly, Arg: "range", Default: "10.42.0.0/16",
			Help:  "addresses of pods",
			field: func(c *Config) any { return &c.Network.ClusterCIDR }},
		{Name: "service-cidr", Group: groupNetwork, of: serverOnly, Arg: "range", Default: "10.43.0.0/16",
			Help:  "addresses of Services",
			field: func(c *Config) any { return &c.Network.ServiceCIDR }},
		{Name: "cluster-dns", Group: groupNetwork, of: serverOnly, Arg: "address", DefaultText: "the tenth address of service-cidr",
			Help:  "address of the cluster's DNS server",
			field: func(c *Config) any { return &c.Network.ClusterDNS }},
		{Name: "cluster-domain", Group: groupNetwork, of: serverOnly, Arg: "name", Default: "cluster.local",
			Help:  "DNS domain of the cluster",
			field: func(c *Config) any { return &c.Network.ClusterDomain }},
		{Name: "service-node-port-range", Group: groupNetwork, of: serverOnly, Arg: "first-last", Default: "30000-32767",
			Help:  "ports of Services of type NodePort",
			field: func(c *Config) any { return &c.Network.NodePortRange }},
		{Name: "flannel-backend", Group: groupNetwork, of: serverOnly, Arg: "name", Default: "vxlan", Choices: []string{"vxlan", "host-gw", "none"},
			Help:  "how pods reach those of other nodes; none leaves the pod network to you",
			field: func(c *Config) any { return &c.Network.FlannelBackend }},
		{Name: "flannel-iface", Group: groupNetwork, Arg: "link", DefaultText: "the default route's",
			Help:  "network link by which flannel's packets leave",
			field: func(c *Config) any { return &c.Network.FlannelIface }},
		{Name: "servicelb-pool", Group: groupNetwork, of: serverOnly, Arg: "range,...", DefaultText: "none: Services of type LoadBalancer get the nodes' own",
			Help:  "addresses of the nodes' network to give to Services of type LoadBalancer, such as 192.0.2.10-192.0.2.20",
			field: func(c *Config) any { return &c.Network.ServiceLBPool }},
		{Name: "disable-kube-proxy", Group: groupNetwork, of: serverOnly,
			Help:  "leave Services to another program",
			field: func(c *Config) any { return &c.Network.DisableKubeProxy }},

		{Name: "https-listen-port", Group: groupAPI, of: serverOnly, Arg: "port", Default: "6443",
			Help:  "port of the Kubernetes API",
			field: func(c *Config) any { return &c.API.Port }},
		{Name: "bind-address", Group: groupAPI, of: serverOnly, Arg: "address", DefaultText: "all, which is 0.0.0.0, or :: in an IPv6 cluster",
			Help:  "address that the API server listens on",
			field: func(c *Config) any { return &c.API.BindAddress }},
		{Name: "advertise-address", Group: groupAPI, of: serverOnly, Arg: "address", DefaultText: "bind-address if it is one address, else the first of node-ip",
			Help:  "address by which the cluster's members reach the API server",
			field: func(c *Config) any { return &c.API.AdvertiseAddress }},
		{Name: "tls-san", Group: groupAPI, of: serverOnly, Arg: "name,...",
			Help:  "further names and addresses for the API server's certificate",
			field: func(c *Config) any { return &c.API.TLSSANs }},

		{Name: "leaf-lifetime", Group: groupAPI, of: serverOnly, Arg: "duration", DefaultText: "a year",
			Help:  "how long certificates that the server makes for itself last; they are renewed at two thirds of it",
			field: func(c *Config) any { return &c.LeafLifetime }},

		{Name: "write-kubeconfig", Short: "o", Group: groupKubeconfig, of: serverOnly, Arg: "file", Default: "/etc/knarr/kubeconfig.yaml",
			Help:  "where to write the administrator's kubeconfig",
			field: func(c *Config) any { return &c.Kubeconfig.Path }},
		{Name: "write-kubeconfig-mode", Group: groupKubeconfig, of: serverOnly, Arg: "mode", Default: "0600",
			Help:  "its permission bits, in octal",
			field: func(c *Config) any { return &c.Kubeconfig.Mode }},
		{Name: "write-kubeconfig-group", Group: groupKubeconfig, of: serverOnly, Arg: "group", DefaultText: "root's",
			Help:  "its group, by name or number",
			field: func(c *Config) any { return &c.Kubeconfig.Group }},

		{Name: "disable", Group: groupParts, of: serverOnly, Arg: "add-on,...", Choices: []string{"deploy", "dns", "helm-controller", "local-storage", "metrics-server", "runtimes", "servicelb"},
			Help:  "add-ons not to start",
			field: func(c *Config) any { return &c.Disable }},
		{Name: "default-local-storage-path", Group: groupParts, of: serverOnly, Arg: "folder", DefaultText: "storage in data-dir",
			Help:  "folder on each node that claims get their volumes in; counts when the cluster is new, then the ConfigMap local-path-config does",
			field: func(c *Config) any { return &c.LocalStoragePath }},
		{Name: "registry", Group: groupParts, of: serverOnly,
			Help:  "serve an image registry to every node, on its loopback address",
			field: func(c *Config) any { return &c.Registry.Enabled }},
		{Name: "registry-address", Group: groupParts, of: serverOnly, Arg: "address:port", Default: "127.0.0.1:5000",
			Help:  "where every node has that registry",
			field: func(c *Config) any { return &c.Registry.Address }},
		{Name: "embedded-registry", Group: groupParts, of: serverOnly,
			Help:  "have nodes pull images from each other, at port 5001, of registries that mirrors in private-registry has an entry for",
			field: func(c *Config) any { return &c.EmbeddedRegistry }},
		{Name: "disable-helm-controller", Group: groupParts, of: serverOnly,
			Help:  "the same as disable: helm-controller; HelmChart objects are left to you",
			field: func(c *Config) any { return &c.DisableHelmController }},
		{Name: "disable-agent", Group: groupParts, of: serverOnly,
			Help:  "run the control plane only: this machine becomes no node",
			field: func(c *Config) any { return &c.DisableAgent }},
		{Name: "profile", Group: groupParts, Arg: "name,...", Choices: []string{ProfileCIS, ProfileEdge},
			Help:  "settings for a purpose: cis hardens, edge spares SD cards and links; what you set yourself beats them",
			field: func(c *Config) any { return &c.Profiles }},
		{Name: "audit", Group: groupParts, of: serverOnly, Arg: "level", DefaultText: "none; with --profile cis, metadata", Choices: []string{"none", AuditMetadata},
			Help:  "what to record of requests to the API server, in server/logs/audit.log of data-dir",
			field: func(c *Config) any { return &c.Audit }},
		{Name: "control-plane-only", Group: groupParts, of: serverOnly,
			Help:  "run a control plane apart from the machine, as any user: unless told otherwise on loopback, at a free port, with a temporary data-dir that has the kubeconfig in it",
			field: func(c *Config) any { return &c.ControlPlaneOnly }},
		{Name: "datastore-synchronous", Group: groupParts, of: serverOnly, Arg: "level", Default: "full", Choices: []string{"full", "normal"},
			Help:  "what acknowledged writes survive: full, a power cut; normal, a crash of the process",
			field: func(c *Config) any { return &c.Store.Synchronous }},
		{Name: "datastore-driver", Group: groupParts, of: serverOnly, Arg: "name", Default: "sqlite", Choices: []string{"sqlite", "kine-sqlite"},
			Help:  "who keeps the objects in the SQLite file: Knarr's engine, which takes a file of kine's over for good, or kine",
			field: func(c *Config) any { return &c.Store.Driver }},
		{Name: "secrets-encryption", Group: groupParts, of: serverOnly, Default: "true",
			Help:  "encrypt Secrets in the store of a new cluster; \"knarr secrets-encrypt\" changes that of an older one",
			field: func(c *Config) any { return &c.Store.SecretsEncryption }},

		{Name: "backup-schedule", Group: groupBackup, of: serverOnly, Arg: "cron", DefaultText: "none",
			Help:  "when backups are made, such as \"@every 6h\" or \"0 3 * * *\"",
			field: func(c *Config) any { return &c.Backup.Schedule }},
		{Name: "backup-retention", Group: groupBackup, of: serverOnly, Arg: "number", Default: "7",
			Help:  "backups of this cluster that are kept",
			field: func(c *Config) any { return &c.Backup.Retention }},
		{Name: "backup-dir", Group: groupBackup, of: serverOnly, Arg: "folder", DefaultText: "backups in data-dir",
			Help:  "folder of backups",
			field: func(c *Config) any { return &c.Backup.Dir }},
		{Name: "backup-passphrase-file", Group: groupBackup, of: serverOnly, Arg: "file",
			Help:  "file whose first line is the passphrase that backups are encrypted with",
			field: func(c *Config) any { return &c.Backup.PassphraseFile }},
		{Name: "backup-recipients-file", Group: groupBackup, of: serverOnly, Arg: "file",
			Help:  "file of the public keys of age that backups are encrypted for, one a line",
			field: func(c *Config) any { return &c.Backup.RecipientsFile }},
		{Name: "replicate-to", Group: groupBackup, of: serverOnly, Arg: "place",
			Help:  "folder or s3://bucket/folder that changes of the store are copied to, a fraction of a second after they are made",
			field: func(c *Config) any { return &c.Backup.ReplicateTo }},
		{Name: "backup-s3", Group: groupBackup, of: serverOnly,
			Help:  "keep backups in a bucket of S3 in place of the folder",
			field: func(c *Config) any { return &c.Backup.S3.Enabled }},
		{Name: "backup-s3-endpoint", Group: groupBackup, of: serverOnly, Arg: "host:port", Default: "s3.amazonaws.com",
			Help:  "server of S3",
			field: func(c *Config) any { return &c.Backup.S3.Endpoint }},
		{Name: "backup-s3-endpoint-ca", Group: groupBackup, of: serverOnly, Arg: "file",
			Help:  "authorities that vouch for the server of S3, in place of the machine's",
			field: func(c *Config) any { return &c.Backup.S3.EndpointCA }},
		{Name: "backup-s3-skip-ssl-verify", Group: groupBackup, of: serverOnly,
			Help:  "accept any certificate of the server of S3",
			field: func(c *Config) any { return &c.Backup.S3.SkipSSLVerify }},
		{Name: "backup-s3-insecure", Group: groupBackup, of: serverOnly,
			Help:  "speak HTTP to the server of S3",
			field: func(c *Config) any { return &c.Backup.S3.Insecure }},
		{Name: "backup-s3-bucket", Group: groupBackup, of: serverOnly, Arg: "name",
			Help:  "bucket of backups",
			field: func(c *Config) any { return &c.Backup.S3.Bucket }},
		{Name: "backup-s3-region", Group: groupBackup, of: serverOnly, Arg: "name", Default: "us-east-1",
			Help:  "region of the bucket",
			field: func(c *Config) any { return &c.Backup.S3.Region }},
		{Name: "backup-s3-folder", Group: groupBackup, of: serverOnly, Arg: "name",
			Help:  "what the names of backups in the bucket begin with",
			field: func(c *Config) any { return &c.Backup.S3.Folder }},
		{Name: "backup-s3-credentials-file", Group: groupBackup, of: serverOnly, Arg: "file", DefaultText: "AWS' variables, such as AWS_ACCESS_KEY_ID, then the machine's role",
			Help:  "credentials, in the form of ~/.aws/credentials",
			field: func(c *Config) any { return &c.Backup.S3.CredentialsFile }},
		{Name: "backup-s3-timeout", Group: groupBackup, of: serverOnly, Arg: "duration", Default: "5m",
			Help:  "time that the transfer of one backup may take",
			field: func(c *Config) any { return &c.Backup.S3.Timeout }},

		upstream("kube-apiserver", serverOnly, func(c *Config) any { return &c.ControlPlane.APIServerArgs }),
		upstream("kube-controller-manager", serverOnly, func(c *Config) any { return &c.ControlPlane.ControllerManagerArgs }),
		upstream("kube-scheduler", serverOnly, func(c *Config) any { return &c.ControlPlane.SchedulerArgs }),
		upstream("kubelet", everyNode, func(c *Config) any { return &c.Node.KubeletArgs }),
		upstream("kube-proxy", everyNode, func(c *Config) any { return &c.Node.KubeProxyArgs }),
	}
}

// upstream is the option that hands further flags to one of Kubernetes' own components.
func upstream(component string, of role, field func(*Config) any) Option {
	return Option{Name: component + "-arg", Group: groupUpstream, Arg: "name=value", whole: true, of: of,
		Help: "flag for " + component + "; may be repeated", field: field}
}

// Env is the environment variable that sets the option.
func (o Option) Env() string {
	return "KNARR_" + strings.ToUpper(strings.ReplaceAll(o.Name, "-", "_"))
}

// IsSwitch tells whether the option is on or off.
func (o Option) IsSwitch() bool {
	switch o.field(new(Config)).(type) {
	case *bool, *On:
		return true
	}
	return false
}

// IsList tells whether the option takes several values.
func (o Option) IsList() bool {
	return isList(o.field(new(Config)))
}

// isPath tells whether the value names a file or folder.
func (o Option) isPath() bool {
	return o.Arg == "file" || o.Arg == "folder" || o.Arg == "path"
}

// SplitsAtCommas tells whether one text may hold several values.
func (o Option) SplitsAtCommas() bool { return o.IsList() && !o.whole }

// find returns the option of a name.
func find(options []Option, name string) (Option, bool) {
	i := slices.IndexFunc(options, func(o Option) bool { return o.Name == name })
	if i < 0 {
		return Option{}, false
	}
	return options[i], true
}
