package chaos

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/knarr-dev/knarr/tests/harness"
)

type unit int

const (
	number unit = iota
	mebibytes
)

// measure is one thing that must end where it began.
type measure struct {
	name string
	unit unit
	// share and extra bound by how much the end may be more than the beginning:
	// by a part of that, and an amount. What is counted may not grow at all.
	share float64
	extra int64
	take  func(*testing.T, *harness.Node) int64
}

var measures = []measure{
	// A heap's size depends on when it was collected last.
	{"resident", mebibytes, 0.25, 40 << 20, resident},
	{"anonymous", mebibytes, 0.25, 40 << 20, status("RssAnon")},
	{"goroutines", number, 0.05, 40, metric("go_goroutines")},
	{"threads", number, 0, 12, threads},
	{"descriptors", number, 0, 15, descriptors},
	// Freed pages stay in the file.
	{"database", mebibytes, 0.5, 24 << 20, size("")},
	{"log", mebibytes, 0.5, 16 << 20, size("-wal")},
	{"nft rules", number, 0, 0, nft(false)},
	// kube-proxy empties a chain at once, and deletes it when the next Service changes.
	{"nft chains", number, 0, 8, nft(true)},
	{"mounts", number, 0, 0, mounts},
	{"cgroups", number, 0, 0, cgroups},
	{"links", number, 0, 0, lines("ip", "-o", "link")},
	{"addresses", number, 0, 0, lines("ip", "-o", "address")},
	{"IPAM files", number, 0, 0, files("/run/knarr/cni-ipam")},
	{"processes", number, 0, 0, processes},
	{"pod folders", number, 0, 0, folders("/var/lib/kubelet/pods")},
	{"log folders", number, 0, 0, folders("/var/log/pods")},
}

func names() []string {
	var out []string
	for _, m := range measures {
		out = append(out, m.name)
	}
	return out
}

// point is one sample of all measures.
type point struct {
	at     time.Duration
	values []int64
}

func (p point) String() string {
	var b strings.Builder
	for i, v := range p.values {
		fmt.Fprintf(&b, "%s %d, ", measures[i].name, v)
	}
	return b.String()
}

func sample(t *testing.T, n *harness.Node, at time.Duration) point {
	t.Helper()
	values := make([]int64, 0, len(measures))
	for _, m := range measures {
		values = append(values, m.take(t, n))
	}
	return point{at, values}
}

// compare tells what is more in the end than in the beginning.
func compare(first, last point) []string {
	var problems []string
	for i, m := range measures {
		was, is := first.values[i], last.values[i]
		if limit := was + int64(m.share*float64(was)) + m.extra; is > limit {
			problems = append(problems, fmt.Sprintf("%s: %d in the beginning, %d in the end (limit %d)", m.name, was, is, limit))
		}
	}
	return problems
}

func number64(t *testing.T, text string) int64 {
	t.Helper()
	f, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil {
		t.Fatal(err)
	}
	return int64(f)
}

// status is a field of /proc/PID/status, in bytes.
func status(field string) func(*testing.T, *harness.Node) int64 {
	return func(t *testing.T, n *harness.Node) int64 {
		for line := range strings.Lines(n.Exec(t, "cat", fmt.Sprintf("/proc/%d/status", n.Status(t).PID))) {
			if value, ok := strings.CutPrefix(line, field+":"); ok {
				return number64(t, strings.TrimSuffix(strings.TrimSpace(value), "kB")) << 10
			}
		}
		t.Fatalf("the kernel tells no %s", field)
		return 0
	}
}

// metric is one of the API server's, which are those of the whole process.
func metric(name string) func(*testing.T, *harness.Node) int64 {
	return func(t *testing.T, n *harness.Node) int64 {
		text, err := n.Client.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		scan := bufio.NewScanner(strings.NewReader(string(text)))
		for scan.Scan() {
			if value, ok := strings.CutPrefix(scan.Text(), name+" "); ok {
				return number64(t, value)
			}
		}
		t.Fatalf("no metric %s", name)
		return 0
	}
}

func threads(t *testing.T, n *harness.Node) int64 { return entries(t, n, "task") }

func descriptors(t *testing.T, n *harness.Node) int64 { return entries(t, n, "fd") }

func entries(t *testing.T, n *harness.Node, of string) int64 {
	return int64(len(strings.Fields(n.Exec(t, "ls", fmt.Sprintf("/proc/%d/%s", n.Status(t).PID, of)))))
}

func size(suffix string) func(*testing.T, *harness.Node) int64 {
	return func(t *testing.T, n *harness.Node) int64 {
		info, err := os.Stat(n.Host.Path(storeFile + suffix))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
}

// processes are counted by the shell itself: ls would look at each, and fail for one
// that ends meanwhile.
func processes(t *testing.T, n *harness.Node) int64 {
	return int64(len(strings.Fields(n.Exec(t, "sh", "-c", "echo /proc/[0-9]*"))))
}

func lines(command ...string) func(*testing.T, *harness.Node) int64 {
	return func(t *testing.T, n *harness.Node) int64 {
		return int64(strings.Count(n.Exec(t, command...), "\n"))
	}
}

// nft counts chains, or everything else that the kernel holds of the ruleset.
func nft(chains bool) func(*testing.T, *harness.Node) int64 {
	return func(t *testing.T, n *harness.Node) (count int64) {
		for line := range strings.Lines(n.Exec(t, dataDir+"/bundle/current/bin/nft", "--stateless", "list", "ruleset")) {
			line = strings.TrimSpace(line)
			if line != "" && line != "}" && strings.HasPrefix(line, "chain ") == chains {
				count++
			}
		}
		return count
	}
}

func mounts(t *testing.T, n *harness.Node) int64 {
	return int64(strings.Count(n.Exec(t, "cat", fmt.Sprintf("/proc/%d/mountinfo", n.Status(t).PID)), "\n"))
}

// cgroups counts those of the host in every hierarchy.
func cgroups(t *testing.T, n *harness.Node) int64 {
	count := int64(0)
	for _, dir := range n.Host.CgroupDirs() {
		count += walk(t, dir, func(d fs.DirEntry) bool { return d.IsDir() })
	}
	return count
}

func files(dir string) func(*testing.T, *harness.Node) int64 {
	return func(t *testing.T, n *harness.Node) int64 {
		return walk(t, n.Host.Path(dir), func(d fs.DirEntry) bool {
			// What plugins keep for themselves has no address for a name.
			return !d.IsDir() && strings.Contains(d.Name(), ".") && !strings.HasPrefix(d.Name(), "last_reserved_ip")
		})
	}
}

func folders(dir string) func(*testing.T, *harness.Node) int64 {
	return func(t *testing.T, n *harness.Node) int64 {
		list, err := os.ReadDir(n.Host.Path(dir))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return int64(len(list))
	}
}

// walk counts what is wanted below dir; what goes meanwhile is not there.
func walk(t *testing.T, dir string, wanted func(fs.DirEntry) bool) int64 {
	count := int64(0)
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && wanted(d) {
			count++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}

func TestWhatGrowsInASoakIsTold(t *testing.T) {
	values := make([]int64, len(measures))
	first := point{values: values}
	more := make([]int64, len(measures))
	for i := range more {
		more[i] = 1 << 40
	}
	if got := compare(first, point{values: more}); len(got) != len(measures) {
		t.Errorf("%d of %d are told: %q", len(got), len(measures), got)
	}
	if got := compare(first, first); len(got) != 0 {
		t.Errorf("nothing grew: %q", got)
	}
}
