package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// The environment tells a program that it was started to be part of a host.
const (
	roleEnv   = "KNARR_LAB_ROLE"
	specEnv   = "KNARR_LAB_SPEC"
	roleSetup = "setup" // becomes the first process of a host
	roleInit  = "init"  // is the first process of a host
	roleEnter = "enter" // becomes a program in a host
)

const (
	hostPath  = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	readyWord = "ready"
	ordersFD  = 3
	reportFD  = 4
)

// initSpec are the orders of a host's first process.
type initSpec struct {
	Hostname string
	Dir      string // host's folder on the machine
	Binds    []Bind
	Cgroups  cgroups
	// UserNamespace is set if the machine's root made none of this.
	UserNamespace bool
}

// enterSpec says which host to enter.
type enterSpec struct {
	Init    int      // process whose namespaces to join, as the machine numbers it
	Cgroups []string // directories to join
	Report  int      // descriptor for errors; closed by a successful exec
	Dir     string   // folder to start in
}

// MaybeInit does its part when this process was started to be part of a host,
// and tells whether it was: then main must return at once. Call it before
// anything else in main, and in TestMain; hosts run the program they are made
// by a second time.
//
//	func main() {
//		if lab.MaybeInit() {
//			return
//		}
//		…
//	}
func MaybeInit() bool {
	role := os.Getenv(roleEnv)
	spec := os.Getenv(specEnv)
	os.Unsetenv(roleEnv)
	os.Unsetenv(specEnv)
	switch role {
	case roleSetup:
		report := os.NewFile(reportFD, "report")
		if err := setup(); err != nil {
			fmt.Fprint(report, err)
		}
	case roleInit:
		reap()
	case roleEnter:
		enterHost(spec)
	default:
		return false
	}
	return true
}

// setup makes the host out of the new namespaces this process is in, and then
// runs the program anew: what it did to one thread (the cgroup namespace) so
// becomes true of the whole process. It returns only when it failed.
func setup() error {
	runtime.LockOSThread()
	var spec initSpec
	orders := os.NewFile(ordersFD, "orders")
	defer orders.Close() // keeps it from being collected, and so closed, before
	if err := json.NewDecoder(orders).Decode(&spec); err != nil {
		return fmt.Errorf("read orders: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make cgroup namespace: %w", err)
	}
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	if err := buildRoot(spec); err != nil {
		return err
	}
	// Nobody routes and nobody speaks IPv6 on a machine that just came up; a
	// new namespace has the machine's own choice instead.
	for path, value := range map[string]string{
		"/proc/sys/net/ipv4/ip_forward":                "0",
		"/proc/sys/net/ipv6/conf/all/disable_ipv6":     "1",
		"/proc/sys/net/ipv6/conf/default/disable_ipv6": "1",
	} {
		if err := os.WriteFile(path, []byte(value), 0); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	if err := unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), roleEnv+"="+roleInit)); err != nil {
		return fmt.Errorf("run first process: %w", err)
	}
	return nil
}

// reap is the life of a host's first process: it reports that the host is in
// place, reaps orphans, and ends when the program that made the host is gone.
func reap() {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	signal.Ignore(unix.SIGHUP, unix.SIGINT)
	orphaned := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.NewFile(ordersFD, "orders"))
		close(orphaned)
	}()
	report := os.NewFile(reportFD, "report")
	_, _ = io.WriteString(report, readyWord)
	report.Close()
	for {
		select {
		case <-orphaned:
			return
		case <-died:
			for {
				pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
				if pid <= 0 && err != unix.EINTR {
					break
				}
			}
		}
	}
}

// enterHost turns this process, which was born in the host's pid namespace,
// into a program in the host. It returns only when it failed.
func enterHost(encoded string) {
	runtime.LockOSThread()
	var spec enterSpec
	if err := json.Unmarshal([]byte(encoded), &spec); err != nil {
		fmt.Fprintln(os.Stderr, "enter host:", err)
		return
	}
	report := os.NewFile(uintptr(spec.Report), "report")
	unix.CloseOnExec(spec.Report)
	if err := spec.enter(); err != nil {
		fmt.Fprint(report, err)
		return
	}
	path, err := findProgram(os.Args[0])
	if err != nil {
		fmt.Fprint(report, err)
		return
	}
	err = unix.Exec(path, os.Args, os.Environ())
	fmt.Fprint(report, err)
}

func (s enterSpec) enter() error {
	// First, while the machine's cgroups are in sight.
	for _, dir := range s.Cgroups {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	var spaces []*os.File
	for _, kind := range []string{"cgroup", "ipc", "uts", "net", "mnt"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", s.Init, kind))
		if err != nil {
			return fmt.Errorf("find namespace: %w", err)
		}
		spaces = append(spaces, f)
	}
	// A thread that shares its root with others may not change mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare root: %w", err)
	}
	for _, f := range spaces {
		if err := enter(f); err != nil {
			return err
		}
		f.Close()
	}
	if s.Dir == "" {
		s.Dir = "/"
	}
	return unix.Chdir(s.Dir)
}

// findProgram looks a program up on the PATH of the environment, as a shell in
// the host would.
func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return "", err
	}
	return path, nil
}
