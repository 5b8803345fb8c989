package lifecycle

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// TestUpgradeReplacesTheBuildWhilePodsGoOn takes a node to another build, to one
// that does not start and so is taken back, and back to the first. No init
// system is there: the harness starts what has ended.
func TestUpgradeReplacesTheBuildWhilePodsGoOn(t *testing.T) {
	const exe = "/opt/own/knarr"
	n := harness.Start(t, harness.Options{Exe: exe})
	ns := n.Namespace(t)
	n.Create(t, ns, kube.Pod("steady", kube.Label("all", "yes")))
	n.WaitPods(t, ns, "all=yes", 1)
	w := &outliving{n: n, ns: ns}
	containers, pid := w.containers(t), n.Status(t).PID
	same := func(t *testing.T, what string) {
		t.Helper()
		n.WaitPods(t, ns, "all=yes", 1)
		if now := w.containers(t); !maps.Equal(now, containers) {
			t.Errorf("%s: containers %v, before %v", what, now, containers)
		}
	}
	size := func() int64 {
		t.Helper()
		st, err := os.Stat(n.Host.Path(exe))
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	first := size()

	const other = "/opt/other/knarr"
	if err := n.CopyExe(other, []byte("another build")); err != nil {
		t.Fatal(err)
	}
	if out, err := n.ExecErr(t.Context(), exe, "upgrade", "--from", other); err == nil || !strings.Contains(err.Error(), "no key to verify") {
		t.Errorf("nobody vouches for it, but: %s %v", out, err)
	}
	out := n.Exec(t, exe, "upgrade", "--from", other, "--skip-signature")
	if size() == first || n.Status(t).PID != pid || !strings.Contains(out, "to take it back: knarr rollback") {
		t.Errorf("process %d, was %d; the upgrade said\n%s", n.Status(t).PID, pid, out)
	}
	same(t, "upgraded")
	second := size()

	// It tells a version, and does nothing else.
	n.Write(t, "/opt/bad/knarr", "#!/bin/sh\n[ \"$1\" = version ] && exec /opt/knarr/knarr version -o json\nexec sleep 1000\n")
	if err := os.Chmod(n.Host.Path("/opt/bad/knarr"), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := n.ExecErr(t.Context(), exe, "upgrade", "--from", "/opt/bad/knarr", "--skip-signature", "--timeout", "5s")
	if err == nil || !strings.Contains(err.Error(), "the old one is back") || size() != second {
		t.Errorf("a build that does nothing: %v\n%s", err, out)
	}
	_ = n.Wait(t) // it was ended
	n.Resume(t)
	same(t, "taken back")

	out = n.Exec(t, exe, "rollback", "--list")
	if strings.Count(out, "\n") != 3 {
		t.Errorf("the backups are\n%s", out)
	}
	ids := strings.Fields(strings.Split(out, "\n")[2]) // the older one
	n.Exec(t, exe, "rollback", "--to", ids[0])
	_ = n.Wait(t) // it was ended
	if size() != first {
		t.Error("the rollback left the build in place")
	}
	n.Resume(t)
	same(t, "rolled back")

	t.Run("and an older build says how to go back", func(t *testing.T) {
		n.Stop(t)
		const version = "/var/lib/knarr/server/version"
		n.Write(t, version, "v1.99.0+knarr1\n")
		if err := n.Launch(); err != nil {
			t.Fatal(err)
		}
		if err := n.Wait(t); err == nil || !strings.Contains(n.Log(t), "knarr rollback") {
			t.Errorf("it ended with %v", err)
		}
		n.Exec(t, exe, "rollback")
		if text, err := os.ReadFile(n.Host.Path(version)); err != nil || strings.HasPrefix(string(text), "v1.99") {
			t.Errorf("the store's version is %s, %v", text, err)
		}
		if left, err := filepath.Glob(n.Host.Path("/var/lib/knarr/upgrades/*/replaced/state.db")); err != nil || len(left) != 1 {
			t.Errorf("the newer store is not put aside: %v, %v", left, err)
		}
		n.Resume(t)
		same(t, "with the store of the upgrade")
	})
}
