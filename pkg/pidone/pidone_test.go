package pidone

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain plays an init where told to, for the program that its arguments name.
// It is no first process, but orphans below it are handed to it all the same.
func TestMain(m *testing.M) {
	if os.Getenv("PIDONE_TEST") == "" {
		os.Exit(m.Run())
	}
	err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	code := 0
	if err == nil {
		code, err = supervise(os.Args[1], os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 99
	}
	os.Exit(code)
}

func under(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "/bin/bash", "-c", script)
	cmd.Env = append(os.Environ(), "PIDONE_TEST=init")
	cmd.Stderr = t.Output()
	return cmd
}

func TestExitCodeOfTheProgramIsTheContainers(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -9 $$": 128 + 9} {
		cmd := under(t, script)
		err := cmd.Run()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("%q ended with %d, want %d", script, got, want)
		}
	}
}

func TestSignalsReachTheProgram(t *testing.T) {
	for name, sig := range map[string]os.Signal{"TERM": unix.SIGTERM, "HUP": unix.SIGHUP, "INT": unix.SIGINT} {
		cmd := under(t, "trap 'exit 3' "+name+"; echo ready; while :; do sleep 0.05; done")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 3 {
			t.Errorf("after SIG%s: %v", name, err)
		}
	}
}

// The script waits for its own children; the grandchild is nobody's.
func TestOrphansAreReapedAndChildrenAreLeftToTheirParent(t *testing.T) {
	cmd := under(t, `
		(sh -c 'echo $$; exec sleep 0.1' & )
		(exit 5) & wait $!; echo $?
		read -r line`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := map[string]bool{}
	lines := bufio.NewScanner(out)
	orphan := 0
	for range 2 {
		if !lines.Scan() {
			t.Fatal("the script ended early: ", lines.Err())
		}
		said[lines.Text()] = true
		if n, err := strconv.Atoi(lines.Text()); err == nil && n > 5 {
			orphan = n
		}
	}
	if !said["5"] || orphan == 0 {
		t.Errorf("the script said %v", said)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", orphan))
		if err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the orphan is still there: %s", bytes.TrimSpace(stat))
		}
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("read at the end of its input gives 1, and not %v", err)
	}
}

func TestProgramThatIsMissingIsTold(t *testing.T) {
	if _, err := supervise("/nowhere/program", []string{"program"}); err == nil || !strings.Contains(err.Error(), "run program") {
		t.Error(err)
	}
}

func TestOnlyTheFirstProcessIsAnInit(t *testing.T) {
	if _, was, err := Run(os.Args); was || err != nil {
		t.Error(was, err)
	}
}
