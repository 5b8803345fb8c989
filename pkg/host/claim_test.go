package host

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestOnlyWhatWasNotThereIsClaimedAndUndone(t *testing.T) {
	dir, data := t.TempDir(), t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.MkdirAll(at("theirs"), 0o755); err != nil {
		t.Fatal(err)
	}
	claims := []Change{
		{Kind: KindFile, Name: at("etc/net.d/ours.conf")},
		{Kind: KindDir, Name: at("tree"), New: Tree},
		{Kind: KindDir, Name: at("theirs"), New: Tree},
		{Kind: KindCgroup, Name: at("group"), New: Tree},
	}
	l := openLedger(t, new(Machine), data)
	if err := l.Claim(claims...); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"etc/net.d", "tree/in/it", "theirs/in/it", "group/below"} {
		if err := os.MkdirAll(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"etc/net.d/ours.conf", "etc/theirs.conf", "tree/in/it/file"} {
		if err := os.WriteFile(at(f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The next start finds all there, and it is still ours.
	before := l.Changes()
	l = openLedger(t, new(Machine), data)
	if err := l.Claim(claims...); err != nil || !slices.Equal(l.Changes(), before) {
		t.Errorf("claimed again: %v, %v", l.Changes(), err)
	}
	if err := l.Undo(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"etc/net.d": false, "etc/theirs.conf": true, "tree": false, "theirs/in/it": true, "group": false,
	} {
		if _, err := os.Stat(at(name)); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", name, err, want)
		}
	}
}

func TestProcessesThatDoNotListenAreKilled(t *testing.T) {
	start := func(script string) *exec.Cmd {
		c := exec.Command("sh", "-c", script)
		out, err := c.StdoutPipe()
		if err == nil {
			err = c.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // it is ready
			t.Fatal(err)
		}
		return c
	}
	listens, deaf := start("trap 'exit 7' TERM; echo; while :; do sleep 0.05; done"), start("trap '' TERM; echo; while :; do sleep 0.05; done")
	if err := end(t.Context(), []int{listens.Process.Pid, deaf.Process.Pid}, time.Second); err != nil {
		t.Fatal(err)
	}
	if _ = listens.Wait(); listens.ProcessState.ExitCode() != 7 {
		t.Errorf("one that listens ended as %s", listens.ProcessState)
	}
	if _ = deaf.Wait(); !strings.Contains(deaf.ProcessState.String(), "killed") {
		t.Errorf("one that does not ended as %s", deaf.ProcessState)
	}
	if err := End(t.Context(), deaf.Process.Pid, time.Second); err != nil {
		t.Errorf("one that has ended: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	other := start("trap '' TERM; echo; exec sleep 5")
	defer other.Process.Kill()
	if err := End(ctx, other.Process.Pid, time.Minute); err == nil {
		t.Error("whoever gives up waits on")
	}
}

func TestPodsOfNoFolderAreRefused(t *testing.T) {
	for _, p := range []Pods{{}, {DataDir: "/var/lib/knarr", RunDir: "/", KubeletDir: "/var/lib/kubelet"}, {DataDir: "knarr", RunDir: "/run/knarr", KubeletDir: "/k"}} {
		if _, err := p.Stop(t.Context()); err == nil {
			t.Errorf("%+v would have ended processes", p)
		}
		if err := p.Clean(); err == nil {
			t.Errorf("%+v would have been unmounted", p)
		}
	}
	if err := RemoveTree("/"); err == nil {
		t.Error("the root would have been removed")
	}
}
