package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/throwaway/userns"
)

// HostConfig says what a host has of its own.
type HostConfig struct {
	// Name tells hosts of a lab apart. Default: host1, host2, …
	Name string
	// Hostname is what uname tells. Default: Name.
	Hostname string
	// ResolvConf is the content of /etc/resolv.conf. Default: the bridge as
	// name server, which refuses every question at once.
	ResolvConf string
	// Binds are files and folders of the machine to show in the host.
	Binds []Bind
	// Memory bounds the host's memory, in bytes. Default: no bound.
	Memory int64
}

// A Bind shows a file or folder of the machine in a host.
type Bind struct {
	Source   string // on the machine
	Target   string // in the host; made if it is missing
	ReadOnly bool
}

// A Host is a machine of a lab.
//
// Its disk is a folder of the machine's, with /var, /tmp, /root and /opt empty
// at first; /etc is the machine's, and what is written to it stays on the
// host's disk. /run is memory and gone after a reboot. The machine's other
// folders (/usr, /lib, /home …) are there read-only; /dev is shared.
type Host struct {
	lab     *Lab
	cfg     HostConfig
	index   int
	addr    netip.Addr
	dir     string
	cgroups cgroups

	mu     sync.Mutex
	closed bool
	run    *running // nil when the host is off
	cmds   map[*Cmd]struct{}
}

// running is what a host has from boot to stop.
type running struct {
	init *exec.Cmd
	dead chan struct{} // closed when init was reaped, and so all its children
	life *os.File      // init ends when the last copy of this is closed
	pid  *os.File      // pid namespace
	net  *os.File      // network namespace
}

var errOff = errors.New("host is not running")

// Name is the host's name in the lab.
func (h *Host) Name() string { return h.cfg.Name }

// Addr is the host's address on the bridge. It survives reboots.
func (h *Host) Addr() netip.Addr { return h.addr }

// PID is the host's first process as the machine numbers it; 0 when it is off.
// `nsenter --target PID --all` gives a shell in the host.
func (h *Host) PID() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.run == nil {
		return 0
	}
	return h.run.init.Process.Pid
}

// Dead is closed when the host's first process has ended, by Close, by Reboot
// or by itself.
func (h *Host) Dead() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.run == nil {
		dead := make(chan struct{})
		close(dead)
		return dead
	}
	return h.run.dead
}

// Path is where the machine sees a path of the host. While the host runs it
// goes through all of its mounts, and is valid until it stops; when it is off,
// it is the place on its disk.
func (h *Host) Path(path string) string {
	if pid := h.PID(); pid != 0 {
		return filepath.Join(fmt.Sprintf("/proc/%d/root", pid), path)
	}
	return filepath.Join(h.dir, diskDir, path)
}

// CgroupDirs are the directories of the host's cgroup, as the machine sees
// them, one for each hierarchy.
func (h *Host) CgroupDirs() []string {
	var dirs []string
	for _, c := range h.cgroups {
		dirs = append(dirs, c.dir())
	}
	return dirs
}

// Limit bounds the memory of the running host, in bytes; 0 lifts the bound.
// After a reboot HostConfig.Memory counts again.
func (h *Host) Limit(memory int64) error {
	if err := h.cgroups.limit(memory); err != nil {
		return fmt.Errorf("limit host %s: %w", h.cfg.Name, err)
	}
	return nil
}

// DialContext connects from inside the host, so 127.0.0.1 is the host's own.
// The address must be numeric, or localhost: the machine's names are not the
// host's.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	name, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial from host %s: %w", h.cfg.Name, err)
	}
	if name == "localhost" {
		name = "127.0.0.1"
	}
	if _, err := netip.ParseAddr(name); err != nil {
		return nil, fmt.Errorf("dial %s from host %s: want a numeric address: %w", address, h.cfg.Name, err)
	}
	var conn net.Conn
	err = h.inNetwork(func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, net.JoinHostPort(name, port))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial from host %s: %w", h.cfg.Name, err)
	}
	return conn, nil
}

// inNetwork runs fn on a thread in the host's network namespace. Goroutines
// that fn starts are elsewhere.
func (h *Host) inNetwork(fn func() error) error {
	h.mu.Lock()
	run := h.run
	var ns *os.File
	var err error
	if run != nil {
		ns, err = dup(run.net)
	}
	h.mu.Unlock()
	if run == nil {
		return errOff
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	return onThread(func() error {
		if err := enter(ns); err != nil {
			return err
		}
		return fn()
	})
}

// Reboot ends all processes at once, as a power cut does, and starts the host
// again: /run, links, rules and cgroups are gone, the disk and the address
// stay.
func (h *Host) Reboot(ctx context.Context) error {
	if err := h.off(); err != nil {
		return fmt.Errorf("reboot host %s: %w", h.cfg.Name, err)
	}
	if err := h.boot(ctx); err != nil {
		return fmt.Errorf("reboot host %s: %w", h.cfg.Name, err)
	}
	return nil
}

// Close ends the host and removes all of it but its disk, which goes with the
// lab. It may be called twice.
func (h *Host) Close() error {
	if h.lab == nil {
		return h.letGo()
	}
	err := h.stop()
	h.lab.forget(h)
	return err
}

func (h *Host) stop() error {
	h.mu.Lock()
	closed := h.closed
	h.closed = true
	h.mu.Unlock()
	if closed {
		return nil
	}
	if err := h.off(); err != nil {
		return fmt.Errorf("close host %s: %w", h.cfg.Name, err)
	}
	return nil
}

// boot starts the host's first process and waits until it is in place.
func (h *Host) boot(ctx context.Context) (err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.run != nil || h.closed {
		return errors.New("host runs already, or is closed")
	}
	run := &running{dead: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.end(run))
		}
	}()
	if err := h.cgroups.create(); err != nil {
		return err
	}
	if h.cfg.Memory != 0 {
		if err := h.cgroups.limit(h.cfg.Memory); err != nil {
			return err
		}
	}
	orders, report, err := run.start(h.cfg.Name)
	if err != nil {
		return fmt.Errorf("start first process: %w", err)
	}
	defer report.Close()
	stop := context.AfterFunc(ctx, func() { run.init.Process.Kill() })
	defer stop()
	if err := h.cgroups.add(run.init.Process.Pid); err != nil {
		return err
	}
	if run.net, err = run.namespace("net"); err != nil {
		return err
	}
	if err := h.lab.net.plug(run.net, h.index, h.addr); err != nil {
		return err
	}
	spec := initSpec{
		Hostname: h.cfg.Hostname, Dir: h.dir, Binds: h.cfg.Binds, Cgroups: h.cgroups,
		UserNamespace: userns.Inside(),
	}
	if err := json.NewEncoder(orders).Encode(spec); err != nil {
		return fmt.Errorf("tell first process what to do: %w", err)
	}
	if err := awaitReady(report); err != nil {
		return errors.Join(err, ctx.Err())
	}
	if run.pid, err = run.namespace("pid"); err != nil {
		return err
	}
	if err := h.cgroups.handDown(); err != nil {
		return err
	}
	h.run = run
	return nil
}

// start runs this program again as the first process of new namespaces.
func (r *running) start(name string) (orders, report *os.File, err error) {
	ordersIn, orders, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer ordersIn.Close()
	r.life = orders
	report, reportOut, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer reportOut.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"knarr-lab-init", name}
	cmd.Env = append(hostEnv(), roleEnv+"="+roleSetup)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{ordersIn, reportOut}
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET,
		Setsid:     true, // Ctrl-C is for us to handle
	}
	if err := cmd.Start(); err != nil {
		report.Close()
		return nil, nil, err
	}
	r.init = cmd
	go func() {
		_ = cmd.Wait() // killed, as a rule
		close(r.dead)
	}()
	return orders, report, nil
}

func (r *running) namespace(kind string) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/%d/ns/%s", r.init.Process.Pid, kind))
}

// awaitReady reads what the first process says about its start: readyWord, or
// what went wrong.
func awaitReady(report io.Reader) error {
	said, err := io.ReadAll(report)
	if err != nil {
		return fmt.Errorf("read first process's report: %w", err)
	}
	switch string(said) {
	case readyWord:
		return nil
	case "":
		return errors.New("first process ended while starting (does main call lab.MaybeInit?)")
	}
	return errors.New(string(said))
}

// off ends the host if it runs.
func (h *Host) off() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	run := h.run
	h.run = nil
	if run == nil {
		return nil
	}
	return h.end(run)
}

// end kills the first process, with which the kernel kills all others, and
// removes what a boot made. The caller holds h.mu.
func (h *Host) end(run *running) error {
	if run.init != nil {
		_ = run.init.Process.Kill() // ended already is as good
		// The first process can't be reaped before those that we started.
		for c := range h.cmds {
			go c.Wait()
		}
		clear(h.cmds)
		<-run.dead
	}
	for _, f := range []*os.File{run.life, run.pid, run.net} {
		if f != nil {
			f.Close()
		}
	}
	return errors.Join(h.cgroups.kill(), h.cgroups.remove(), h.lab.net.unplug(h.index))
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
