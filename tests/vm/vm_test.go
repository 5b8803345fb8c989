package vm

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
)

var into = flag.String("into", "", "put the results into this Markdown file")

const (
	exe = "/payload/knarr"
	// evidence is a folder of the machine's disk that pods write to.
	evidence = "/var/lib/evidence"
	day      = 24 * time.Hour
)

// node is the machine with Knarr in it, and what the steps of the test share.
type node struct {
	*Machine
	*cluster
	results *results
	broken  bool // by a step that all later ones need
}

// TestVirtualMachine is one life of a node. Its steps build on each other.
func TestVirtualMachine(t *testing.T) {
	if os.Getenv("KNARR_VM") == "" {
		t.Skip("an emulated machine takes long: make test-vm")
	}
	n := newNode(t)
	t.Run("boots systemd with cgroup v2 alone", n.vital(n.boots))
	t.Run("holds volumes to their size", n.step(n.holdsVolumes))
	t.Run("passes knarr check before the start", n.step(n.checks))
	t.Run("is ready when systemd says that the unit is", n.vital(n.starts))
	t.Run("runs pods that Services name and reach", n.vital(n.runsPods))
	t.Run("puts pods into slices and scopes of systemd, with their limits", n.step(n.slices))
	t.Run("is killed last when memory is short", n.step(n.oomScores))
	t.Run("keeps its pods over a restart by systemd", n.step(n.restarts))
	t.Run("goes on when the clock jumps a day forward, and back", n.step(n.clockJumps))
	t.Run("ends its pods in order when the machine shuts down, and has them back after the boot", n.step(n.reboots))
	t.Run("has the same pods back after a power cut", n.step(n.powerCut))
	t.Run("survives pods that take all memory", n.step(n.exhausted))
	t.Run("installs itself, and leaves the machine as it was when it is uninstalled", n.step(n.uninstalls))
	t.Run("runs a cluster in a container with cgroup v2", n.step(n.inContainer))
	t.Run("runs throwaway clusters in a container, as CI runners do", n.step(n.runsInContainer))
	t.Run("runs throwaway clusters without root", n.step(n.withoutRoot))
}

// newNode makes the machine. Its results are written when the test ends.
func newNode(t *testing.T) *node {
	t.Helper()
	root := filepath.Join("..", "..")
	work, err := filepath.Abs(filepath.Join(root, "build", "vm"))
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(work, "image")
	if err := makeImage(image); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(work, "run-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	payload := filepath.Join(dir, "payload.raw")
	if err := makePayload(payload, map[string]string{
		"knarr": harness.Exe(t), "agent": buildAgent(t, dir), "storage.test": buildTest(t, dir, "storage"),
		"image.tar": filepath.Join(root, "dist", "knarr-image-amd64.tar"), "test.tar": filepath.Join(root, "build", "images", "test.tar"),
		"knarr.service": "files/knarr.service", "kubelet.yaml": "files/kubelet.yaml",
	}); err != nil {
		t.Fatal(err)
	}
	n := &node{results: &results{commit: commit(), began: time.Now()}}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if n.Machine, err = startMachine(ctx, image, dir, payload); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(n.consoleTail())
		}
		n.Machine.close()
		t.Log("\n" + n.results.markdown())
		if *into != "" {
			if err := n.results.write(*into); err != nil {
				t.Error(err)
			}
		}
	})
	return n
}

func buildAgent(t *testing.T, dir string) string {
	t.Helper()
	agent := filepath.Join(dir, "agent")
	c := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", agent, "./agent")
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build agent: %v\n%s", err, out)
	}
	return agent
}

// buildTest compiles the tests of an add-on, linked as the executable is.
func buildTest(t *testing.T, dir, addon string) string {
	t.Helper()
	file := filepath.Join(dir, addon+".test")
	c := exec.Command("go", "test", "-c", "-ldflags", "-linkmode external -extldflags -static", "-o", file, "../../pkg/addons/"+addon)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("compile the tests of %s: %v\n%s", addon, err, out)
	}
	return file
}

// commit is what is tested, as far as git knows.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// step is a subtest whose result is recorded.
func (n *node) step(test func(*testing.T)) func(*testing.T) {
	return func(t *testing.T) {
		began := time.Now()
		defer func() {
			result := "passed"
			switch {
			case t.Failed():
				result = "FAILED"
				n.log(t)
			case t.Skipped():
				result = "not run"
			}
			_, name, _ := strings.Cut(t.Name(), "/")
			n.results.steps = append(n.results.steps, step{strings.ReplaceAll(name, "_", " "), result, time.Since(began)})
		}()
		if n.broken {
			t.Skip("the node does not run")
		}
		test(t)
	}
}

// vital is a step without which the later ones make no sense.
func (n *node) vital(test func(*testing.T)) func(*testing.T) {
	return n.step(func(t *testing.T) {
		n.broken = true
		test(t)
		n.broken = t.Failed()
	})
}

// log shows the end of Knarr's log.
func (n *node) log(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := n.run(ctx, nil, "journalctl", "--no-pager", "-o", "cat", "-n", "60", "-u", "knarr")
	t.Logf("%v\n%s", err, out)
}

// sh runs a script in the machine and returns what it printed.
func (n *node) sh(t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := n.run(ctx, nil, "sh", "-ec", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// now is the machine's time.
func (n *node) now(t *testing.T) time.Time {
	t.Helper()
	return time.Unix(int64(number(t, n.sh(t, "date +%s"))), 0)
}

func number(t *testing.T, text string) int {
	t.Helper()
	v, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (n *node) create(t *testing.T, p *corev1.Pod) {
	t.Helper()
	if _, err := n.CoreV1().Pods("default").Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// reaches asks the Service web by its name, from within a pod.
func (n *node) reaches(t *testing.T, pod string) {
	t.Helper()
	if out := n.sh(t, exe+" kubectl exec "+pod+" -- testbox get http://web --timeout=60s --retry=5m"); out != "hello" {
		t.Errorf("the Service web answers %q", out)
	}
}
