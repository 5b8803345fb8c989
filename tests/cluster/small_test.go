package cluster

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

var small = flag.Duration("small", 0, "for how long TestSmallMachines has its pods run; 0 leaves the test out")

// A server with 512 MiB of memory and an agent with 256, three small pods on each:
// programs, pods, and what the kernel keeps of files for them, all together.
func TestSmallMachines(t *testing.T) {
	if *small == 0 {
		t.Skip("make small")
	}
	if swaps, err := os.ReadFile("/proc/swaps"); err != nil || strings.Contains(string(swaps), "\n/") {
		t.Fatalf("swap would help: %s, %v", swaps, err)
	}
	server := harness.Prepare(t, harness.Options{})
	limit(t, server, 512<<20)
	server.Resume(t)
	agent := harness.Prepare(t, harness.Options{Join: server, Name: "edge-1", Env: []string{"KNARR_TOKEN=" + server.Token(t)}})
	limit(t, agent, 256<<20)
	agent.Resume(t)
	ns := server.Namespace(t)
	nodes := map[string]*harness.Node{server.Host.Name(): server, "edge-1": agent}
	var names []string
	for node := range nodes {
		for i := range 3 {
			name := fmt.Sprintf("%s-%d", node, i)
			names = append(names, name)
			server.Create(t, ns, kube.Pod(name, kube.On(node), kube.Serve(name)))
		}
	}
	for _, name := range names {
		server.WaitPodRunning(t, ns, name)
	}
	time.Sleep(*small)
	for _, name := range names {
		if p := server.WaitPodRunning(t, ns, name); p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("%s was restarted: %+v", name, p.Status.ContainerStatuses[0])
		}
	}
	for name, n := range nodes {
		waitNode(t, server, name, corev1.ConditionTrue)
		m := memoryOf(t, n)
		t.Logf("%s: at most %d MiB, %d of them not of files now, %d killed", name, m.highest>>20, m.anonymous>>20, m.killed)
		if m.killed != 0 {
			t.Errorf("%s: the kernel killed %d processes for their memory", name, m.killed)
		}
	}
}

func limit(t *testing.T, n *harness.Node, bytes int64) {
	t.Helper()
	if err := n.Host.Limit(bytes); err != nil {
		t.Fatal(err)
	}
}

// memory is what a host's cgroup tells of its memory, in bytes.
type memory struct{ highest, anonymous, killed int64 }

func memoryOf(t *testing.T, n *harness.Node) memory {
	t.Helper()
	for _, dir := range n.Host.CgroupDirs() {
		for _, files := range [][3]string{
			{"memory.max_usage_in_bytes", "memory.stat:total_rss", "memory.oom_control:oom_kill"},
			{"memory.peak", "memory.stat:anon", "memory.events:oom_kill"},
		} {
			if _, err := os.Stat(filepath.Join(dir, files[0])); err == nil {
				return memory{number(t, dir, files[0]), number(t, dir, files[1]), number(t, dir, files[2])}
			}
		}
	}
	t.Fatal("no cgroup of the host tells of its memory")
	return memory{}
}

// number reads a file's one number, or that behind a name: FILE:NAME.
func number(t *testing.T, dir, what string) int64 {
	t.Helper()
	file, name, _ := strings.Cut(what, ":")
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if got := fields[len(fields)-1]; name == "" || fields[0] == name {
			n, err := strconv.ParseInt(got, 10, 64)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			return n
		}
	}
	t.Fatalf("%s is not in %s", what, dir)
	return 0
}
