package throwaway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/knarr-dev/knarr/pkg/cluster"
	"github.com/knarr-dev/knarr/pkg/dial"
	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
	"github.com/knarr-dev/knarr/pkg/throwaway/nat"
	"github.com/knarr-dev/knarr/pkg/token"
)

// What a keeper inherits from the one who starts it.
const (
	orderFD  = 3 // keeperOrder, JSON
	reportFD = 4 // for reports, JSON, one after the other
	lifeFD   = 5 // ends with the one who started it, unless detached is read first
	lockFD   = 6 // the cluster's lock
)

// detached is what a keeper is told that is to live on by itself.
const detached = "detached"

// startTimeout bounds the start of a cluster on a very slow machine.
const startTimeout = 5 * time.Minute

// restartAfter is the pause before a node's server that ended is started again,
// as a systemd unit would.
const restartAfter = time.Second

// keeperOrder is what a keeper is to keep.
type keeperOrder struct {
	Config Config  `json:"config"`
	Folder folder  `json:"folder"`
	Cache  string  `json:"cache"`
	Record *Record `json:"record"`
}

// A report is what a keeper says. The last one is Ready or Error.
type report struct {
	Node  string  `json:"node,omitempty"` // a node that has become ready
	Ready *Record `json:"ready,omitempty"`
	Error string  `json:"error,omitempty"`
}

// A keeper is the process that a cluster lives and ends with. Its hosts die with
// it, since the kernel then closes what they wait on. It listens in the network
// that it was started in, and connects from within the nodes'.
type keeper struct {
	keeperOrder
	out   *json.Encoder
	life  <-chan string // says detached, or is closed
	lab   *lab.Lab
	token string
	apart *cluster.Cluster // a control plane in this process, in place of nodes

	nodes     []*keptNode
	listeners []net.Listener // of the API server and of ports
	pulls     []net.Listener
	outlet    *nat.Gateway // or nil

	registry    sync.WaitGroup
	endRegistry context.CancelFunc // or nil
	ended       chan error         // a node gave up
}

type keptNode struct {
	name string
	host *Host
	opts ServerOptions
	log  *os.File
	now  *Server
}

// Keep is the whole life of a keeper, until ctx ends or its starter does. It is
// what Knarr calls itself with.
func Keep(ctx context.Context) error {
	// They are open across our start, and must not be across those of others.
	for fd := orderFD; fd <= lockFD; fd++ {
		unix.CloseOnExec(fd)
	}
	signal.Ignore(syscall.SIGHUP)
	orders, lock := os.NewFile(orderFD, "orders"), os.NewFile(lockFD, "lock")
	defer lock.Close()
	k := &keeper{out: json.NewEncoder(os.NewFile(reportFD, "report")), life: readLife(os.NewFile(lifeFD, "life")), ended: make(chan error, maxNodes)}
	err := json.NewDecoder(orders).Decode(&k.keeperOrder)
	orders.Close()
	if err != nil {
		return k.fail(fmt.Errorf("read orders: %w", err))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		for said := range k.life {
			if said == detached {
				return
			}
		}
		cancel(errors.New("the one who started it is gone"))
	}()
	err = k.start(ctx)
	if err == nil {
		err = k.out.Encode(report{Ready: k.Record})
	}
	if err == nil {
		select {
		case <-ctx.Done():
		case err = <-k.ended:
		}
	}
	// All is gone before that is told.
	return k.fail(errors.Join(err, k.end()))
}

// fail tells an error, if there is one, to who started the keeper, in one line.
func (k *keeper) fail(err error) error {
	if err == nil {
		return nil
	}
	_ = k.out.Encode(report{Error: oneLine(err)}) // who is gone needs no answer
	return err
}

// oneLine joins the lines of an error's text.
func oneLine(err error) string {
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}

// explain adds what helps where the kernel refuses what a lab is made of.
func explain(err error) error {
	// What a host's first process says comes as a text.
	for _, refusal := range []error{unix.EPERM, unix.EACCES, unix.EROFS, unix.ENOSYS} {
		if strings.Contains(err.Error(), refusal.Error()) {
			return fmt.Errorf("%w: this takes all of root's rights; in a container, start that with --privileged", err)
		}
	}
	return err
}

func readLife(f *os.File) <-chan string {
	said := make(chan string, 1)
	go func() {
		defer close(said)
		defer f.Close()
		text, _ := io.ReadAll(f)
		said <- string(text)
	}()
	return said
}

func (k *keeper) start(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not ready after %s", startTimeout))
	defer cancel()
	k.Record.Keeper = os.Getpid()
	defer func() {
		if err == nil {
			k.Record.Ready = time.Now().UTC().Round(time.Millisecond)
			err = k.Folder.write(k.Record)
		}
	}()
	if k.Config.ControlPlaneOnly {
		return k.startApart(ctx)
	}
	if err := k.listen(); err != nil {
		return err
	}
	if err := k.serveRegistry(ctx); err != nil {
		return err
	}
	t, err := token.Generate()
	if err != nil {
		return err
	}
	k.token = t.String()
	k.lab, err = lab.New(ctx, lab.Config{Name: k.Record.Context(), Dir: k.Folder.dir(k.Config.Name), Subnet: k.Record.Subnet(), State: k.Folder.labState(k.Record)})
	if err != nil {
		return explain(err)
	}
	if err := k.openOutlet(); err != nil {
		return err
	}
	// The server works while the other hosts are made.
	for i := range k.Config.Nodes {
		if err := k.add(ctx, nodeName(i)); err != nil {
			return err
		}
	}
	if err := k.Folder.write(k.Record); err != nil {
		return err
	}
	k.serve()
	for _, n := range k.nodes {
		if err := n.now.Await(ctx, "READY=1", 1); err != nil {
			return fmt.Errorf("start node %s: %w", n.name, k.reason(ctx, n, err))
		}
		if err := k.out.Encode(report{Node: n.name}); err != nil {
			return err
		}
	}
	if err := k.connect(ctx, k.nodes[0].host.Kubeconfig()); err != nil {
		return err
	}
	for _, n := range k.nodes {
		go k.watch(n)
	}
	return nil
}

// reason is what a server that did not start wrote last, if it ended.
func (k *keeper) reason(ctx context.Context, n *keptNode, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w; its log ends with: %s", err, lastLine(n.log.Name(), ""))
	}
	if line := lastLine(n.log.Name(), "knarr: "); line != "" {
		return errors.New(line)
	}
	return err
}

// lastLine is a log's last line that begins so, without that.
func lastLine(path, prefix string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	last := ""
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), prefix); ok && rest != "" {
			last = rest
		}
	}
	return last
}

// listen takes this machine's ports before anything else is made.
func (k *keeper) listen() error {
	api := Port{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0), Node: 6443}
	for i, p := range append([]Port{api}, k.Config.Ports...) {
		l, err := net.Listen("tcp", p.Addr.String())
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("publish %s: port %d of this machine is taken: choose another, or 0 for any", p, p.Addr.Port())
		}
		if err != nil {
			return fmt.Errorf("publish %s: %w", p, err)
		}
		k.listeners = append(k.listeners, l)
		addr, err := netip.ParseAddrPort(l.Addr().String())
		if err != nil {
			return err
		}
		if i == 0 {
			k.Record.Server = "https://" + addr.String()
			continue
		}
		k.Record.Ports = append(k.Record.Ports, Port{Addr: addr, Node: p.Node})
	}
	return nil
}

// serve begins to answer at this machine's ports.
func (k *keeper) serve() {
	host := k.nodes[0].host
	for i, l := range k.listeners {
		port := uint16(6443)
		if i > 0 {
			port = k.Record.Ports[i-1].Node
		}
		go dial.Serve(l, func(ctx context.Context, _ net.Conn) (net.Conn, error) {
			// What listens on loopback alone is not at the node's address.
			conn, err := host.DialContext(ctx, "tcp", netip.AddrPortFrom(host.Addr(), port).String())
			if errors.Is(err, unix.ECONNREFUSED) {
				return host.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
			}
			return conn, err
		})
	}
}

// connect writes the cluster's kubeconfig after the server's, and adds it to the
// user's.
func (k *keeper) connect(ctx context.Context, server string) error {
	own, err := ownKubeconfig(server, k.Record.Server, k.Record.Context())
	if err != nil {
		return err
	}
	if err := clientcmd.WriteToFile(*own, k.Folder.file(k.Config.Name, "kubeconfig")); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	if err := k.await(ctx); err != nil {
		return err
	}
	if k.Config.Kubeconfig == "" {
		return nil
	}
	_, err = os.Stat(k.Config.Kubeconfig)
	k.Record.KubeconfigMade = errors.Is(err, os.ErrNotExist)
	k.Record.Kubeconfig = k.Config.Kubeconfig
	if err := k.Folder.write(k.Record); err != nil {
		return err
	}
	return addContext(k.Record, own)
}

// end removes the cluster. Its servers are not asked to stop: what they would
// keep is thrown away.
func (k *keeper) end() error {
	for _, l := range append(k.listeners, k.pulls...) {
		l.Close()
	}
	if k.endRegistry != nil {
		k.endRegistry()
	}
	defer k.registry.Wait()
	var err error
	if k.lab != nil {
		err = k.lab.Close()
	}
	if k.outlet != nil {
		err = errors.Join(err, k.outlet.Close())
	}
	if k.apart != nil {
		// It would write to files that are being removed.
		k.apart.Close()
	}
	for _, n := range k.nodes {
		n.log.Close()
	}
	if k.Record == nil {
		return err
	}
	return errors.Join(err, k.Folder.locked(func() error { return k.Folder.undo(k.Record) }))
}
