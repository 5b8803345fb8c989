package nftwatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inNewNetwork moves the test's thread into a network namespace of its own,
// which ends with the test.
func inNewNetwork(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("no nft here")
	}
	// The thread is never unlocked, so that it dies with this goroutine instead
	// of serving others in the wrong namespace.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

// nft runs a script with an nft of that name.
func nft(t *testing.T, program, script string) {
	t.Helper()
	cmd := exec.Command(program, "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s\n%s", err, script, out)
	}
}

// ownNFT is nft under the name that a bundled one could have.
func ownNFT(t *testing.T) string {
	t.Helper()
	real, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "knarr-nft")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	return link
}

func table(name string) string {
	return fmt.Sprintf("table ip %s {\n set s { type ipv4_addr; elements = { 192.0.2.1 }; }\n chain base { type filter hook input priority 0; counter jump sub; }\n chain sub { counter accept; }\n}\n", name)
}

// watcher starts a watcher of "ip a" and "ip b" that tells on a channel each.
func startWatcher(t *testing.T, own string, buffer int) (a, b chan struct{}) {
	t.Helper()
	a, b = make(chan struct{}, 100), make(chan struct{}, 100)
	tell := func(ch chan struct{}) func(context.Context) {
		return func(context.Context) { ch <- struct{}{} }
	}
	w := New(slog.New(slog.NewTextHandler(io.Discard, nil)), own,
		Table{Name: "ip a", Restore: tell(a)}, Table{Name: "ip b", Restore: tell(b)})
	if buffer > 0 {
		w.buffer = buffer
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	here := threadNamespace(t)
	go func() {
		// Run belongs to the namespace of its thread.
		runtime.LockOSThread()
		if err := unix.Setns(here, unix.CLONE_NEWNET); err != nil {
			ended <- err
			return
		}
		ended <- w.Run(ctx, ready)
	}()
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
	return a, b
}

func threadNamespace(t *testing.T) int {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return int(f.Fd())
}

func TestDeletionsByAnotherProgramAreNoticed(t *testing.T) {
	for _, script := range []string{
		"flush ruleset",
		"delete table ip a",
		"flush table ip a",
		"flush chain ip a base",
		"flush set ip a s",
		"delete element ip a s { 192.0.2.1 }",
		"delete table ip a\n" + table("a"),
	} {
		t.Run(strings.SplitN(script, "\n", 2)[0], func(t *testing.T) {
			inNewNetwork(t)
			nft(t, "nft", table("a"))
			a, _ := startWatcher(t, "knarr-nft", 0)
			nft(t, "nft", script)
			<-a
		})
	}
}

func TestOwnChangesAreNoLossUnlessTheTableIsGone(t *testing.T) {
	inNewNetwork(t)
	own := ownNFT(t)
	nft(t, own, table("a")+table("b"))
	a, b := startWatcher(t, "knarr-nft", 0)
	nft(t, own, "flush table ip a")
	nft(t, own, "delete table ip a\n"+table("a"))
	nft(t, own, "delete element ip a s { 192.0.2.1 }")
	nft(t, "nft", "add rule ip a sub counter drop")
	nft(t, "nft", "table ip other { chain c { }; }\nflush table ip other\ndelete table ip other")
	nft(t, own, "delete table ip b")
	<-b
	select {
	case <-a:
		t.Errorf("table a was restored though only we changed it")
	default:
	}
}

func TestWithTheMachinesNftDescentTellsOursFromOthers(t *testing.T) {
	inNewNetwork(t)
	nft(t, "nft", table("a")+table("b"))
	a, b := startWatcher(t, "", 0)
	// Each makes something too, so that it is ours even when it has ended before
	// it could be looked up.
	nft(t, "nft", "flush table ip a\nadd rule ip a sub counter accept")
	nft(t, "nft", "flush chain ip a sub\nadd rule ip a sub counter drop")

	// The shell in between ends before nft runs, so nft descends from us no more.
	gate := filepath.Join(t.TempDir(), "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `(read word <"$1"; exec nft 'flush table ip b') >/dev/null 2>&1 &`, "sh", gate)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.WriteFile(gate, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	<-b
	select {
	case <-a:
		t.Errorf("table a was restored though only we changed it")
	default:
	}
}

func TestDescentIsReadFromTheProcessTree(t *testing.T) {
	if !initialPIDNamespace() {
		t.Skip("process numbers here are not the kernel's")
	}
	child := exec.Command("cat")
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	for pid, want := range map[int]origin{child.Process.Pid: ours, os.Getppid(): foreign, 1: foreign} {
		if got := ancestry(pid); got != want {
			t.Errorf("process %d: %v, want %v", pid, got, want)
		}
	}
	stdin.Close()
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := ancestry(child.Process.Pid); got != unknown {
		t.Errorf("ended process: %v, want unknown", got)
	}
}

func TestEveryTableIsRestoredAfterAnOverflow(t *testing.T) {
	inNewNetwork(t)
	own := ownNFT(t)
	a, b := startWatcher(t, "knarr-nft", 1)
	var many strings.Builder
	many.WriteString("table ip other {\n chain c {\n")
	for i := range 3000 {
		fmt.Fprintf(&many, "  ip saddr 192.0.2.%d counter accept\n", i%255)
	}
	many.WriteString(" }\n}\n")
	// A watcher that happens to read as fast as the kernel writes loses nothing.
	for range 100 {
		nft(t, own, many.String())
		select {
		case <-a:
			<-b
			return
		default:
			nft(t, own, "flush table ip other\n")
		}
	}
	t.Fatal("a hundred floods did not overflow a buffer of one byte")
}

func TestRestorationsKeepAPauseAndNoneIsForgotten(t *testing.T) {
	began := make(chan struct{})
	goOn := make(chan struct{})
	g := &guard{table: Table{Restore: func(context.Context) {
		began <- struct{}{}
		<-goOn
	}}}
	ctx := t.Context()
	g.lost(ctx, time.Millisecond)
	<-began
	// Three losses while one restoration runs make one more, afterwards.
	for range 3 {
		g.lost(ctx, time.Hour)
	}
	goOn <- struct{}{}
	<-began
	goOn <- struct{}{}
	g.lost(ctx, time.Hour) // due in an hour
	g.stop()
	select {
	case <-began:
		t.Errorf("restored after the end")
	default:
	}
}
