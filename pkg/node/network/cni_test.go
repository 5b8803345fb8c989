package network

import (
	"encoding/json"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/fsnotify/fsnotify"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/knarr-dev/knarr/pkg/bundle"
)

func newCNI(t *testing.T) *CNI {
	return NewCNI(CNIConfig{
		Dir: filepath.Join(t.TempDir(), "net.d"), IPAMDir: filepath.Join(t.TempDir(), "ipam"), Backend: BackendVXLAN,
		NodeIP: netip.MustParseAddr("198.51.100.1"), Log: testLog(t),
	})
}

func write(t *testing.T, c *CNI, subnet string) {
	t.Helper()
	if err := c.Write(netip.MustParsePrefix(subnet)); err != nil {
		t.Fatal(err)
	}
}

func TestConflistIsWhatPluginsExpect(t *testing.T) {
	inNetns(t)
	run(t, "ip", "link", "add", "up0", "mtu", "1400", "type", "veth", "peer", "name", "up1")
	run(t, "ip", "addr", "add", "198.51.100.1/24", "dev", "up0")
	c := newCNI(t)
	write(t, c, "10.42.3.0/24")
	list := must[*libcni.NetworkConfigList](t)(libcni.ConfListFromFile(c.Path()))
	if list.Name != "knarr" || list.CNIVersion != "1.0.0" || len(list.Plugins) != 1 {
		t.Fatalf("%+v", list)
	}
	var got map[string]any
	if err := json.Unmarshal(list.Plugins[0].Bytes, &got); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
		"promiscMode": false, "ipMasq": false, "mtu": 1350.0,
	} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
	if !list.Plugins[0].Network.Capabilities["portMappings"] {
		t.Error("host ports are not asked for")
	}
	if info := must[fs.FileInfo](t)(os.Stat(c.Path())); info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestConflistIsWrittenOnceAndInPlace(t *testing.T) {
	inNetns(t)
	c := newCNI(t)
	write(t, c, "10.42.128.0/24")
	old := must[fs.FileInfo](t)(os.Stat(c.Path()))

	w := must[*fsnotify.Watcher](t)(fsnotify.NewWatcher())
	defer w.Close()
	if err := w.Add(filepath.Dir(c.Path())); err != nil {
		t.Fatal(err)
	}
	write(t, c, "10.42.128.0/24")
	write(t, c, "10.42.1.0/24") // shorter
	write(t, c, "10.42.1.0/24")
	if err := os.WriteFile(filepath.Join(filepath.Dir(c.Path()), "last"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var writes int
	for e := range w.Events {
		if filepath.Base(e.Name) == "last" {
			break
		}
		if e.Op != fsnotify.Write {
			t.Errorf("%v", e)
		}
		writes++
	}
	if writes != 1 {
		t.Errorf("%d writes, want 1", writes)
	}
	if now := must[fs.FileInfo](t)(os.Stat(c.Path())); !os.SameFile(old, now) {
		t.Error("another file was put in its place, which containerd does not notice")
	}
	list := must[*libcni.NetworkConfigList](t)(libcni.ConfListFromFile(c.Path()))
	var plugin bridge
	if err := json.Unmarshal(list.Plugins[0].Bytes, &plugin); err != nil {
		t.Fatal(err)
	}
	if got := plugin.IPAM.Ranges[0][0].Subnet.String(); got != "10.42.1.0/24" {
		t.Errorf("subnet %s", got)
	}
}

func TestAnotherNetworkThatComesFirstIsHonoured(t *testing.T) {
	for name, ours := range map[string]bool{
		"05-cilium.conflist": false, "10-calico.conflist": false, "10-net.conf": true, "00-readme.txt": true, "99-x.json": true,
	} {
		t.Run(name, func(t *testing.T) {
			inNetns(t)
			c := newCNI(t)
			dir := filepath.Dir(c.Path())
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
			write(t, c, "10.42.0.0/24")
			if _, err := os.Stat(c.Path()); (err == nil) != ours {
				t.Errorf("stat of our configuration: %v", err)
			}
		})
	}
}

// testNode is a node with a link to an outside namespace.
type testNode struct {
	ns, outside netns.NsHandle
	rules       *Rules
	cni         *CNI
}

// newNode makes the node 198.51.100.1, forwarding, and a neighbour
// 198.51.100.2, and leaves the thread on the node.
func newNode(t *testing.T) *testNode {
	n := &testNode{outside: inNetns(t)}
	n.ns = newNetns(t)
	run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
	run(t, "ip", "link", "set", "up1", "netns", pathOf(n.outside))
	run(t, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
	linkUp(t, must[*netlink.Handle](t)(netlink.NewHandleAt(n.ns)), "up0", "198.51.100.1/24")
	linkUp(t, must[*netlink.Handle](t)(netlink.NewHandleAt(n.outside)), "up1", "198.51.100.2/24")
	n.rules = newRules(t, "10.42.0.0/16")
	n.cni = newCNI(t)
	write(t, n.cni, "10.42.0.0/24")
	return n
}

type testPod struct {
	ns   netns.NsHandle
	addr netip.Addr
}

// plugPod makes a pod with host port 80 by the real plugins, as containerd does.
func plugPod(t *testing.T) (testPod, *testNode) {
	t.Helper()
	archive, err := bundle.OpenFS(os.DirFS("../../../build/bundle"), "bundle.tar.zst")
	if err != nil {
		t.Skipf("no plugins: %v", err)
	}
	unpacked := must[*bundle.Unpacked](t)(archive.Unpack(t.TempDir()))

	n := newNode(t)
	pod := testPod{ns: newNetns(t)}
	enter(t, n.ns)
	plugins := libcni.NewCNIConfigWithCacheDir([]string{unpacked.CNIDir}, n.rules.cfg.CacheDir, nil)
	list := must[*libcni.NetworkConfigList](t)(libcni.ConfListFromFile(n.cni.Path()))
	conf := &libcni.RuntimeConf{
		ContainerID: "pod", IfName: "eth0", NetNS: pathOf(pod.ns),
		CapabilityArgs: map[string]any{"portMappings": []any{tcpPort(80, 8080)}},
	}
	result, err := plugins.AddNetworkList(t.Context(), list, conf)
	if err != nil {
		t.Fatal(err)
	}
	addr := must[*types100.Result](t)(types100.NewResultFromResult(result)).IPs[0].Address.IP
	pod.addr = fromIP(addr)
	return pod, n
}

// enterThread is enter for a goroutine of its own.
func enterThread(ns netns.NsHandle) {
	runtime.LockOSThread()
	if err := netns.Set(ns); err != nil {
		panic(err)
	}
}
