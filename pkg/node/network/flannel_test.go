package network

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
)

const nodeVar = "KNARR_TEST_FLANNEL"

// TestMain is a node instead, when told so: flannel's goroutines work in the
// network namespace of their process.
func TestMain(m *testing.M) {
	if text := os.Getenv(nodeVar); text != "" {
		if err := beNode(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// beNode runs flannel against an API server of its own, to which each line of
// stdin is a Node, and writes each state of its own Node to stdout. It ends when
// stdin does.
func beNode(text string) error {
	var cfg FlannelConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	client := fake.NewClientset()
	cfg.Client = func() (kubernetes.Interface, error) { return client, nil }
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	out := json.NewEncoder(os.Stdout)
	watchNodes(ctx, client, cfg.NodeName, func(_, now *corev1.Node) { _ = out.Encode(now) })
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			err := NewFlannel(cfg).Run(ctx, make(chan struct{}))
			cfg.Log.Info("flannel ended", "err", err)
		}
	})
	in := json.NewDecoder(os.Stdin)
	for {
		n := &corev1.Node{}
		if err := in.Decode(n); err == io.EOF {
			cancel()
			running.Wait()
			return nil
		} else if err != nil {
			return err
		}
		_, err := client.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			_, err = client.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{})
		}
		if err != nil {
			return err
		}
	}
}

// flannelNode is a process that beNode runs in.
type flannelNode struct {
	cfg FlannelConfig
	pod netip.Prefix // the bridge's address
	ns  netns.NsHandle
	in  *json.Encoder
	out *json.Decoder
	cmd *exec.Cmd
}

// startFlannel starts a node whose link is a veth of the thread's namespace.
func startFlannel(t *testing.T, cluster, backend, name, link, addr, bridge string) *flannelNode {
	t.Helper()
	n := &flannelNode{pod: netip.MustParsePrefix(bridge), cfg: FlannelConfig{
		NodeName: name, ClusterCIDR: netip.MustParsePrefix(cluster), Backend: backend, NodeIP: netip.MustParsePrefix(addr).Addr(),
	}}
	cfg := must[[]byte](t)(json.Marshal(struct {
		NodeName, Backend string
		ClusterCIDR       netip.Prefix
		NodeIP            netip.Addr
	}{name, backend, n.cfg.ClusterCIDR, n.cfg.NodeIP}))
	// It has to wait for its link, which has to wait for its namespace.
	n.cmd = exec.Command("sh", "-c", "read go && exec /proc/"+fmt.Sprint(os.Getpid())+"/exe")
	n.cmd.Env = append(os.Environ(), nodeVar+"="+string(cfg))
	n.cmd.Stderr = t.Output()
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	stdin := must[io.WriteCloser](t)(n.cmd.StdinPipe())
	stdout := must[io.ReadCloser](t)(n.cmd.StdoutPipe())
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_, _ = io.Copy(io.Discard, stdout)
		if err := n.cmd.Wait(); err != nil {
			t.Errorf("node %s: %v", name, err)
		}
	})
	n.ns = must[netns.NsHandle](t)(netns.GetFromPid(n.cmd.Process.Pid))
	t.Cleanup(func() { n.ns.Close() })
	run(t, "ip", "link", "set", link, "netns", fmt.Sprint(n.cmd.Process.Pid))
	h := must[*netlink.Handle](t)(netlink.NewHandleAt(n.ns))
	defer h.Close()
	linkUp(t, h, link, addr)
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: BridgeName}}); err != nil {
		t.Fatal(err)
	}
	linkUp(t, h, BridgeName, bridge)
	must[int](t)(fmt.Fprintln(stdin, "go"))
	n.in, n.out = json.NewEncoder(stdin), json.NewDecoder(bufio.NewReader(stdout))
	return n
}

// tell gives the node's API server a Node.
func (n *flannelNode) tell(t *testing.T, node *corev1.Node) {
	t.Helper()
	if err := n.in.Encode(node); err != nil {
		t.Fatal(err)
	}
}

// annotated waits for flannel to have written its lease to the own Node.
func (n *flannelNode) annotated(t *testing.T) *corev1.Node {
	t.Helper()
	for {
		node := &corev1.Node{}
		if err := n.out.Decode(node); err != nil {
			t.Fatalf("node %s: %v", n.cfg.NodeName, err)
		}
		if node.Annotations[annotationManaged] == "true" {
			return node
		}
	}
}

// routed waits until the node has a route to the other's pods.
func (n *flannelNode) routed(t *testing.T, other *flannelNode) {
	t.Helper()
	routes, done := make(chan netlink.RouteUpdate), make(chan struct{})
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{Namespace: &n.ns, ListExisting: true}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		close(done)
		for range routes {
		}
	}()
	for r := range routes {
		if r.Type == syscall.RTM_NEWROUTE && r.Dst != nil && r.Dst.String() == other.pod.Masked().String() {
			return
		}
	}
	t.Fatalf("node %s has no route to %s", n.cfg.NodeName, other.pod)
}

// server is where join lets the node's bridge answer.
func (n *flannelNode) server() string { return netip.AddrPortFrom(n.pod.Addr(), 8080).String() }

// join starts two nodes on one link and tells each of the other.
func join(t *testing.T, cluster, backend string, addrs, bridges [2]string) (a, b *flannelNode) {
	t.Helper()
	inNetns(t)
	run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
	a = startFlannel(t, cluster, backend, "a", "up0", addrs[0], bridges[0])
	b = startFlannel(t, cluster, backend, "b", "up1", addrs[1], bridges[1])
	for _, n := range []*flannelNode{a, b} {
		n.tell(t, apiNode(n.cfg.NodeName, ""))
		n.tell(t, apiNode(n.cfg.NodeName, n.pod.Masked().String()))
	}
	aNode, bNode := a.annotated(t), b.annotated(t)
	a.tell(t, bNode)
	b.tell(t, aNode)
	a.routed(t, b)
	b.routed(t, a)
	enter(t, b.ns)
	serve(t, b.server())
	enter(t, a.ns)
	return a, b
}

func TestNodesReachEachOthersPods(t *testing.T) {
	for _, backend := range []string{BackendVXLAN, BackendHostGW} {
		t.Run(backend, func(t *testing.T) {
			_, b := join(t, "10.42.0.0/16", backend,
				[2]string{"198.51.100.1/24", "198.51.100.2/24"}, [2]string{"10.42.0.1/24", "10.42.1.1/24"})
			want := map[string]string{BackendVXLAN: "10.42.0.0", BackendHostGW: "198.51.100.1"}[backend]
			if got := ask(t, b.server()); got != want {
				t.Errorf("client has address %s, want %s", got, want)
			}
		})
		t.Run(backend+" over IPv6", func(t *testing.T) {
			_, b := join(t, "fd42::/56", backend,
				[2]string{"2001:db8::1/64", "2001:db8::2/64"}, [2]string{"fd42::1/64", "fd42:0:0:1::1/64"})
			ask(t, b.server())
		})
	}
}

func TestOverlayComesBackAfterItsLinkWasDeleted(t *testing.T) {
	a, b := join(t, "10.42.0.0/16", BackendVXLAN,
		[2]string{"198.51.100.1/24", "198.51.100.2/24"}, [2]string{"10.42.0.1/24", "10.42.1.1/24"})
	run(t, "ip", "link", "del", "flannel.1")
	a.routed(t, b)
	if got := ask(t, b.server()); got != "10.42.0.0" {
		t.Errorf("client has address %s", got)
	}
}

func TestLeaseComesBackWhenTheNodeIsMadeAnew(t *testing.T) {
	a, b := join(t, "10.42.0.0/16", BackendVXLAN,
		[2]string{"198.51.100.1/24", "198.51.100.2/24"}, [2]string{"10.42.0.1/24", "10.42.1.1/24"})
	b.tell(t, apiNode("b", "10.42.1.0/24"))
	b.tell(t, apiNode("x", "")) // a bystander without a lease
	again := b.annotated(t)
	a.tell(t, again)
	if got := ask(t, b.server()); got != "10.42.0.0" {
		t.Errorf("client has address %s", got)
	}
}

func TestLeaseIsWhatUpstreamWrites(t *testing.T) {
	inNetns(t)
	run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
	n := startFlannel(t, "10.42.0.0/16", BackendVXLAN, "a", "up0", "198.51.100.1/24", "10.42.3.1/24")
	own := apiNode("a", "10.42.3.0/24")
	own.Annotations = map[string]string{
		annotationData: `{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}`, // from before a reboot
		"mine":         "stays",
	}
	n.tell(t, own)
	got := n.annotated(t).Annotations
	for key, want := range map[string]string{
		"flannel.alpha.coreos.com/kube-subnet-manager": "true",
		"flannel.alpha.coreos.com/backend-type":        "vxlan",
		"flannel.alpha.coreos.com/backend-data":        `{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}`,
		"flannel.alpha.coreos.com/public-ip":           "198.51.100.1",
		"mine":                                         "stays",
	} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
}
