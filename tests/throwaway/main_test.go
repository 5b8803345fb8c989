// Package throwaway tests clusters that are thrown away, as users have them: by
// the commands of dist/knarr, on this machine itself.
package throwaway

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/knarr-dev/knarr/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// limit bounds every wait; it only counts when a test is about to fail.
const limit = 2 * time.Minute

// A user has an empty home and a folder of throwaway clusters of their own.
type user struct {
	exe, home, dir string
	cache          string // kubectl's
	shared         string // what clusters have in common
}

// newUser fails the test if anything is left when it ends.
func newUser(t *testing.T) *user {
	t.Helper()
	u := &user{exe: harness.Exe(t), home: t.TempDir(), cache: t.TempDir(), shared: t.TempDir(), dir: filepath.Join(t.TempDir(), "clusters")}
	before := u.machine(t)
	t.Cleanup(func() {
		if t.Failed() {
			u.showLogs(t)
			_, _, _ = u.try("down", "--all")
			return
		}
		u.same(t, before)
	})
	return u
}

func (u *user) showLogs(t *testing.T) {
	logs, _ := filepath.Glob(filepath.Join(u.dir, "*", "*.log"))
	for _, path := range logs {
		text, _ := os.ReadFile(path)
		t.Logf("%s ends with:\n%s", path, text[max(0, len(text)-4000):])
	}
}

func (u *user) command(args ...string) *exec.Cmd {
	cmd := exec.Command(u.exe, args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "KUBECONFIG=") }),
		"HOME="+u.home, "KUBECACHEDIR="+u.cache, "KNARR_THROWAWAY_DIR="+u.dir, "KNARR_CACHE_DIR="+u.shared)
	return cmd
}

// try runs Knarr and returns what it wrote, and its exit code.
func (u *user) try(args ...string) (out, errs string, code int) {
	cmd := u.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return "", err.Error(), -1
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// knarr runs Knarr, which must succeed.
func (u *user) knarr(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := u.try(args...)
	if code != 0 {
		t.Fatalf("knarr %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// machine is what of this machine a cluster could leave or change.
func (u *user) machine(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		all["link "+l.Name] = ""
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		exe, _ := os.Readlink(filepath.Join(p, "exe"))
		environ, _ := os.ReadFile(filepath.Join(p, "environ"))
		line, _ := os.ReadFile(filepath.Join(p, "cmdline"))
		// Other tests' programs come and go.
		if exe == u.exe || bytes.Contains(environ, []byte(u.dir)) {
			all["process "+filepath.Base(p)+" "+strings.ReplaceAll(string(line), "\x00", " ")] = ""
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if !strings.Contains(line, "/dev/loop") { // other tests' disks
			all["mount "+line] = ""
		}
	}
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		groups, _ := filepath.Glob(dir + "/knarr-lab-*")
		for _, g := range groups {
			all["cgroup "+g] = ""
		}
	}
	for _, pattern := range []string{u.dir, u.dir + "/*", u.home + "/*", u.home + "/.*", "/run/knarr*", "/var/lib/knarr*", "/run/knarr-lab/*", "/etc/knarr*", "/var/cache/knarr/*"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			all["file "+f] = ""
		}
	}
	for _, name := range []string{"fs/inotify/max_user_instances", "fs/inotify/max_user_watches", "vm/overcommit_memory", "vm/panic_on_oom",
		"kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "net/ipv4/ip_forward"} {
		value, _ := os.ReadFile("/proc/sys/" + name)
		all["sysctl "+name] = string(value)
	}
	if nft, err := exec.LookPath("nft"); err == nil {
		rules, _ := exec.Command(nft, "list", "tables").Output()
		all["nft tables"] = string(rules)
	}
	return all
}

// same compares the machine with what it was before.
func (u *user) same(t *testing.T, before map[string]string) {
	t.Helper()
	for _, d := range difference(before, u.machine(t)) {
		t.Error(d)
	}
}

func difference(before, after map[string]string) []string {
	var all []string
	for _, what := range slices.Sorted(maps.Keys(after)) {
		if old, was := before[what]; !was {
			all = append(all, "is left: "+what)
		} else if old != after[what] {
			all = append(all, fmt.Sprintf("%s was %q and is %q", what, old, after[what]))
		}
	}
	return all
}

// waitFor waits until something holds that no event tells of here.
func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", limit, what)
		}
	}
}

func gone(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// ended tells of a process that has, whether it was reaped or not: its parent may
// be the machine's first process, which takes its time.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(state, "Z")
}

// one is the line that is told of a mistake.
func one(t *testing.T, errs, want string) {
	t.Helper()
	if strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "knarr: ") || !strings.Contains(errs, want) {
		t.Errorf("told was %q, want one line with %q", errs, want)
	}
}

// kill ends a process at once; one that is gone is as good.
func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
}

// freePort is one that nobody listens at now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// newListener takes a port of this machine for a test.
func newListener(t *testing.T) (port string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	t.Cleanup(func() { l.Close() })
	_, port, err = net.SplitHostPort(l.Addr().String())
	return port, err
}
