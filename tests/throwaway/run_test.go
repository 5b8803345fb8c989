package throwaway

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

const (
	testImages = "../../build/images/test.tar"
	demo       = "../../scripts/demo.sh"
)

func TestRunGivesACommandAClusterAndPassesItsExitCodeOn(t *testing.T) {
	u := newUser(t)
	started := filepath.Join(t.TempDir(), "daemon")
	// A daemon leaves its parent and its session, and outlives the command.
	out, errs, code := u.try("run", "--name", "first", "--", "bash", "-c", `
		set -e
		kubectl get nodes -o jsonpath='{.items[*].metadata.name} {.items[*].status.conditions[?(@.type=="Ready")].status}{"\n"}'
		kubectl config current-context
		setsid sh -c 'echo $$ > "$0"; exec sleep 1000' `+started+` </dev/null >/dev/null 2>&1 &
		while ! test -s `+started+`; do sleep 0.01; done
		exit 7`)
	if code != 7 || out != "server True\nknarr-first\n" || errs != "" {
		t.Errorf("exit code %d, output %q %q", code, out, errs)
	}
	text, err := os.ReadFile(started)
	if err != nil {
		t.Fatal(err)
	}
	if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err != nil || !ended(pid) {
		t.Errorf("what the command left running still runs: %v", err)
	}
}

func TestMakeRunShowsAnAnsweringWorkload(t *testing.T) {
	u := newUser(t)
	out := u.knarr(t, "run", "--image-archive", testImages, "--", demo, "--once")
	t.Log("\n" + out)
	if !strings.Contains(out, "was answered by hello-") {
		t.Error("no answer is told")
	}
}

// running is a command that knarr run has started, and what it needs to be ended.
type running struct {
	cmd    *exec.Cmd
	errs   strings.Builder
	keeper int
	pid    int // of the command
	ended  chan struct{}
}

// begin starts knarr run with a script that says its own number and waits.
func (u *user) begin(t *testing.T, script string) *running {
	t.Helper()
	r := &running{cmd: u.command("run", "--name", "held", "--", "bash", "-c", script), ended: make(chan struct{})}
	stdout, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.cmd.Stderr = &r.errs
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		_ = r.cmd.Wait()
		t.Fatalf("the command did not start: %v\n%s", err, r.errs.String())
	}
	if r.pid, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
		t.Fatal(err)
	}
	record, err := os.ReadFile(filepath.Join(u.dir, "held", "cluster.json"))
	if err != nil {
		t.Fatal(err)
	}
	var rec struct{ Keeper int }
	if err := json.Unmarshal(record, &rec); err != nil {
		t.Fatal(err)
	}
	r.keeper = rec.Keeper
	go func() {
		_, _ = io.Copy(io.Discard, stdout)
		_ = r.cmd.Wait()
		close(r.ended)
	}()
	return r
}

func TestRunEndsWholeWhateverIsKilled(t *testing.T) {
	const wait = "echo $$; while :; do sleep 0.05; done"
	t.Run("a signal goes to the command", func(t *testing.T) {
		u := newUser(t)
		r := u.begin(t, "trap 'exit 3' TERM; "+wait)
		if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-r.ended
		if code := r.cmd.ProcessState.ExitCode(); code != 3 || r.errs.String() != "" {
			t.Errorf("exit code %d, %q", code, r.errs.String())
		}
	})
	t.Run("the command is killed", func(t *testing.T) {
		u := newUser(t)
		r := u.begin(t, wait)
		kill(t, r.pid)
		<-r.ended
		if code := r.cmd.ProcessState.ExitCode(); code != 128+9 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("knarr is killed", func(t *testing.T) {
		u := newUser(t)
		r := u.begin(t, wait)
		kill(t, r.cmd.Process.Pid)
		<-r.ended
		waitFor(t, "the command to end", func() bool { return ended(r.pid) })
		waitFor(t, "the keeper to end", func() bool { return ended(r.keeper) })
	})
	t.Run("the keeper is killed", func(t *testing.T) {
		u := newUser(t)
		r := u.begin(t, wait)
		kill(t, r.keeper)
		<-r.ended
		if code := r.cmd.ProcessState.ExitCode(); code != 128+15 {
			t.Errorf("exit code %d", code)
		}
		one(t, r.errs.String(), "the cluster ended while the command ran")
	})
	t.Run("both are killed, and sweep removes the rest", func(t *testing.T) {
		u := newUser(t)
		r := u.begin(t, wait)
		if err := syscall.Kill(r.cmd.Process.Pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		kill(t, r.keeper)
		kill(t, r.cmd.Process.Pid)
		<-r.ended
		u.knarr(t, "sweep")
	})
}
