package lab_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

const roleEnv = "LAB_TEST_ROLE"

// The test binary is also the programs that its hosts run.
func TestMain(m *testing.M) {
	if lab.MaybeInit() {
		return
	}
	switch os.Getenv(roleEnv) {
	case "serve":
		serve()
	case "harness":
		harness()
	case "alone":
		m.Run()
	default:
		alone(m)
	}
}

// alone runs the tests with mounts of their own: other packages' tests, which
// run at the same time, mount disks.
func alone(m *testing.M) {
	if os.Geteuid() != 0 {
		m.Run() // they skip
		return
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), roleEnv+"=alone")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := c.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serve answers each connection with the hostname.
func serve() {
	l, err := net.Listen("tcp", ":7000")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		name, _ := os.Hostname()
		fmt.Fprint(c, name)
		c.Close()
	}
}

// harness makes a lab in the folder of its argument, tells about it and waits
// to be killed.
func harness() {
	l, err := lab.New(context.Background(), lab.Config{
		Dir: os.Args[1], State: filepath.Join(os.Args[1], "state"),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	h, err := l.AddHost(context.Background(), lab.HostConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	sleep := h.Command(context.Background(), "sleep", "infinity")
	if err := sleep.Start(); err != nil {
		fmt.Println(err)
		return
	}
	json.NewEncoder(os.Stdout).Encode(harnessReport{
		Dir: l.Dir(), PIDs: []int{h.PID(), sleep.Process.Pid}, Cgroups: h.CgroupDirs(),
	})
	select {}
}

type harnessReport struct {
	Dir     string
	PIDs    []int
	Cgroups []string
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
}

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	l, err := lab.New(t.Context(), lab.Config{Dir: dir, State: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func addHost(t *testing.T, l *lab.Lab, cfg lab.HostConfig) *lab.Host {
	t.Helper()
	h, err := l.AddHost(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// sh runs a shell script in the host and returns what it printed.
func sh(t *testing.T, h *lab.Host, script string) string {
	t.Helper()
	out, err := h.Command(t.Context(), "sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func gone(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there (%v)", path, err)
		}
	}
}

// startServer runs serve in the host and waits until it listens.
func startServer(t *testing.T, h *lab.Host) *lab.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := h.Command(t.Context(), exe)
	c.Env = append(c.Env, roleEnv+"=serve")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "listening\n" {
		t.Fatalf("server said %q", line)
	}
	return c
}

func ask(ctx context.Context, from *lab.Host, address string) (string, error) {
	conn, err := from.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

func TestHostHasNamespacesOfItsOwn(t *testing.T) {
	h := addHost(t, newLab(t), lab.HostConfig{Name: "alpha", Hostname: "alpha.example"})
	for _, kind := range []string{"net", "mnt", "pid", "uts", "ipc", "cgroup"} {
		ours, _ := os.Readlink("/proc/self/ns/" + kind)
		theirs := sh(t, h, "readlink /proc/self/ns/"+kind)
		inits := sh(t, h, "readlink /proc/1/ns/"+kind)
		if theirs == ours || theirs != inits {
			t.Errorf("%s: machine %s, program in host %s, first process %s", kind, ours, theirs, inits)
		}
	}
	if got := sh(t, h, "hostname; cat /etc/hostname"); got != "alpha.example\nalpha.example" {
		t.Errorf("hostname and /etc/hostname: %q", got)
	}
	if got := sh(t, h, "ls /sys/class/net | sort | xargs"); got != "eth0 lo" {
		t.Errorf("links in /sys: %s", got)
	}
	if got := sh(t, h, "cat /proc/1/cmdline | tr '\\0' ' '"); got != "knarr-lab-init alpha" {
		t.Errorf("first process: %q", got)
	}
}

func TestHostSeesOnlyItsOwnCgroups(t *testing.T) {
	h := addHost(t, newLab(t), lab.HostConfig{Memory: 1 << 30})
	for line := range strings.Lines(sh(t, h, "cat /proc/self/cgroup")) {
		line = strings.TrimSpace(line)
		if path := line[strings.LastIndex(line, ":")+1:]; path != "/" && path != "/init" {
			t.Errorf("program in host is in cgroup %s", line)
		}
	}
	c := h.Command(t.Context(), "sleep", "infinity")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	cgroups := read(t, fmt.Sprintf("/proc/%d/cgroup", c.Process.Pid))
	for line := range strings.Lines(cgroups) {
		if !strings.Contains(line, "knarr-lab-") {
			t.Errorf("program started later is outside the host's cgroup: %s", line)
		}
	}
	for _, dir := range h.CgroupDirs() {
		point := strings.Split(dir, "/knarr-lab-")[0]
		sh(t, h, fmt.Sprintf("mkdir %s/child", point))
		if _, err := os.Stat(filepath.Join(dir, "child")); err != nil {
			t.Errorf("cgroup made in the host: %v", err)
		}
	}
}

func TestMemoryLimitBindsTheHost(t *testing.T) {
	h := addHost(t, newLab(t), lab.HostConfig{Memory: 64 << 20})
	const eat = "head -c 200000000 /dev/zero | tail -c 190000000 | wc -c"
	out, err := h.Command(t.Context(), "sh", "-c", eat).Output()
	if err == nil && strings.TrimSpace(string(out)) == "190000000" {
		t.Error("a program of 190 MB fits into 64 MiB")
	}
	if err := h.Limit(0); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, h, eat); got != "190000000" {
		t.Errorf("without limit: %s", got)
	}
}

func TestHostHasFilesOfItsOwn(t *testing.T) {
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "f"), []byte("shown"), 0o644); err != nil {
		t.Fatal(err)
	}
	h := addHost(t, newLab(t), lab.HostConfig{Binds: []lab.Bind{
		{Source: source, Target: "/var/lib/shown"},
		{Source: filepath.Join(source, "f"), Target: "/run/deep/file", ReadOnly: true},
	}})
	sh(t, h, `
		mkdir -p /etc/cni/net.d /etc/knarr /opt/cni/bin /var/lib/kubelet /var/log/pods /run/x
		echo 1 > /etc/cni/net.d/a; echo 2 > /var/lib/kubelet/b; echo 3 > /run/x/c
		test "$(cat /var/lib/shown/f)" = shown; echo new > /var/lib/shown/g
		test "$(cat /run/deep/file)" = shown; ! echo x 2>/dev/null > /run/deep/file
		test -e /etc/passwd; test -d /lib/modules -o ! -d /usr/lib/modules
		! touch /usr/x 2>/dev/null; echo ok > /dev/null; echo ok > /tmp/t; ls /var/run/x/c
	`)
	gone(t, "/etc/cni/net.d/a", "/run/x/c", "/var/lib/kubelet/b", "/tmp/t")
	if got := read(t, filepath.Join(source, "g")); got != "new" {
		t.Errorf("written through a bind: %q", got)
	}
	for path, want := range map[string]string{"/etc/cni/net.d/a": "1", "/var/lib/kubelet/b": "2", "/run/x/c": "3"} {
		if got := read(t, h.Path(path)); got != want {
			t.Errorf("%s seen from the machine: %q, want %q", path, got, want)
		}
	}
}

func TestOverlayWorksOnTheDataDir(t *testing.T) {
	h := addHost(t, newLab(t), lab.HostConfig{})
	sh(t, h, `
		cd /var/lib; mkdir -p knarr/l knarr/u knarr/w knarr/m; echo low > knarr/l/f; cd knarr
		mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w m
		echo up > m/f; test "$(cat l/f u/f | xargs)" = "low up"`)
}

func TestProgramsAreRunFaithfully(t *testing.T) {
	h := addHost(t, newLab(t), lab.HostConfig{})
	var exit *exec.ExitError
	if err := h.Command(t.Context(), "sh", "-c", "exit 7").Run(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exit 7: %v", err)
	}
	if err := h.Command(t.Context(), "no-such-program").Start(); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("a missing program: %v", err)
	}
	c := h.Command(t.Context(), "cat")
	c.Stdin = strings.NewReader("through")
	c.Dir = "/var"
	if out, err := c.Output(); err != nil || string(out) != "through" {
		t.Errorf("cat: %q, %v", out, err)
	}
	c = h.Command(t.Context(), "sh", "-c", "pwd; env | grep -c KNARR_LAB")
	c.Dir = "/var/lib"
	if out, _ := c.Output(); string(out) != "/var/lib\n0\n" {
		t.Errorf("folder and environment: %q", out)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c = h.Command(ctx, "sleep", "infinity")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := c.Wait(); err == nil {
		t.Error("a program outlived its context")
	}
}

// A server that is killed leaves its children to the host's first process.
func TestOrphansOutliveTheirParentAndAreReaped(t *testing.T) {
	h := addHost(t, newLab(t), lab.HostConfig{})
	sh(t, h, "mkfifo /run/gate /run/answer")
	c := h.Command(t.Context(), "sh", "-c", "sh -c 'echo started; read line < /run/gate; echo $line > /run/answer' & wait")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	bufio.NewReader(out).ReadString('\n')
	children := fmt.Sprintf("/proc/%d/task/%d/children", c.Process.Pid, c.Process.Pid)
	orphan, err := strconv.Atoi(read(t, children))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(orphan, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if got := sh(t, h, "echo alive > /run/gate; cat /run/answer"); got != "alive" {
		t.Errorf("orphan said %q", got)
	}
	// Asked for nothing else, poll tells when the process was reaped (Linux 6.9).
	await(t, unix.PollFd{Fd: int32(fd)})
}

// await waits until each descriptor has something to tell.
func await(t *testing.T, fds ...unix.PollFd) {
	t.Helper()
	for len(fds) > 0 {
		n, err := unix.Poll(fds, int(time.Minute.Milliseconds()))
		if err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		if n == 0 {
			t.Fatal("a process is still there")
		}
		fds = slices.DeleteFunc(fds, func(p unix.PollFd) bool { return p.Revents != 0 })
	}
}

func TestHostsOfALabReachEachOther(t *testing.T) {
	l := newLab(t)
	a, b := addHost(t, l, lab.HostConfig{Name: "a"}), addHost(t, l, lab.HostConfig{Name: "b"})
	startServer(t, b)
	for _, try := range []struct {
		from *lab.Host
		to   string
	}{{a, b.Addr().String()}, {b, "127.0.0.1"}, {b, "localhost"}} {
		if got, err := ask(t.Context(), try.from, try.to+":7000"); err != nil || got != "b" {
			t.Errorf("from %s to %s: %q, %v", try.from.Name(), try.to, got, err)
		}
	}
	if _, err := ask(t.Context(), a, "127.0.0.1:7000"); err == nil {
		t.Error("a's loopback reaches b's server")
	}
	if _, err := ask(t.Context(), a, "b:7000"); err == nil {
		t.Error("a name of the machine was looked up")
	}
}

// Nothing is sent to find out: 192.0.2.1 is for documentation, and the error
// comes from the bridge, whose namespace has no other link and no other route.
func TestNoHostReachesTheWorld(t *testing.T) {
	h := addHost(t, newLab(t), lab.HostConfig{})
	_, err := h.DialContext(t.Context(), "tcp", "192.0.2.1:80")
	if !errors.Is(err, syscall.ENETUNREACH) && !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("dialling outside the lab: %v", err)
	}
	if got := sh(t, h, "ip -4 route"); strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, "default via 10.99.0.1 dev eth0") {
		t.Errorf("routes: %s", got)
	}
	links, routes := lab.Outside(h)
	if slices.Sort(links); !slices.Equal(links, []string{"lab0", "lo", "port1"}) {
		t.Errorf("links beside the bridge: %v", links)
	}
	if !slices.Equal(routes, []string{"10.99.0.0/24"}) {
		t.Errorf("routes beside the bridge: %v", routes)
	}
	if strings.Contains(read(t, "/proc/net/dev"), "port1") {
		t.Error("the machine sees the lab's links")
	}
}

func TestRebootEmptiesRunAndKeepsTheDisk(t *testing.T) {
	h := addHost(t, newLab(t), lab.HostConfig{})
	sh(t, h, `echo x > /run/f; mkdir -p /var/lib/knarr; echo y > /var/lib/knarr/f; echo z > /etc/knarr/f
		ip link add extra type bridge; for d in /sys/fs/cgroup/*/; do mkdir $d/kubepods; done`)
	waiting := h.Command(t.Context(), "sleep", "infinity")
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	id, addr, dead := sh(t, h, "cat /etc/machine-id"), h.Addr(), h.Dead()
	if err := h.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-dead
	if err := waiting.Wait(); err == nil {
		t.Error("a program outlived the reboot")
	}
	sh(t, h, `! test -e /run/f; test "$(cat /var/lib/knarr/f)" = y; test "$(cat /etc/knarr/f)" = z
		! test -e /sys/class/net/extra; ! ls -d /sys/fs/cgroup/*/kubepods 2>/dev/null`)
	if got := sh(t, h, "cat /etc/machine-id"); got != id || h.Addr() != addr {
		t.Errorf("machine-id %s became %s, address %s became %s", id, got, addr, h.Addr())
	}
}

func TestFirstProcessTakesTheHostWithIt(t *testing.T) {
	h := addHost(t, newLab(t), lab.HostConfig{})
	c := h.Command(t.Context(), "sleep", "infinity")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(h.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err == nil {
		t.Error("a program outlived the first process")
	}
	<-h.Dead()
	if err := h.Command(t.Context(), "true").Run(); err == nil {
		t.Error("a dead host ran a program")
	}
}

func TestCloseLeavesTheMachineAsItWas(t *testing.T) {
	needRoot(t)
	look := func() string {
		links, err := net.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, l := range links {
			names = append(names, l.Name)
		}
		return read(t, "/proc/self/mountinfo") + fmt.Sprint(names) + read(t, "/proc/sys/vm/overcommit_memory")
	}
	before := look()
	dir := t.TempDir()
	l, err := lab.New(t.Context(), lab.Config{Dir: dir, State: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := addHost(t, l, lab.HostConfig{})
	addHost(t, l, lab.HostConfig{})
	startServer(t, h)
	old := read(t, "/proc/sys/vm/overcommit_memory")
	sh(t, h, `for d in /sys/fs/cgroup/*/; do mkdir $d/kubepods; done; mount -t tmpfs t /mnt; mkdir -p /var/lib/kubelet/p
		mount -t tmpfs t /var/lib/kubelet/p; ip link add v type veth; sysctl -qw vm.overcommit_memory=1`)
	cgroups := h.CgroupDirs()
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := look(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if got := read(t, "/proc/sys/vm/overcommit_memory"); got != old {
		t.Errorf("vm.overcommit_memory was %s, is %s", old, got)
	}
	for _, c := range cgroups {
		gone(t, c, filepath.Dir(c))
	}
	gone(t, l.Dir(), filepath.Join(dir, "state", l.Name()+".lab"), filepath.Join(dir, "state", "machine.json"))
	if _, err := l.AddHost(t.Context(), lab.HostConfig{}); err == nil {
		t.Error("a closed lab took a host")
	}
}

func TestSweepRemovesWhatAKilledHarnessLeft(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	old := read(t, "/proc/sys/kernel/panic_on_oops")
	c := exec.CommandContext(t.Context(), "/proc/self/exe", dir)
	c.Env = append(os.Environ(), roleEnv+"=harness")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadBytes('\n')
	var made harnessReport
	if err := json.NewDecoder(bytes.NewReader(line)).Decode(&made); err != nil {
		t.Fatalf("harness said %q: %v", line, err)
	}
	if err := lab.Sweep(t.Context(), filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	var alive []unix.PollFd
	for _, pid := range made.PIDs {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatalf("a sweep ended a live lab: %v", err)
		}
		defer unix.Close(fd)
		alive = append(alive, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	if err := os.WriteFile("/proc/sys/kernel/panic_on_oops", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	await(t, alive...)
	if err := lab.Sweep(t.Context(), filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	gone(t, append(made.Cgroups, made.Dir)...)
	if got := read(t, "/proc/sys/kernel/panic_on_oops"); got != old {
		t.Errorf("kernel.panic_on_oops was %s, is %s", old, got)
	}
}

func TestAFolderThatWasThereIsUsedAgainAndStays(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for i, want := range []string{"", "kept"} {
		l, err := lab.New(t.Context(), lab.Config{Name: "kept", Dir: dir, State: filepath.Join(dir, "state"), Keep: i == 0})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		h := addHost(t, l, lab.HostConfig{})
		if got := sh(t, h, "cat /var/f || true; echo kept > /var/f"); !strings.HasPrefix(got, want) {
			t.Errorf("start %d found %q", i, got)
		}
		if _, err := lab.New(t.Context(), lab.Config{Name: "kept", Dir: dir, State: filepath.Join(dir, "state")}); err == nil {
			t.Error("two labs of one name")
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "kept", "host1")); err != nil {
		t.Error(err)
	}
}
