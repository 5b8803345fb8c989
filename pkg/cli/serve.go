package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/addons"
	"github.com/knarr-dev/knarr/pkg/addons/dns"
	"github.com/knarr-dev/knarr/pkg/backup"
	"github.com/knarr-dev/knarr/pkg/bundle"
	"github.com/knarr-dev/knarr/pkg/cluster"
	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/dial"
	"github.com/knarr-dev/knarr/pkg/edge"
	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/knarr-dev/knarr/pkg/idle"
	"github.com/knarr-dev/knarr/pkg/join"
	"github.com/knarr-dev/knarr/pkg/loadbalancer"
	"github.com/knarr-dev/knarr/pkg/logs"
	"github.com/knarr-dev/knarr/pkg/memory"
	"github.com/knarr-dev/knarr/pkg/node"
	"github.com/knarr-dev/knarr/pkg/node/nftwatch"
	"github.com/knarr-dev/knarr/pkg/part"
	"github.com/knarr-dev/knarr/pkg/sdnotify"
	"github.com/knarr-dev/knarr/pkg/status"
	"github.com/knarr-dev/knarr/pkg/version"
)

// dnsFDs is the name of DNS' sockets in systemd's store, and inheritedFDs the
// variable that carries their numbers over an exec of ourselves. It must not look
// like one that users may set.
const (
	dnsFDs       = "knarr-dns"
	inheritedFDs = "_KNARR_DNS_FDS"
)

// server is one run of `knarr server` or `knarr agent`.
type server struct {
	cfg      *config.Config
	more     ServeOptions
	identity *join.Identity             // an agent's
	servers  *loadbalancer.LoadBalancer // an agent's
	dial     dial.Func                  // reaches an agent's servers
	kept     *edge.Store                // what an agent lives by without them
	log      *slog.Logger
	out      io.Writer
	notifier *sdnotify.Notifier
	facts    host.Facts
	warned   []string // what preflight has told already
	ledger   *host.Ledger
	sockets  *dns.Sockets
}

// ServeOptions are what a program that embeds Knarr adds to its Config.
type ServeOptions struct {
	// Bundle has the executables that a node needs. Default: bundle.Embedded.
	Bundle *bundle.Archive
	// Parts run with the cluster, beside the node and the add-ons.
	Parts []part.Part
}

// Serve is `knarr server` or `knarr agent` as a function, for programs that are a
// node with more in it: it prepares the machine and runs what cfg says until ctx
// ends. It needs root. cfg must have been completed. A process may call it once:
// the kubelet cannot run twice in one.
func Serve(ctx context.Context, cfg *config.Config, o ServeOptions) error {
	if cfg.ControlPlaneOnly {
		return runApart(ctx, cfg)
	}
	return serveMachine(ctx, cfg, o)
}

// runServer is Serve with what is built in.
func runServer(ctx context.Context, cfg *config.Config) error {
	return Serve(ctx, cfg, ServeOptions{})
}

// serveMachine checks the machine, changes what has to be changed, and runs a
// cluster until ctx ends. SIGHUP restarts it in place: pods go on, DNS queries
// wait, and a new executable at the same path takes over.
func serveMachine(ctx context.Context, cfg *config.Config, o ServeOptions) error {
	environ := slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, inheritedFDs+"=") || strings.HasPrefix(e, "LISTEN_")
	})
	// Programs that this one starts inherit its variables.
	if err := os.Unsetenv(tokenVariable); err != nil {
		return fmt.Errorf("hide the token: %w", err)
	}
	s := &server{cfg: cfg, more: o, out: os.Stderr}
	s.log = logs.Setup(s.out, logs.Options{Debug: cfg.Log.Debug, JSON: cfg.Log.Format == "json"})
	// Both are taken out of the environment before any upstream part looks.
	s.notifier = sdnotify.FromEnv()
	stored := sdnotify.ListenFDs()[dnsFDs]

	if err := s.preflight(); err != nil {
		return err
	}
	lock, err := host.TakeLock(cfg.DataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if cfg.Agent {
		// What joining waits for is elsewhere.
		var ahead sync.WaitGroup
		defer ahead.Wait()
		ahead.Go(s.unpackAhead)
		if err := s.join(ctx); err != nil {
			return err
		}
		defer s.keep()
	}
	if err := s.prepare(); err != nil {
		return err
	}
	if err := s.listenDNS(ctx, append(stored, inherited()...)); err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	restart, err := s.run(ctx, hup)
	if errors.Is(err, cluster.ErrNotMember) {
		return s.forget(err)
	}
	if err != nil || !restart {
		return err
	}
	return s.exec(environ)
}

// preflight tells everything that is wrong before anything is changed.
func (s *server) preflight() error {
	report := checkMachine(s.cfg)
	for _, w := range report.Of(host.Warning) {
		if text := w.String(); !slices.Contains(s.warned, text) {
			s.log.Warn(text)
			s.warned = append(s.warned, text)
		}
	}
	if report.Snapshotter != "" {
		s.cfg.Node.Snapshotter = report.Snapshotter
	}
	return report.Err()
}

// prepare changes the machine, and keeps a record of it.
func (s *server) prepare() error {
	c := s.cfg
	var err error
	if s.facts, err = host.Detect(); err != nil {
		return err
	}
	dirs := []string{c.AgentDir(), c.RunDir}
	if !c.Agent {
		dirs = append(dirs, c.ServerDir())
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create folder: %w", err)
		}
	}
	// The root of a pod with users of its own is no root here, and finds its file
	// system in a folder in there.
	if err := os.Chmod(c.RunDir, 0o711); err != nil {
		return fmt.Errorf("open folder: %w", err)
	}
	if !c.Agent {
		if err := host.RecordStoreVersion(c.ServerDir(), version.Kubernetes); err != nil {
			return err
		}
	}
	proxy, err := config.ProxyEnv(os.Environ(), c)
	if err != nil {
		return err
	}
	for name, value := range proxy.Environ() {
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	if s.ledger, err = host.OpenLedger(c.DataDir); err != nil {
		return err
	}
	if err := s.ledger.Claim(footprint(c, s.facts)...); err != nil {
		return err
	}
	if c.DisableAgent {
		return nil
	}
	if err := s.settleAddresses(); err != nil {
		return err
	}
	if err := s.ledger.SetSysctls(host.Sysctls(s.facts, c.Network.ClusterCIDR.Addr().Is6())); err != nil {
		return err
	}
	if servesDNS(c) {
		if err := s.ledger.Record(host.LoopbackChange(c.Network.ClusterDNS)); err != nil {
			return err
		}
	}
	if c.Node.ResolvConf == "" {
		// A host without name servers that pods could reach: an empty file keeps
		// them from getting its loopback addresses.
		c.Node.ResolvConf = filepath.Join(c.AgentDir(), "resolv.conf")
		if err := os.WriteFile(c.Node.ResolvConf, nil, 0o644); err != nil {
			return fmt.Errorf("write an empty resolv.conf for pods: %w", err)
		}
	}
	return host.PrepareCgroups(s.facts)
}

func servesDNS(c *config.Config) bool {
	return !c.DisableAgent && !slices.Contains(c.Disable, "dns")
}

// listenDNS opens DNS' sockets, or takes those that the process before left, in
// which queries have been waiting.
func (s *server) listenDNS(ctx context.Context, files []*os.File) error {
	c := s.cfg
	if !servesDNS(c) {
		return nil
	}
	addr := netip.AddrPortFrom(c.Network.ClusterDNS, 53)
	if err := host.EnsureLoopback(c.Network.ClusterDNS); err != nil {
		return fmt.Errorf("give cluster DNS its address: %w", err)
	}
	var err error
	if len(files) > 0 {
		if s.sockets, err = dns.FromFiles(files...); err == nil && s.sockets.Addr() == addr {
			return nil
		}
		s.log.Warn("sockets of the process before cannot be used", "err", err)
	}
	if s.sockets, err = dns.Listen(ctx, addr); err != nil {
		return err
	}
	kept, err := s.sockets.Files()
	if err != nil {
		return err
	}
	defer closeAll(kept)
	return s.notifier.StoreFDs(dnsFDs, kept...)
}

// instance is a cluster or an agent.
type instance interface {
	Start(context.Context) error
	Ready() <-chan struct{}
	Err() <-chan error
	Close()
	Status() status.Report
	Routes(*http.ServeMux)
	Restart() <-chan struct{}
}

func (s *server) instance() (instance, error) {
	parts, err := s.parts()
	if err != nil {
		return nil, err
	}
	if !s.cfg.Agent {
		parts = append(parts, backup.Part{})
	}
	if !s.cfg.Log.WorkqueueMetrics {
		idle.Queues()
	}
	if s.cfg.Agent {
		return cluster.NewAgent(cluster.AgentConfig{Config: s.cfg, Identity: s.identity, Servers: s.servers, Dial: s.dial, Kept: s.kept, Parts: parts, Log: s.log})
	}
	return cluster.New(cluster.Config{Config: s.cfg, Parts: parts, Log: s.log})
}

// run runs until ctx ends, something fails, or hup asks for a restart.
func (s *server) run(ctx context.Context, hup <-chan os.Signal) (restart bool, err error) {
	c, err := s.instance()
	if err != nil {
		return false, err
	}
	// The status outlives the components, so that it tells how they stop.
	statusCtx, stopStatus := context.WithCancel(context.WithoutCancel(ctx))
	defer stopStatus()
	told := &status.Server{Socket: s.cfg.StatusSocket(), Report: c.Status, Routes: c.Routes, Log: s.log}
	statusDone := make(chan error, 1)
	go func() { statusDone <- told.Run(statusCtx, make(chan struct{})) }()

	runCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := c.Start(context.WithoutCancel(ctx)); err != nil {
		return false, err
	}
	defer c.Close()
	go s.announce(runCtx, c)
	go func() {
		err := s.notifier.RunWatchdog(runCtx, func() error { _ = c.Status(); return nil })
		if err != nil && runCtx.Err() == nil {
			s.log.Warn("watchdog", "err", err)
		}
	}()

	moved, err := s.moved(runCtx)
	if err != nil {
		s.log.Warn("a change of this machine's address will need a restart", "err", err)
	}
	select {
	case <-ctx.Done():
	case <-hup:
		restart = true
	case <-moved:
		restart = true
	case <-c.Restart():
		restart = true
	case err = <-c.Err():
	case err = <-statusDone:
	}
	cancel()
	if nerr := s.notifier.Stopping(); nerr != nil {
		s.log.Debug("notify", "err", nerr)
	}
	c.Close()
	if err == nil {
		err = <-c.Err()
	}
	return restart && err == nil, err
}

func (s *server) archive() (*bundle.Archive, error) {
	if s.more.Bundle != nil {
		return s.more.Bundle, nil
	}
	return bundle.Embedded()
}

// unpackAhead has the executables of a node there before they are needed. Who needs
// them tells of what goes wrong.
func (s *server) unpackAhead() {
	archive, err := s.archive()
	if err == nil {
		_, err = archive.Unpack(node.BundleDir(s.cfg))
	}
	if err != nil {
		s.log.Debug("unpack ahead", "err", err)
	}
}

func (s *server) parts() ([]part.Part, error) {
	addOns := addons.Addons{ControlPlane: !s.cfg.Agent, DNSSockets: s.sockets}
	if s.cfg.DisableAgent {
		return append([]part.Part{addOns}, s.more.Parts...), nil
	}
	archive, err := s.archive()
	if err != nil {
		return nil, err
	}
	_, err = os.Stat(filepath.Join(s.cfg.ServerDir(), "db", "state.db"))
	var tables []nftwatch.Table
	if addr := s.cfg.Network.ClusterDNS; s.sockets != nil {
		tables = append(tables, nftwatch.Table{Name: dns.Table(addr), Restore: func(ctx context.Context) {
			if err := dns.ApplyRules(ctx, addr); err != nil {
				s.log.Warn(err.Error())
			}
		}})
	}
	return append([]part.Part{
		&node.Node{
			Bundle: archive, Facts: s.facts, SetSysctls: s.ledger.SetSysctls, Tables: tables,
			ControlPlane: !s.cfg.Agent, NewCluster: !s.cfg.Agent && errors.Is(err, fs.ErrNotExist),
		},
		addOns,
	}, s.more.Parts...), nil
}

// announce tells whoever waits when the cluster is ready, and keeps systemd's
// status line true.
func (s *server) announce(ctx context.Context, c instance) {
	notify := func(text string) {
		if err := s.notifier.Status(text); err != nil {
			s.log.Debug("notify", "err", err)
		}
	}
	notify("starting")
	heap := memory.Hurry(memory.StartHeap)
	select {
	case <-c.Ready():
	case <-ctx.Done():
		return
	}
	// On a node whose control plane cannot start, memory is bounded by the limit.
	if s.cfg.Log.Timings {
		s.timings(c)
	}
	about := []any{"after", time.Since(c.Status().StartedAt).Round(time.Millisecond), "version", version.Kubernetes}
	if s.cfg.Agent {
		about = append(about, "node", s.cfg.Node.Name)
	} else {
		about = append(about, "kubeconfig", s.cfg.Kubeconfig.Path)
	}
	s.log.Info("ready", about...)
	if err := s.notifier.Ready(); err != nil {
		s.log.Warn("tell systemd that the cluster is ready", "err", err)
	}
	notify("ready")
	heap.Rest(ctx, memory.SettleAfter, s.log)
}

// timings prints when each component was ready.
func (s *server) timings(c instance) {
	all := c.Status().Components
	slices.SortStableFunc(all, func(a, b component.Status) int { return int(a.ReadyAfter.Duration - b.ReadyAfter.Duration) })
	for _, st := range all {
		fmt.Fprintf(s.out, "%8.3f s  %s\n", st.ReadyAfter.Seconds(), st.Name)
	}
}

// exec replaces this process by the executable at our path, with DNS' sockets.
func (s *server) exec(environ []string) error {
	path, err := exec.LookPath(os.Args[0])
	if err != nil {
		return fmt.Errorf("restart: find executable: %w", err)
	}
	if s.kept != nil {
		s.keep() // nothing deferred is done any more
	}
	if s.sockets != nil {
		files, err := s.sockets.Files()
		if err != nil {
			return fmt.Errorf("restart: %w", err)
		}
		var fds []string
		for _, f := range files {
			if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
				return fmt.Errorf("restart: keep socket open: %w", err)
			}
			fds = append(fds, strconv.Itoa(int(f.Fd())))
		}
		environ = append(environ, inheritedFDs+"="+strings.Join(fds, ","))
	}
	s.log.Info("restarting", "executable", path)
	args := append(os.Args[:1:1], withoutToken(os.Args[1:])...)
	if s.cfg.Token != "" && s.cfg.TokenFile == "" {
		environ = append(slices.DeleteFunc(environ, func(e string) bool { return strings.HasPrefix(e, tokenVariable+"=") }), tokenVariable+"="+s.cfg.Token)
	}
	if err := unix.Exec(path, args, environ); err != nil {
		return fmt.Errorf("restart %s: %w", path, err)
	}
	return nil
}

// inherited are the sockets that an exec of ourselves kept open.
func inherited() []*os.File {
	var files []*os.File
	for n := range strings.SplitSeq(os.Getenv(inheritedFDs), ",") {
		if fd, err := strconv.Atoi(n); err == nil {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), dnsFDs))
		}
	}
	// Children would take it for theirs.
	_ = os.Unsetenv(inheritedFDs)
	return files
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // duplicates; the sockets live on
	}
}
