package host

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// container is the inside of a container with a cgroup namespace of its own.
var container = map[string]string{
	"/proc/1/comm":                          "knarr\n",
	"/proc/self/cgroup":                     "0::/\n",
	"/sys/fs/cgroup/cgroup.type":            "domain\n",
	"/sys/fs/cgroup/cgroup.procs":           "1\n7\n",
	"/sys/fs/cgroup/cgroup.subtree_control": "memory\n",
}

func prepare(t *testing.T, m *Machine) {
	t.Helper()
	f, err := m.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.PrepareCgroups(f); err != nil {
		t.Fatal(err)
	}
}

func TestProcessesOfANamespacesRootMoveToALeaf(t *testing.T) {
	m := fakeMachine(t, container)
	prepare(t, m)
	if got := strings.Fields(m.read("/sys/fs/cgroup/init/cgroup.procs")); !slices.Equal(got, []string{"1", "7"}) {
		t.Errorf("moved: %v", got)
	}
	enabled := strings.Fields(m.read("/sys/fs/cgroup/cgroup.subtree_control"))
	for _, want := range []string{"+cpu", "+cpuset", "+pids"} {
		if !slices.Contains(enabled, want) {
			t.Errorf("%s is not among %v", want, enabled)
		}
	}
}

func TestMachinesTrueRootKeepsItsProcesses(t *testing.T) {
	m := fakeMachine(t, container, map[string]string{"/sys/fs/cgroup/cgroup.type": ""})
	prepare(t, m)
	if m.exists("/sys/fs/cgroup/init") {
		t.Error("processes were moved")
	}
	if !strings.Contains(m.read("/sys/fs/cgroup/cgroup.subtree_control"), "+cpu") {
		t.Error("controllers were not enabled")
	}
}

func TestSystemdsTreeIsLeftAlone(t *testing.T) {
	for _, changes := range []map[string]string{{"/sys/fs/cgroup/cgroup.procs": "1\n"}, hybrid("")} {
		m := fakeMachine(t, changes)
		prepare(t, m)
		if m.exists("/sys/fs/cgroup/init") || strings.Contains(m.read("/sys/fs/cgroup/cgroup.subtree_control"), "+") {
			t.Error("something was changed")
		}
	}
}

func TestForeignProcessInTheRootIsExplained(t *testing.T) {
	m := fakeMachine(t, container, map[string]string{"/sys/fs/cgroup/cgroup.procs": "0\n"})
	f, _ := m.Detect()
	if err := m.PrepareCgroups(f); err == nil || !strings.Contains(err.Error(), "cgroup namespace of its own") {
		t.Error(err)
	}
}

// On a real v2 tree, with a group in the place of a container's root.
func TestKernelTakesTheLeafAndTheControllers(t *testing.T) {
	needRoot(t)
	c := new(Machine).cgroups()
	if c.Mount == "" {
		t.Skip("no cgroup v2 tree is mounted")
	}
	dir := filepath.Join(c.Mount, fmt.Sprintf("knarr-host-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skip("the cgroup v2 tree can't be changed: ", err)
	}
	t.Cleanup(func() {
		if err := removeCgroup(dir, true); err != nil {
			t.Error(err)
		}
	})
	child := exec.Command("cat")
	in, _ := child.StdinPipe()
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = child.Wait()
	})
	pid := fmt.Sprint(child.Process.Pid)
	if err := writeFile(filepath.Join(dir, "cgroup.procs"), pid); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(dir, name))
		return strings.TrimSpace(string(b))
	}
	available := strings.Fields(read("cgroup.controllers"))
	err := new(Machine).PrepareCgroups(Facts{CgroupDriver: DriverCgroupfs, Cgroups: Cgroups{Mode: CgroupV2, Mount: dir, Own: "/", Controllers: available}})
	if err != nil {
		t.Fatal(err)
	}
	if read("cgroup.procs") != "" || read("init/cgroup.procs") != pid {
		t.Errorf("root has %q, leaf has %q", read("cgroup.procs"), read("init/cgroup.procs"))
	}
	if read("cgroup.subtree_control") != strings.Join(available, " ") {
		t.Errorf("enabled %q of %v", read("cgroup.subtree_control"), available)
	}
}
