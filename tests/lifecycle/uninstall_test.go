package lifecycle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// TestUninstallLeavesTheMachineAsItWas has a node of its own for a whole life:
// installed, run, stopped with its pods, started again, and taken away. No init
// system is there: the harness starts the server.
func TestUninstallLeavesTheMachineAsItWas(t *testing.T) {
	n := harness.Prepare(t, harness.Options{})
	before := takePicture(t, n)

	const installed = "/opt/bin/knarr"
	told := n.Exec(t, n.Exe, "install", "--dry-run", "--bin-dir", "/opt/bin", "--init", "none")
	if now := takePicture(t, n); !now.equals(t, before) || !strings.Contains(told, installed) {
		t.Errorf("a dry run changed something, or said too little:\n%s", told)
	}
	n.Exec(t, n.Exe, "install", "--bin-dir", "/opt/bin", "--init", "none")
	if again := n.Exec(t, n.Exe, "install", "--init", "none"); !strings.Contains(again, "no change") {
		t.Errorf("a second install: %s", again)
	}
	n.Exe = installed
	n.Resume(t)

	ns := n.Namespace(t)
	all := kube.Label("all", "yes")
	n.Create(t, ns, kube.ConfigMap("settings", "a", "b"),
		kube.Deployment("web", 2, all, kube.Serve("hello"), kube.Mount("memory", "/memory", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}),
			kube.Mount("settings", "/settings", kube.Settings("settings"))),
		kube.Service("web", kube.Port(80, 8080), kube.NodePort),
		kube.Pod("outside", all, kube.HostNetwork, kube.Grace(1)),
		kube.Pod("exposed", all, kube.Grace(1), kube.Expose("http", 8080), kube.HostPort(8088)))
	n.WaitPods(t, ns, "all=yes", 4)

	t.Run("with its pods stopped, and back at the next start", func(t *testing.T) {
		out := n.Exec(t, installed, "stop", "--pods", "--grace", "1s")
		_ = n.Wait(t) // by SIGTERM
		if !strings.Contains(out, "containers stopped") {
			t.Errorf("stop said %q", out)
		}
		now := takePicture(t, n)
		now.without("files", "sysctls").expect(t, before.without("files", "sysctls"))
		n.Resume(t)
		n.WaitPods(t, ns, "all=yes", 4)
	})

	told = n.Exec(t, installed, "uninstall", "--dry-run")
	for _, part := range []string{"remove /var/lib/knarr", "undo sysctl", "remove " + installed, "undo link cni0"} {
		if !strings.Contains(told, part) {
			t.Errorf("the dry run tells nothing of %q:\n%s", part, told)
		}
	}
	n.Exec(t, installed, "uninstall", "--grace", "1s")
	_ = n.Wait(t) // by SIGTERM
	takePicture(t, n).expect(t, before)
	if _, err := os.Stat(n.Host.Path("/var/lib/knarr")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the data dir is still there: %v", err)
	}
}

// picture is what can be seen of a machine, by kind.
type picture map[string][]string

func (p picture) without(kinds ...string) picture {
	rest := picture{}
	for kind, lines := range p {
		if !slices.Contains(kinds, kind) {
			rest[kind] = lines
		}
	}
	return rest
}

// differences tells what p has other than want.
func (p picture) differences(want picture) []string {
	var all []string
	for kind, lines := range want {
		for _, l := range lines {
			if !slices.Contains(p[kind], l) {
				all = append(all, kind+" lack: "+l)
			}
		}
		for _, l := range p[kind] {
			if !slices.Contains(lines, l) {
				all = append(all, kind+" have: "+l)
			}
		}
	}
	slices.Sort(all)
	return all
}

func (p picture) equals(t *testing.T, want picture) bool {
	t.Helper()
	d := p.differences(want)
	if len(d) > 0 {
		t.Log(strings.Join(d, "\n"))
	}
	return len(d) == 0
}

func (p picture) expect(t *testing.T, want picture) {
	t.Helper()
	if d := p.differences(want); len(d) > 0 {
		t.Errorf("the machine is not as it was:\n%s", strings.Join(d, "\n"))
	}
}

// restless are kernel parameters that count something.
var restless = regexp.MustCompile(`^(fs\.(dentry-state|file-nr|inode-nr|inode-state|aio-nr|epoll.*|quota\..*)|fs\.binfmt.*|kernel\.(random\..*|ns_last_pid|pty\.nr|perf_.*|sched_domain.*|keys\.gc.*)|net\.netfilter\.nf_conntrack_count|vm\.stat_refresh)\b`)

func takePicture(t *testing.T, n *harness.Node) picture {
	t.Helper()
	p := picture{}
	lines := func(text string) []string {
		return slices.DeleteFunc(strings.Split(text, "\n"), func(l string) bool { return strings.TrimSpace(l) == "" })
	}
	p["links"] = lines(n.Exec(t, "ip", "-br", "link"))
	p["addresses"] = lines(n.Exec(t, "ip", "-br", "address"))
	p["routes"] = lines(n.Exec(t, "ip", "route", "show", "table", "all"))
	p["rules"] = lines(n.Exec(t, "nft", "list", "ruleset"))
	// Some can't be read.
	sysctls, _ := n.ExecErr(t.Context(), "sh", "-c", `cd /proc/sys && find . -type f -perm -0400 ! -path './vm/stat_refresh' ! -path './vm/compact_memory' ! -path './vm/drop_caches' -exec grep -sH . {} +`)
	p["sysctls"] = slices.DeleteFunc(lines(sysctls), func(l string) bool {
		return restless.MatchString(strings.ReplaceAll(strings.TrimPrefix(l, "./"), "/", "."))
	})
	mounts, err := os.ReadFile(n.Host.Path("/proc/1/mountinfo"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		left, right, _ := strings.Cut(line, " - ")
		p["mounts"] = append(p["mounts"], strings.Join(strings.Fields(left)[3:6], " ")+" "+strings.Fields(right)[0])
	}
	pids, err := filepath.Glob(n.Host.Path("/proc/[0-9]*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range pids {
		if comm, err := os.ReadFile(filepath.Join(dir, "comm")); err == nil { // it may have ended
			p["processes"] = append(p["processes"], filepath.Base(dir)+" "+strings.TrimSpace(string(comm)))
		}
	}
	for i, dir := range n.Host.CgroupDirs() {
		walk(t, dir, func(path string, e fs.DirEntry) {
			if e.IsDir() {
				p["cgroups"] = append(p["cgroups"], fmt.Sprint(i, " ", strings.TrimPrefix(path, dir)))
			}
		})
	}
	root := n.Host.Path("/")
	for _, dir := range []string{"/etc", "/var", "/opt", "/run", "/root", "/tmp"} {
		walk(t, n.Host.Path(dir), func(path string, e fs.DirEntry) {
			info, err := e.Info()
			if err != nil {
				return
			}
			name := "/" + strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
			// The harness put the first there, binds the second and listens on the
			// third; the last is the cache of the kubectl that it ran.
			if strings.HasPrefix(name, "/var/lib/knarr") || strings.HasPrefix(name, "/opt/knarr") || strings.Contains(name, "notify") || strings.HasPrefix(name, "/root/.kube") {
				return
			}
			line := name + " " + info.Mode().String()
			if info.Mode().IsRegular() {
				line += fmt.Sprintf(" %d bytes", info.Size())
			}
			p["files"] = append(p["files"], line)
		})
	}
	return p
}

func walk(t *testing.T, root string, each func(string, fs.DirEntry)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			each(path, e)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
