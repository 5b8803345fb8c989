package lifecycle

import (
	"encoding/json"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// checked runs `knarr check`, which must end with the code.
func checked(t *testing.T, n *harness.Node, code int, args ...string) host.Report {
	t.Helper()
	out, err := n.Host.Command(t.Context(), n.Exe, append([]string{"check", "-o", "json"}, args...)...).Output()
	got := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		got = exit.ExitCode()
		if len(exit.Stderr) > 0 {
			t.Errorf("on stderr: %s", exit.Stderr)
		}
	} else if err != nil {
		t.Fatal(err)
	}
	if got != code {
		t.Errorf("knarr check %s: exit code %d, want %d", strings.Join(args, " "), got, code)
	}
	var r host.Report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v in:\n%s", err, out)
	}
	return r
}

// tells wants a check's result at a level, with some words.
func tells(t *testing.T, r host.Report, l host.Level, check string, words ...string) {
	t.Helper()
	for _, one := range r.Of(l) {
		if one.Check == check && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(one.String(), w) }) {
			return
		}
	}
	t.Errorf("no %s of %s with %q in:\n%v", l, check, words, r.Results)
}

func TestCheckTellsBeforeTheStart(t *testing.T) {
	n := harness.Prepare(t, harness.Options{Files: map[string]string{"/opt/config.yaml": "node-ip: 192.0.2.1\n"}})
	t.Run("that a fit machine is fit", func(t *testing.T) {
		r := checked(t, n, 0)
		for _, name := range append([]string{"configuration"}, host.Checks()...) {
			if !slices.ContainsFunc(r.Results, func(one host.Result) bool { return one.Check == name }) {
				t.Errorf("nothing is told of %s", name)
			}
		}
		tells(t, r, host.OK, "ports", "6443/tcp", "10250/tcp", "10256/tcp", "8472/udp", "53/udp")
		if table := n.Exec(t, n.Exe, "check"); strings.Count(table, "\n") != len(r.Results)+1 {
			t.Errorf("the table has not a line for each of %d results:\n%s", len(r.Results), table)
		}
	})
	t.Run("who holds a port", func(t *testing.T) {
		holder := holdPort(t, n, 6443)
		tells(t, checked(t, n, 0), host.Warning, "ports", "6443/tcp is taken", "by testbox, process ")
		tells(t, checked(t, n, 0, "--https-listen-port=6444"), host.OK, "ports", "6444/tcp")
		_ = holder.Process.Kill()
	})
	t.Run("which ranges overlap", func(t *testing.T) {
		r := checked(t, n, 2, "--service-cidr=10.42.128.0/20")
		tells(t, r, host.Error, "configuration", "10.42.128.0/20", "10.42.0.0/16", "overlaps")
		n.Exec(t, "ip", "route", "add", "10.43.7.0/24", "dev", "eth0")
		tells(t, checked(t, n, 0), host.Warning, "routes", "10.43.0.0/16 overlaps route 10.43.7.0/24 on eth0")
	})
	t.Run("what the server would refuse", func(t *testing.T) {
		r := checked(t, n, 1, "--config=/opt/config.yaml")
		tells(t, r, host.Error, "node-address", "192.0.2.1")
		said := refused(t, n, 1, n.Exe, "server", "--config=/opt/config.yaml")
		if !strings.Contains(said, r.Of(host.Error)[0].String()) {
			t.Errorf("the server told something else:\n%s", said)
		}
	})
}

// On an overlay no further overlays can be made: image layers are copied there.
func TestPodsRunWhereOverlaysDoNotWork(t *testing.T) {
	n := harness.Prepare(t, harness.Options{})
	n.Exec(t, "mkdir", "-p", "/opt/upper", "/opt/work")
	n.Exec(t, "mount", "-t", "overlay", "-o", "lowerdir=/var/lib/knarr,upperdir=/opt/upper,workdir=/opt/work", "overlay", "/var/lib/knarr")
	r := checked(t, n, 0)
	tells(t, r, host.Warning, "snapshotter", "lies on overlay", "native stands in")
	tells(t, r, host.Warning, "database", "layer")
	tells(t, checked(t, n, 1, "--snapshotter=overlayfs"), host.Error, "snapshotter", "--snapshotter=native")

	n.Resume(t)
	if !strings.Contains(n.Log(t), "the snapshotter native stands in") {
		t.Error("the server logs nothing of it")
	}
	n.Create(t, "default", kube.Pod("web", kube.Serve("hello")))
	n.WaitPodRunning(t, "default", "web")
}
