// Package lab makes test hosts out of namespaces: a Lab is a network with no
// way out, a Host is a machine on it with its own processes, mounts, names,
// network and cgroups, on a disk that survives its reboots.
//
// It exists because a Kubernetes node writes all over the machine it runs on:
// routes, packet filters, mounts, cgroups, sysctls. In a lab it can do so next
// to other nodes, and all of it goes with the host. Nearly everything is held
// by processes and open files alone, so the kernel cleans up even after a
// SIGKILL of the program; the rest (cgroups, five sysctls, files) is recorded
// and undone by Close, or by Sweep when nobody was left to call Close.
//
// A program that uses the package calls [MaybeInit] first thing in main, and a
// test in TestMain. It needs root and Linux 5.12; root of a namespace of package
// userns will do, and then changes no sysctl of the machine.
package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
)

// Config says how a lab is made. The zero value is a lab with a random name
// whose files are removed by Close.
type Config struct {
	// Name tells labs apart: letters, digits and dashes. Default: random.
	Name string
	// Dir is where the lab makes its folder, named like the lab, with the
	// disks of its hosts. It must lie on a file system that can carry an
	// overlay (ext4, xfs; no tmpfs, no overlay). Default: os.TempDir().
	Dir string
	// Keep leaves the folder in place when the lab closes. A folder that was
	// there before is used again, and always left in place.
	Keep bool
	// Subnet of the lab, IPv4, at least a /29. Its first address is the
	// bridge's, hosts get the next ones. Labs can't see each other, so all of
	// them may use the same one. Default: 10.99.0.0/24.
	Subnet netip.Prefix
	// State is the folder in which the labs of this machine are recorded.
	// Default: /run/knarr-lab.
	State string
}

// A Lab is a network without a way out, and the hosts on it.
type Lab struct {
	cfg     Config
	dir     string
	net     *network
	cgroups cgroups
	claim   *claim

	mu     sync.Mutex
	hosts  []*Host
	joined int // hosts ever added; an address is never given twice
	closed bool
}

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// New makes a lab without hosts. It first removes what dead labs left behind.
func New(ctx context.Context, cfg Config) (_ *Lab, err error) {
	if os.Getenv(roleEnv) != "" {
		return nil, errors.New("make lab: this process was started as part of a host: call lab.MaybeInit first in main or TestMain")
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("make lab: namespaces, mounts and cgroups need root: run it with sudo")
	}
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("make lab: %w", err)
	}
	l := &Lab{cfg: cfg, dir: filepath.Join(cfg.Dir, cfg.Name)}
	base, err := baseCgroup()
	if err != nil {
		return nil, fmt.Errorf("make lab %s: %w", cfg.Name, err)
	}
	if l.cgroups, err = findCgroups(filepath.Join(base, "knarr-lab-"+cfg.Name)); err != nil {
		return nil, fmt.Errorf("make lab %s: %w", cfg.Name, err)
	}
	rec := record{Name: cfg.Name, PID: os.Getpid(), Cgroups: l.cgroups}
	if _, err := os.Lstat(l.dir); os.IsNotExist(err) && !cfg.Keep {
		rec.Dir = l.dir
	}
	if l.claim, err = registry(cfg.State).claim(rec); err != nil {
		return nil, fmt.Errorf("make lab %s: %w", cfg.Name, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("make lab %s: %w", cfg.Name, errors.Join(err, l.Close()))
		}
	}()
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return nil, err
	}
	if err := l.cgroups.create(); err != nil {
		return nil, err
	}
	if err := l.cgroups.handDown(); err != nil {
		return nil, err
	}
	if l.net, err = newNetwork(cfg.Subnet); err != nil {
		return nil, err
	}
	return l, ctx.Err()
}

func (c *Config) setDefaults() error {
	if c.Name == "" {
		b := make([]byte, 4)
		rand.Read(b) // never fails, see its documentation
		c.Name = hex.EncodeToString(b)
	}
	if !validName.MatchString(c.Name) {
		return fmt.Errorf("name %q: want 1 to 40 small letters, digits and dashes", c.Name)
	}
	if c.Dir == "" {
		c.Dir = os.TempDir()
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return fmt.Errorf("dir %s: %w", c.Dir, err)
	}
	c.Dir = dir
	if !c.Subnet.IsValid() {
		c.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, 0, 0}), 24)
	}
	if !c.Subnet.Addr().Is4() || c.Subnet.Bits() > 29 {
		return fmt.Errorf("subnet %s: want IPv4 and at least a /29", c.Subnet)
	}
	c.Subnet = c.Subnet.Masked()
	if c.State == "" {
		c.State = defaultState
	}
	return nil
}

// Name is the lab's name.
func (l *Lab) Name() string { return l.cfg.Name }

// Dir is the lab's folder, which holds the disks of its hosts.
func (l *Lab) Dir() string { return l.dir }

// Gateway is the bridge's address, the default route of every host. It leads
// nowhere: what is sent there is answered with "network unreachable".
func (l *Lab) Gateway() netip.Addr { return l.cfg.Subnet.Addr().Next() }

// OutletMTU is the size of the largest packet of a lab's outlet, bytes.
const OutletMTU = 1500

// Outlet makes a TUN device, without packet information, to which hosts send TCP and
// UDP for addresses that are no host's. Who reads it must serve it: no packet
// leaves the lab by itself. The device goes with the file, which is the caller's.
func (l *Lab) Outlet() (*os.File, error) { return l.net.outlet() }

// AddHost makes a host and starts it. Its disk is the folder named like it in
// the lab's folder; one that exists is used again.
func (l *Lab) AddHost(ctx context.Context, cfg HostConfig) (*Host, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("add host %s: lab %s is closed", cfg.Name, l.cfg.Name)
	}
	if cfg.Name == "" {
		cfg.Name = fmt.Sprintf("host%d", l.joined+1)
	}
	if !validName.MatchString(cfg.Name) {
		return nil, fmt.Errorf("add host %q: want a name of 1 to 40 small letters, digits and dashes", cfg.Name)
	}
	if slices.ContainsFunc(l.hosts, func(h *Host) bool { return h.cfg.Name == cfg.Name }) {
		return nil, fmt.Errorf("add host %s: lab %s has one of that name", cfg.Name, l.cfg.Name)
	}
	index := l.joined + 1
	addr := l.Gateway()
	for range index {
		addr = addr.Next()
	}
	if !l.cfg.Subnet.Contains(addr.Next()) { // the last one is for broadcast
		return nil, fmt.Errorf("add host %s: no address left in %s: give the lab a larger Subnet", cfg.Name, l.cfg.Subnet)
	}
	if cfg.Hostname == "" {
		cfg.Hostname = cfg.Name
	}
	if cfg.ResolvConf == "" {
		// Nobody listens there: a look-up fails at once instead of timing out.
		cfg.ResolvConf = "nameserver " + l.Gateway().String() + "\n"
	}
	h := &Host{
		lab: l, cfg: cfg, index: index, addr: addr,
		dir:     filepath.Join(l.dir, cfg.Name),
		cgroups: l.cgroups.below(cfg.Name),
		cmds:    map[*Cmd]struct{}{},
	}
	if err := h.makeDisk(); err != nil {
		return nil, fmt.Errorf("add host %s: make its disk in %s: %w", cfg.Name, h.dir, err)
	}
	if err := h.boot(ctx); err != nil {
		return nil, fmt.Errorf("add host %s: %w", cfg.Name, err)
	}
	l.joined++
	l.hosts = append(l.hosts, h)
	return h, nil
}

// Close ends all hosts and removes what the lab made. It may be called twice.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	var errs []error
	for _, h := range l.hosts {
		errs = append(errs, h.stop())
	}
	if l.net != nil {
		errs = append(errs, l.net.close())
	}
	errs = append(errs, l.claim.release())
	return errors.Join(errs...)
}

func (l *Lab) forget(h *Host) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts = slices.DeleteFunc(l.hosts, func(o *Host) bool { return o == h })
}
