package config_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/knarr-dev/knarr/pkg/config"
)

// host is a machine with files of the given contents by path.
func host(name string, files map[string]string) config.Host {
	return config.Host{
		Name: name,
		Address: func(family int) (netip.Addr, error) {
			if family == 6 {
				return netip.MustParseAddr("2001:db8::10"), nil
			}
			return netip.MustParseAddr("192.0.2.10"), nil
		},
		ReadFile: func(path string) ([]byte, error) {
			if text, ok := files[path]; ok {
				return []byte(text), nil
			}
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		},
		HasGroup: func(group string) bool { return group == "staff" },
	}
}

// load reads flags given as "name=value", with no file and no environment.
func load(t *testing.T, flags ...string) (*config.Config, error) {
	t.Helper()
	src := config.Sources{Environ: []string{"KNARR_CONFIG=" + emptyFile(t)}}
	for _, f := range flags {
		name, text, _ := strings.Cut(f, "=")
		src.Flags = append(src.Flags, config.Given{Name: name, Value: text})
	}
	c, _, err := config.Load(src)
	return c, err
}

func emptyFile(t *testing.T) string {
	t.Helper()
	path := t.TempDir() + "/config.yaml"
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// lines are the problems of an error.
func lines(err error) []string {
	if err == nil {
		return nil
	}
	return strings.Split(err.Error(), "\n")
}

func TestEveryProblemIsOneLineThatSaysWhereWhyAndWhatToDo(t *testing.T) {
	long := strings.Repeat("a", 64)
	for name, c := range map[string]struct {
		flags []string
		want  string // "" where there is none
	}{
		"defaults are fine":            {nil, ""},
		"IPv6 is fine":                 {[]string{"cluster-cidr=fd00:42::/56", "service-cidr=fd00:43::/112"}, ""},
		"families mixed":               {[]string{"service-cidr=fd00:43::/112"}, `--service-cidr: service-cidr fd00:43::/112 is of another address family than cluster-cidr 10.42.0.0/16; give both as IPv4 or both as IPv6`},
		"ranges overlap":               {[]string{"cluster-cidr=10.43.0.0/20"}, `--cluster-cidr: service-cidr 10.43.0.0/16 overlaps cluster-cidr 10.43.0.0/20, so that a Service could take a pod's address; give ranges apart from each other`},
		"host bits":                    {[]string{"cluster-cidr=10.42.7.0/16"}, `--cluster-cidr: "10.42.7.0/16" has bits set behind the first 16; write 10.42.0.0/16`},
		"two families":                 {[]string{"cluster-cidr=10.42.0.0/16,fd00::/56"}, `--cluster-cidr: "10.42.0.0/16,fd00::/56" must be one range; two address families at once are not supported`},
		"no range":                     {[]string{"service-cidr=10.43.0.0/33"}, `--service-cidr: "10.43.0.0/33" must be a range of addresses, such as 10.42.0.0/16`},
		"pods on loopback":             {[]string{"cluster-cidr=127.1.0.0/16"}, `--cluster-cidr: 127.1.0.0/16 overlaps 127.0.0.0/8, which no network may route; give a private range`},
		"node inside the pods' range":  {[]string{"node-ip=10.42.3.4"}, `--node-ip: cluster-cidr 10.42.0.0/16 holds the node's own address 10.42.3.4, which would be unreachable; give another cluster-cidr`},
		"own address inside Services":  {[]string{"service-cidr=192.0.2.0/24"}, `--service-cidr: service-cidr 192.0.2.0/24 holds the node's own address 192.0.2.10, which would be unreachable; give another service-cidr`},
		"no room for a node":           {[]string{"cluster-cidr=10.42.0.0/25"}, `--cluster-cidr: 10.42.0.0/25 has no room for one node, which gets a /24; give a range of /16 or larger`},
		"room by another mask":         {[]string{"cluster-cidr=10.42.0.0/25", "kube-controller-manager-arg=node-cidr-mask-size=26"}, ""},
		"too many nodes":               {[]string{"cluster-cidr=fd00::/40", "service-cidr=fd01::/112"}, `--cluster-cidr: fd00::/40 is too large for Kubernetes to divide among nodes by /64; give a range of /48 or smaller`},
		"few Services":                 {[]string{"service-cidr=10.43.0.0/29"}, `--service-cidr: 10.43.0.0/29 has fewer than 16 addresses; give a range of /24 or larger`},
		"DNS outside":                  {[]string{"cluster-dns=10.96.0.10"}, `--cluster-dns: cluster-dns 10.96.0.10 lies outside of service-cidr 10.43.0.0/16; leave cluster-dns out, or give an address inside, such as 10.43.0.10`},
		"DNS outside but one's own":    {[]string{"cluster-dns=10.96.0.10", "disable=dns"}, ""},
		"DNS at the API's address":     {[]string{"cluster-dns=10.43.0.1"}, `--cluster-dns: 10.43.0.1 is taken: the first addresses of service-cidr are the network's and the API server's; give a later one, such as 10.43.0.10`},
		"domain":                       {[]string{"cluster-domain=cluster_local"}, `--cluster-domain: "cluster_local" is not a domain name; use lower-case letters, digits, '-' and '.', such as cluster.local`},
		"ports backwards":              {[]string{"service-node-port-range=32767-30000"}, `--service-node-port-range: "32767-30000" is not a range of ports; give the first and the last of 1 to 65535, such as 30000-32767`},
		"API port among NodePorts":     {[]string{"https-listen-port=30443"}, `--https-listen-port: service-node-port-range 30000-32767 holds port 30443 of the API server, which a Service could take; move one of them`},
		"port":                         {[]string{"https-listen-port=70000"}, `--https-listen-port: 70000 is not a port; give one of 1 to 65535`},
		"backend":                      {[]string{"flannel-backend=vxlna"}, `--flannel-backend: "vxlna" is not known to flannel-backend; did you mean vxlan?`},
		"snapshotter":                  {[]string{"snapshotter=btrfs"}, `--snapshotter: "btrfs" is not known to snapshotter; give overlayfs or native`},
		"durability":                   {[]string{"datastore-synchronous=off"}, `--datastore-synchronous: "off" is not known to datastore-synchronous; give full or normal`},
		"registry for all":             {[]string{"registry-address=0.0.0.0:5000"}, `--registry-address: "0.0.0.0:5000" is not a loopback address: the registry knows no passwords, and whoever reached it could replace the images that pods run; give one such as 127.0.0.1:5000, which every node has, and put a proxy with TLS and passwords before it for others`},
		"registry without a port":      {[]string{"registry-address=127.0.0.1"}, `--registry-address: "127.0.0.1" is not an address with a port; give one such as 127.0.0.1:5000`},
		"registry on the API's port":   {[]string{"registry=true", "registry-address=127.0.0.1:6443"}, `--registry-address: "127.0.0.1:6443" has the port of the API server; choose another`},
		"half a credential provider":   {[]string{"image-credential-provider-bin-dir=/opt"}, `--image-credential-provider-bin-dir: image-credential-provider-config and image-credential-provider-bin-dir go together, and one of them is missing; give both`},
		"no credential provider":       {[]string{"image-credential-provider-config=/no/such.yaml", "image-credential-provider-bin-dir=/"}, `--image-credential-provider-config: /no/such.yaml can't be read: file does not exist; give a file of kind CredentialProviderConfig`},
		"add-on":                       {[]string{"disable=dsn"}, `--disable: "dsn" is not known to disable; did you mean dns?`},
		"link":                         {[]string{"flannel-iface=eth0/24"}, `--flannel-iface: "eth0/24" can't be a link's name; "ip link" lists them`},
		"API on loopback":              {[]string{"bind-address=127.0.0.1"}, `--bind-address: 127.0.0.1 is loopback, where pods can't reach the API server; give an address of the node, or 0.0.0.0`},
		"API on loopback with no node": {[]string{"bind-address=127.0.0.1", "disable-agent=true"}, ""},
		"advertised loopback":          {[]string{"advertise-address=127.0.0.1"}, `--advertise-address: 127.0.0.1 is no address that others can reach; give one of the node's addresses`},
		"SAN with port":                {[]string{"tls-san=ok.example.org,k8s.example.org:6443"}, `--tls-san: "k8s.example.org:6443" is neither an address nor a DNS name; give it without scheme and port, such as k8s.example.org`},
		"SANs":                         {[]string{"tls-san=*.example.org,192.0.2.1,2001:db8::1,K8S.example.org"}, ""},
		"mode not octal":               {[]string{"write-kubeconfig-mode=0689"}, `--write-kubeconfig-mode: "0689" must be permission bits in octal, such as 0600 or 640`},
		"mode unreadable":              {[]string{"write-kubeconfig-mode=0044"}, `--write-kubeconfig-mode: 0044 are not permission bits that let the owner read; give one such as 0600 or 0640`},
		"group":                        {[]string{"write-kubeconfig-group=nobodies"}, `--write-kubeconfig-group: "nobodies" is not a group of this machine; create it (groupadd nobodies) or give another`},
		"known group":                  {[]string{"write-kubeconfig-group=staff"}, ""},
		"node name":                    {[]string{"node-name=Node_1."}, `--node-name: "Node_1." can't be a node's name (lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit); give --node-name node-1`},
		"long node name":               {[]string{"node-name=" + long}, `--node-name: "` + long + `" has 64 letters, but Kubernetes allows 63 in the label kubernetes.io/hostname; give a shorter --node-name`},
		"node address":                 {[]string{"node-ip=0.0.0.0"}, `--node-ip: 0.0.0.0 is no address that others can reach; give an address of this machine; "ip address" lists them`},
		"node address's family":        {[]string{"node-ip=2001:db8::1"}, `--node-ip: 2001:db8::1 is of another address family than cluster-cidr 10.42.0.0/16; give an address of that family first`},
		"label without value":          {[]string{"node-label=gpu"}, `--node-label: "gpu" is not of the form key=value; for a label without a value write gpu=`},
		"label key":                    {[]string{"node-label=a b=c"}, `--node-label: "a b" can't be a label's key; use [example.org/]name of at most 63 letters, digits, '-', '_' and '.'`},
		"label value":                  {[]string{"node-label=a=-"}, `--node-label: "-" can't be the value of label a; use at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit`},
		"restricted label":             {[]string{"node-label=node-role.kubernetes.io/db=true"}, `--node-label: "node-role.kubernetes.io/db" is a label that a node may not give itself; set it once the node is up: knarr kubectl label node box node-role.kubernetes.io/db=true`},
		"labels":                       {[]string{"node-label=a=,example.org/b=c,topology.kubernetes.io/zone=z,node.kubernetes.io/x=y"}, ""},
		"taint form":                   {[]string{"node-taint=a=b"}, `--node-taint: "a=b" is not of the form key=value:effect; effects are NoSchedule, PreferNoSchedule or NoExecute`},
		"taint effect":                 {[]string{"node-taint=a=b:noSchedule"}, `--node-taint: "a=b:noSchedule" ends with an unknown effect; did you mean NoSchedule?`},
		"taint key":                    {[]string{"node-taint==b:NoSchedule"}, `--node-taint: "=b:NoSchedule" has a key or value that Kubernetes does not allow; use [example.org/]name=value of letters, digits, '-', '_' and '.'`},
		"taints":                       {[]string{"node-taint=a:NoSchedule,b=c:NoExecute"}, ""},
		"resolv.conf":                  {[]string{"resolv-conf=/etc/nothing"}, `--resolv-conf: /etc/nothing can't be read: file does not exist; leave it out, or give a file with "nameserver" lines`},
		"runtime":                      {[]string{"container-runtime-endpoint=tcp://127.0.0.1:1"}, `--container-runtime-endpoint: "tcp://127.0.0.1:1" is not a unix socket; give one such as unix:///run/crio/crio.sock`},
		"upstream flag":                {[]string{"kubelet-arg=max-pods 250"}, `--kubelet-arg: "max-pods 250" is not of the form name=value; give each flag with an option of its own`},
		"schedule":                     {[]string{"backup-schedule=@every 6h", "backup-s3=true", "backup-s3-bucket=b", "secrets-encryption=false"}, ""},
		"schedule unknown":             {[]string{"backup-schedule=nightly"}, `--backup-schedule: "nightly" is not a time table: expected exactly 5 fields, found 1: [nightly]; give five fields as cron has them, or such as "@every 6h"`},
		"no backup kept":               {[]string{"backup-retention=-1"}, `--backup-retention: -1 would leave no backup; give 1 or more`},
		"two ways to encrypt":          {[]string{"backup-passphrase-file=/a", "backup-recipients-file=/b"}, `--backup-passphrase-file: backup-passphrase-file cannot be used beside backup-recipients-file; leave one of them out`},
		"replica":                      {[]string{"replicate-to=s3://b/edge", "backup-recipients-file=/a"}, ""},
		"replica somewhere":            {[]string{"replicate-to=replica"}, `--replicate-to: "replica" is neither an absolute path nor s3://bucket/folder; give one of them`},
		"replica with a passphrase":    {[]string{"replicate-to=/mnt", "backup-passphrase-file=/a"}, `--backup-passphrase-file: backup-passphrase-file cannot be used beside replicate-to: the passphrase would have to be worked on each second; give backup-recipients-file in its place`},
		"bucket":                       {[]string{"backup-s3=true"}, `--backup-s3: backup-s3 is set without a bucket; give backup-s3-bucket`},
		"endpoint":                     {[]string{"backup-s3=true", "backup-s3-bucket=b", "backup-s3-endpoint=http://s3:9000"}, `--backup-s3-endpoint: "http://s3:9000" is not host:port; leave out the scheme and the path; backup-s3-insecure uses HTTP`},
		"time of a transfer":           {[]string{"backup-s3-timeout=5"}, `--backup-s3-timeout: "5" is not a duration; give one such as 5m`},
		"two upstream flags in one":    {[]string{"kubelet-arg=v,alsologtostderr=true"}, `--kubelet-arg: "v,alsologtostderr=true" is not of the form name=value; give each flag with an option of its own`},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := load(t, c.flags...)
			got := lines(errors.Join(err, cfg.Complete(host("box", nil))))
			var want []string
			if c.want != "" {
				want = []string{c.want}
			}
			if !slices.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), c.want)
			}
		})
	}
}

func TestMachineDecidesWhatNobodySet(t *testing.T) {
	cfg, err := load(t, "data-dir=relative", "kubelet-arg=--v=2", "kubelet-arg=logtostderr", "container-runtime-endpoint=/run/crio.sock", "cluster-cidr=fd00:42::/56", "service-cidr=fd00:43::/112")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time must change nothing
		if err := cfg.Complete(host("BOX", nil)); err != nil {
			t.Fatal(err)
		}
		wd, _ := os.Getwd()
		for what, pair := range map[string][2]string{
			"name":       {cfg.Node.Name, "box"},
			"address":    {cfg.Node.IPs[0].String(), "2001:db8::10"},
			"advertised": {cfg.API.AdvertiseAddress.String(), "2001:db8::10"},
			"listens on": {cfg.API.BindAddress.String(), "::"},
			"dns":        {cfg.Network.ClusterDNS.String(), "fd00:43::a"},
			"api":        {cfg.APIServiceIP().String(), "fd00:43::1"},
			"data":       {cfg.DataDir, wd + "/relative"},
			"manifests":  {cfg.Node.PodManifestPath, wd + "/relative/agent/pod-manifests"},
			"flags":      {strings.Join(cfg.Node.KubeletArgs, " "), "v=2 logtostderr=true"},
			"runtime":    {cfg.Node.ContainerRuntimeEndpoint, "unix:///run/crio.sock"},
		} {
			if pair[0] != pair[1] {
				t.Errorf("%s: got %s, want %s", what, pair[0], pair[1])
			}
		}
	}
}

func TestAdvertisedAddressIsTheOneListenedOn(t *testing.T) {
	cfg, err := load(t, "bind-address=192.0.2.77")
	if err := errors.Join(err, cfg.Complete(host("box", nil))); err != nil {
		t.Fatal(err)
	}
	if got := cfg.API.AdvertiseAddress.String(); got != "192.0.2.77" {
		t.Errorf("got %s", got)
	}
}

func TestHostNameThatIsNoNodeNameIsToldWithAFix(t *testing.T) {
	cfg, _ := load(t)
	want := `node-name: the host name "Bo_x" can't be a node's name (lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit); give --node-name bo-x`
	if got := lines(cfg.Complete(host("Bo_x", nil))); !slices.Equal(got, []string{want}) {
		t.Errorf("got %q", got)
	}
	cfg, _ = load(t)
	want = "node-name: the machine has no host name to take; give --node-name"
	if got := lines(cfg.Complete(host("", nil))); !slices.Equal(got, []string{want}) {
		t.Errorf("got %q", got)
	}
}

func TestMachineWithoutAddressIsToldOnce(t *testing.T) {
	h := host("box", nil)
	h.Address = func(int) (netip.Addr, error) { return netip.Addr{}, errors.New("no route") }
	cfg, _ := load(t)
	want := "node-ip: no address found: no route; give --node-ip"
	if got := lines(cfg.Complete(h)); !slices.Equal(got, []string{want}) {
		t.Errorf("got %q", got)
	}
}

func TestUpstreamServersAreNeverALoopbackStub(t *testing.T) {
	const own, systemd = "/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"plain":                    {map[string]string{own: "nameserver 192.0.2.53\n", systemd: "nameserver 192.0.2.54\n"}, own},
		"stub and servers":         {map[string]string{own: "# stub\nnameserver 127.0.0.53\noptions edns0\n", systemd: "nameserver 192.0.2.54\n"}, systemd},
		"stub alone":               {map[string]string{own: "nameserver 127.0.0.1\n"}, own},
		"stub and a server":        {map[string]string{own: "nameserver ::1\nnameserver 2001:db8::53\n", systemd: "nameserver 192.0.2.54\n"}, own},
		"a machine without any":    {nil, ""},
		"only systemd's own names": {map[string]string{systemd: "nameserver 192.0.2.54\n"}, systemd},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, _ := load(t)
			if err := cfg.Complete(host("box", c.files)); err != nil {
				t.Fatal(err)
			}
			if cfg.Node.ResolvConf != c.want {
				t.Errorf("got %q, want %q", cfg.Node.ResolvConf, c.want)
			}
		})
	}
}

func TestConfigOfAnEmbedderGetsDefaultsAndChecks(t *testing.T) {
	cfg := &config.Config{DataDir: "/srv/knarr"}
	if err := cfg.Complete(host("box", nil)); err != nil {
		t.Fatal(err)
	}
	if cfg.API.Port != 6443 || cfg.Network.ClusterCIDR.String() != "10.42.0.0/16" || cfg.DataDir != "/srv/knarr" {
		t.Errorf("got %+v", cfg)
	}
	cfg.Network.FlannelBackend = "udp"
	want := `flannel-backend: "udp" is not known to flannel-backend; give vxlan, host-gw or none`
	if got := lines(cfg.Complete(host("box", nil))); !slices.Equal(got, []string{want}) {
		t.Errorf("got %q", got)
	}
}

func TestThisMachineIsReadWithoutAskingAnyone(t *testing.T) {
	h := config.ThisHost()
	if h.Name == "" {
		t.Error("no host name")
	}
	if addr, err := h.Address(4); err == nil && !addr.Is4() {
		t.Errorf("an IPv4 address was wanted, got %s", addr)
	}
	if !h.HasGroup("root") || !h.HasGroup("0") || h.HasGroup("no such group") || h.HasGroup("") {
		t.Error("groups are not told apart")
	}
}

func TestAControlPlaneApartNeedsNothingOfItsMachine(t *testing.T) {
	nowhere := config.Host{
		Address:  func(int) (netip.Addr, error) { return netip.Addr{}, errors.New("no address") },
		ReadFile: func(string) ([]byte, error) { return nil, fs.ErrPermission },
	}
	for family, flags := range map[string][]string{
		"IPv4": {"control-plane-only=true"},
		"IPv6": {"control-plane-only=true", "cluster-cidr=fd00:42::/56", "service-cidr=fd00:43::/112"},
	} {
		c, err := load(t, flags...)
		if err := errors.Join(err, c.Complete(nowhere)); err != nil {
			t.Fatalf("%s: %v", family, err)
		}
		if !c.DisableAgent || !c.API.BindAddress.IsLoopback() || c.API.Port != 0 || c.DataDir != "" || c.RunDir != "" || c.Kubeconfig.Path != "" {
			t.Errorf("%s: %+v", family, c)
		}
		before := *c
		if err := c.Complete(nowhere); err != nil || !reflect.DeepEqual(before, *c) {
			t.Errorf("%s: completed again: %v, %+v", family, err, c)
		}
	}
	// What was asked for stays, also where it is the default of a machine.
	c, err := load(t, "control-plane-only=true", "data-dir=/var/lib/knarr", "https-listen-port=6443", "write-kubeconfig=/tmp/k", "bind-address=0.0.0.0", "node-name=n")
	if err := errors.Join(err, c.Complete(nowhere)); err != nil {
		t.Fatal(err)
	}
	if c.DataDir != "/var/lib/knarr" || c.API.Port != 6443 || c.Kubeconfig.Path != "/tmp/k" || !c.API.BindAddress.IsUnspecified() || c.Node.Name != "n" {
		t.Errorf("%+v", c)
	}
}

// The machine's configuration is for its own cluster, and only root may read it.
func TestAControlPlaneApartReadsNoFileUnlessItIsNamed(t *testing.T) {
	file := t.TempDir() + "/config.yaml"
	if err := os.WriteFile(file, []byte("https-listen-port: 7443\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []config.Given{{Name: "control-plane-only", Value: "true"}, {Name: "config", Value: file}}
	c, _, err := config.Load(config.Sources{Flags: flags})
	if err != nil || c.API.Port != 7443 {
		t.Errorf("%v, port %d", err, c.API.Port)
	}
	if c, _, err = config.Load(config.Sources{Flags: flags[:1]}); err != nil || !c.ControlPlaneOnly {
		t.Errorf("%v, %+v", err, c)
	}
}
