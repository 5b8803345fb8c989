package throwaway

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
	"github.com/knarr-dev/knarr/pkg/throwaway/userns"
)

// DefaultName is the cluster that is meant where none is named.
const DefaultName = "dev"

// endTimeout bounds how long a keeper may take to remove its cluster.
const endTimeout = time.Minute

// A Cluster is one that a keeper keeps.
type Cluster struct {
	*Record
	folder folder

	// Of the one who started it and has not let go of it:
	keeper *exec.Cmd
	life   *os.File
	said   <-chan report // closed when the keeper has ended
}

// Start makes a cluster and returns when it is ready. It lives until Close, or
// until this process ends in whatever way, unless Detach is called. When Start
// fails, nothing is left. told is called for each node that becomes ready; nil
// is no one.
func Start(ctx context.Context, cfg Config, told func(node string)) (c *Cluster, err error) {
	from, err := cfg.begin()
	if err != nil {
		return nil, err
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	rootless := !cfg.ControlPlaneOnly && os.Geteuid() != 0
	if rootless {
		if err := userns.Check(); err != nil {
			return nil, fmt.Errorf("start a cluster without root: %w; or run it with sudo, or without nodes by --control-plane-only", err)
		}
	}
	f, err := thisFolder()
	if err != nil {
		return nil, err
	}
	id := make([]byte, 8)
	rand.Read(id) // never fails, see its documentation
	rec := &Record{Name: cfg.Name, ID: hex.EncodeToString(id), Created: time.Now().UTC().Round(time.Millisecond), UserNamespace: rootless}
	lock, err := f.claim(rec)
	if err != nil {
		return nil, err
	}
	c = &Cluster{Record: rec, folder: f}
	err = roomFor(string(f), cfg.ControlPlaneOnly)
	if err == nil && from != nil && !cfg.ControlPlaneOnly {
		err = f.plant(ctx, from, rec)
	}
	if err == nil {
		err = c.launch(ctx, cfg, lock)
	}
	if err != nil {
		err = errors.Join(err, f.locked(func() error { return f.undo(rec) }))
		lock.Close()
		return nil, err
	}
	lock.Close() // the keeper has it too
	if err := c.awaitReady(ctx, told); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	for _, img := range cfg.Images {
		if err := c.Load(ctx, img); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// launch starts the keeper.
func (c *Cluster) launch(ctx context.Context, cfg Config, lock *os.File) error {
	cache, err := cacheDir()
	if err != nil && cfg.RegistryPort != 0 {
		return err
	}
	log, err := os.OpenFile(c.folder.file(c.Name, "keeper.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	pipe := func(read bool) (*os.File, error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		if read {
			theirs = append(theirs, w)
			return r, nil
		}
		theirs = append(theirs, r)
		return w, nil
	}
	orders, err := pipe(false)
	if err != nil {
		return err
	}
	defer orders.Close()
	reports, err := pipe(true)
	if err != nil {
		return err
	}
	if c.life, err = pipe(false); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "internal", "keep")
	cmd.Args[0] = "knarr"
	// Nothing of the command's or user's environment matters to a cluster but how
	// to get to registries, and where its folder is.
	cmd.Env = append(proxies(), "PATH="+os.Getenv("PATH"), "HOME=/", "GOTRACEBACK="+os.Getenv("GOTRACEBACK"))
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = append(slices.Clone(theirs), lock)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	start := cmd.Start
	if c.UserNamespace {
		start = func() error { return userns.Start(ctx, cmd, c.Context()+"-"+c.ID) }
	}
	if err := start(); err != nil {
		reports.Close()
		return fmt.Errorf("start the cluster's keeper: %w", err)
	}
	c.keeper = cmd
	said := make(chan report, maxNodes+2)
	go func() {
		defer close(said)
		defer reports.Close()
		for d := json.NewDecoder(reports); ; {
			var r report
			if d.Decode(&r) != nil {
				return
			}
			said <- r
		}
	}()
	c.said = said
	if err := json.NewEncoder(orders).Encode(keeperOrder{Config: cfg, Folder: c.folder, Cache: cache, Record: c.Record}); err != nil {
		return errors.Join(fmt.Errorf("tell the cluster's keeper what to do: %w", err), c.Close())
	}
	return nil
}

func (c *Cluster) awaitReady(ctx context.Context, told func(string)) error {
	for {
		select {
		case r, ok := <-c.said:
			switch {
			case !ok:
				return errors.New("start cluster: its keeper was killed")
			case r.Error != "":
				return fmt.Errorf("start cluster: %s", r.Error)
			case r.Ready != nil:
				c.Record = r.Ready
				return nil
			case told != nil:
				told(r.Node)
			}
		case <-ctx.Done():
			return fmt.Errorf("start cluster: %w", context.Cause(ctx))
		}
	}
}

// Detach has the cluster live on when this process ends.
func (c *Cluster) Detach() error {
	_, err := io.WriteString(c.life, detached)
	return errors.Join(err, c.life.Close(), c.keeper.Process.Release())
}

// Close removes a cluster that this process has started and not let go of. It
// returns when nothing is left of it.
func (c *Cluster) Close() error {
	c.life.Close()
	var failed error
	for r := range c.said {
		if r.Error != "" {
			failed = errors.New(r.Error)
		}
	}
	// How it ended was said.
	_ = c.keeper.Wait()
	_, err := os.Stat(c.folder.dir(c.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// It was killed.
	return errors.Join(failed, c.folder.locked(func() error {
		_, err := c.folder.sweep()
		return err
	}))
}

// Find gives the cluster of that name. Without a name it is the one named dev,
// or else the only one there is.
func Find(name string) (*Cluster, error) {
	all, err := List()
	if err != nil {
		return nil, err
	}
	wanted := name
	if name == "" {
		wanted = DefaultName
	}
	var names []string
	for _, c := range all {
		if c.Name == wanted {
			return c, nil
		}
		names = append(names, c.Name)
	}
	switch {
	case len(all) == 0:
		return nil, fmt.Errorf("there is no cluster%s: \"knarr up\" starts one", ofYours())
	case name == "" && len(all) == 1:
		return all[0], nil
	case name == "":
		return nil, fmt.Errorf("which cluster? There are %s: give --name", strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("there is no cluster %s%s; there are %s", name, ofYours(), strings.Join(names, ", "))
}

// ofYours reminds those who are not root that they see their own clusters only.
func ofYours() string {
	if machineRoot() {
		return ""
	}
	return " of this user's (sudo shows root's)"
}

// Down ends a cluster that somebody started, and returns when nothing is left.
func (c *Cluster) Down(ctx context.Context) error {
	lock, err := os.OpenFile(c.folder.file(c.Name, "lock"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another was quicker
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if c.Keeper == 0 {
		return fmt.Errorf("end cluster %s: it is just being started: try again", c.Name)
	}
	process, err := os.FindProcess(c.Keeper)
	if err != nil {
		return fmt.Errorf("end cluster %s: %w", c.Name, err)
	}
	defer process.Release()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		// While the lock is held, the number is the keeper's.
		if lives, err := c.folder.lives(c.Name); err != nil || !lives {
			break
		}
		if err := process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("end cluster %s: %w", c.Name, err)
		}
		if err := awaitUnlock(ctx, lock); err == nil {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("end cluster %s: %w", c.Name, context.Cause(ctx))
		}
	}
	return c.folder.locked(func() error {
		_, err := c.folder.sweep()
		return err
	})
}

// awaitUnlock waits until nobody holds the lock, which the kernel can only tell
// to a thread that waits for nothing else.
func awaitUnlock(ctx context.Context, lock *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	free := make(chan error, 1)
	go func() {
		err := error(unix.EINTR)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(lock.Fd()), unix.LOCK_SH)
		}
		free <- err
	}()
	select {
	case err := <-free:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Kubeconfig is the administrator's, for use on this machine.
func (c *Cluster) Kubeconfig() ([]byte, error) {
	text, err := os.ReadFile(c.KubeconfigFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read kubeconfig of cluster %s: it is just being started", c.Name)
	}
	return text, err
}

// KubeconfigFile is where it is.
func (c *Cluster) KubeconfigFile() string { return c.folder.file(c.Name, "kubeconfig") }

// LogFile is what the server or agent of a node writes, or a control plane alone.
func (c *Cluster) LogFile(node string) (string, error) {
	if len(c.Nodes) == 0 && node == "" {
		return c.folder.file(c.Name, serverLog), nil
	}
	rec, err := c.node(node)
	if err != nil {
		return "", err
	}
	return c.folder.file(c.Name, rec.Name+".log"), nil
}

// again gives the command that has this program do args where the cluster's nodes can
// be reached, or nil where it is there already.
func (c *Cluster) again(ctx context.Context, args ...string) (*exec.Cmd, error) {
	if !c.UserNamespace || userns.Inside() {
		return nil, nil
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own executable: %w", err)
	}
	return userns.Enter(ctx, c.Keeper, exe, args...)
}

// doneAgain has this program do args where the nodes can be reached, unless it is there
// already, which done tells. What it says of its failure is the error.
func (c *Cluster) doneAgain(ctx context.Context, args ...string) (done bool, err error) {
	cmd, err := c.again(ctx, args...)
	if err != nil || cmd == nil {
		return err != nil, err
	}
	cmd.Stdin = os.Stdin
	said, err := cmd.CombinedOutput()
	if text := strings.TrimPrefix(strings.TrimSpace(string(said)), "knarr: "); err != nil && text != "" {
		err = errors.New(text)
	}
	return true, err
}

// Exec runs a command in a node, with this process's terminal, and returns its exit
// code. Without a node it is the server's.
func (c *Cluster) Exec(ctx context.Context, node string, command []string) (int, error) {
	rec, err := c.node(node)
	if err != nil {
		return 0, err
	}
	cmd, err := c.again(ctx, append([]string{"shell", "--name", c.Name, rec.Name, "--"}, command...)...)
	if err != nil {
		return 0, err
	}
	run := func() error { return cmd.Run() }
	if cmd != nil {
		// From a login's own cgroup nobody but root gets into a node's.
		if err := userns.JoinScope(ctx, fmt.Sprintf("knarr-shell-%d", os.Getpid()), os.Getpid()); err != nil {
			return 0, err
		}
	} else {
		h, err := c.Node(rec.Name)
		if err != nil {
			return 0, err
		}
		defer h.Close()
		inside := h.Inside(ctx, command[0], command[1:]...)
		cmd, run = inside.Cmd, inside.Run
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// Node opens a node's host, to run programs in it. The caller closes it. Without
// a name it is the server's.
func (c *Cluster) Node(name string) (*Host, error) {
	rec, err := c.node(name)
	if err != nil {
		return nil, err
	}
	h, err := lab.Open(rec.Host)
	if err != nil {
		return nil, err
	}
	return &Host{Host: h}, nil
}

func (c *Cluster) node(name string) (NodeRecord, error) {
	if len(c.Nodes) == 0 {
		return NodeRecord{}, fmt.Errorf("cluster %s is a control plane alone, without nodes", c.Name)
	}
	var names []string
	for i, n := range c.Nodes {
		if n.Name == name || name == "" && i == 0 {
			return n, nil
		}
		names = append(names, n.Name)
	}
	return NodeRecord{}, fmt.Errorf("cluster %s has no node %q; it has %s", c.Name, name, strings.Join(names, ", "))
}
