package throwaway

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// nobody is a user without any rights, who has a home.
const nobody = 65534

// unprivileged is Knarr as nobody runs it.
func (u *user) unprivileged(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := u.command(args...)
	cmd.Dir = u.home
	cmd.Env = append(cmd.Env, "TMPDIR="+u.home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}

// newNobody is a user whose home, clusters and temporary files are nobody's.
func newNobody(t *testing.T) *user {
	t.Helper()
	u := newUser(t)
	for _, dir := range []string{u.home, u.cache} {
		for ; dir != os.TempDir(); dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, dir := range []string{u.home, u.cache} {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	u.dir = filepath.Join(u.home, "clusters")
	if err := u.unprivileged(t, "version").Run(); err != nil {
		t.Skipf("others may not run %s: %v", u.exe, err)
	}
	return u
}

func TestControlPlaneAloneNeedsNoRoot(t *testing.T) {
	u := newNobody(t)
	saved := filepath.Join(u.home, "seed.knarr")
	script := `kubectl get --raw /readyz; echo; kubectl create namespace made >/dev/null; kubectl get nodes -o name
		kubectl get namespace kube-system -o jsonpath='{.metadata.uid}{"\n"}'; "$0" save seed.knarr; id -u; exit 7`
	cmd := u.unprivileged(t, "run", "--control-plane-only", "--", "bash", "-c", script, u.exe)
	out, err := cmd.CombinedOutput()
	text := string(out)
	if cmd.ProcessState.ExitCode() != 7 || !regexp.MustCompile(`^ok\n[0-9a-f-]{36}\n65534\n$`).MatchString(text) {
		t.Fatalf("%v: %s", err, text)
	}
	defer os.Remove(saved)
	uid := strings.Split(text, "\n")[1]
	out, err = u.unprivileged(t, "run", "--control-plane-only", "--from", "seed.knarr", "--",
		"bash", "-c", `kubectl get namespace kube-system made -o jsonpath='{.items[*].metadata.name} {.items[0].metadata.uid}'`).CombinedOutput()
	if err != nil || string(out) != "kube-system made "+uid {
		t.Errorf("begun with the saved one: %v: %s", err, out)
	}
	out, _ = u.unprivileged(t, "run", "--control-plane-only", "--port", "0:80", "--", "true").CombinedOutput()
	one(t, string(out), "has no nodes")
	if left, _ := os.ReadDir(u.dir); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
}

func TestSweepRemovesWhatKilledControlPlanesLeft(t *testing.T) {
	u := newNobody(t)
	folders := func() []string {
		all, _ := filepath.Glob(filepath.Join(u.home, "knarr-*"))
		return all
	}
	start := func() *exec.Cmd {
		cmd := u.unprivileged(t, "server", "--control-plane-only")
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stderr)
		for lines.Scan() && !strings.Contains(lines.Text(), "msg=ready") {
		}
		go func() {
			for lines.Scan() { // it must not wait for us
			}
		}()
		return cmd
	}
	killed, alive := start(), start()
	kill(t, killed.Process.Pid)
	_ = killed.Wait()
	if found := folders(); len(found) != 2 {
		t.Fatalf("folders are %v", found)
	}
	if out, err := u.unprivileged(t, "sweep").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if found := folders(); len(found) != 1 {
		t.Errorf("after the sweep folders are %v", found)
	}
	if err := alive.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := alive.Wait(); err != nil {
		t.Error(err)
	}
	if found := folders(); len(found) > 0 {
		t.Errorf("after its end folders are %v", found)
	}
}
