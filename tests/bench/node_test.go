package main

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// script is a subject that is a few lines of shell.
type script struct{ text string }

var _ subject = (*script)(nil)

func (s *script) name() string                             { return "script" }
func (s *script) version(context.Context) (string, error)  { return "1", nil }
func (s *script) executables() ([]string, error)           { return []string{"/bin/sh"}, nil }
func (s *script) binds() []lab.Bind                        { return nil }
func (s *script) prepare(context.Context, *lab.Host) error { return nil }
func (s *script) supervised() bool                         { return false }
func (s *script) kubeconfig() string                       { return "/etc/kubeconfig" }
func (s *script) lastWords(log []string) []string          { return last(log) }
func (s *script) command(ctx context.Context, h *lab.Host) *lab.Cmd {
	return h.Command(ctx, "/bin/sh", "-c", s.text)
}

func TestIdleCountsWhatAHostWritesAndUses(t *testing.T) {
	n := scriptNode(t, testDisk(t), `while :; do echo line >>/var/lib/file; sync /var/lib/file; done`)
	if err := n.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := newResults(time.Now()).of("script")
	if err := n.idle(t.Context(), s, "idle", 0, 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"idle.cpu", "idle.written", "idle.writes", "idle.flushes", "idle.pss", "idle.rss"} {
		if len(s.Samples[key]) != 1 || s.Samples[key][0] <= 0 {
			t.Errorf("%s is %v", key, s.Samples[key])
		}
	}
	if s.Memory["sh"] == 0 || s.Memory["knarr-lab-init"] != 0 {
		t.Errorf("memory by program is %v", s.Memory)
	}
}

func TestASubjectThatEndsWhileWaitedForIsNamedWithItsLog(t *testing.T) {
	n := scriptNode(t, plain(t), `echo oh dear; exit 3`)
	if err := n.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := n.while(t.Context(), "start", func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	})
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), n.log.Name()) ||
		!strings.HasSuffix(err.Error(), "\n    oh dear") {
		t.Errorf("error is %v", err)
	}
	if text, err := os.ReadFile(n.log.Name()); err != nil || string(text) != "oh dear\n" {
		t.Errorf("log is %q (%v)", text, err)
	}
}

func TestASubjectIsStoppedBySIGTERMAndStartsAgain(t *testing.T) {
	n := scriptNode(t, plain(t), `trap 'echo stopped; exit 7' TERM; echo started; while :; do sleep 60 & wait; done`)
	for range 2 {
		before := lines(t, n.log.Name(), "started")
		if err := n.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		// The trap is set once it says so.
		if err := try(t.Context(), func() (bool, error) {
			return lines(t, n.log.Name(), "started") > before, nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
	}
	if got := lines(t, n.log.Name(), "stopped"); got != 2 {
		t.Errorf("it was stopped in order %d times, want 2", got)
	}
}

func TestForgettingKeepsTheBundleAlone(t *testing.T) {
	n := scriptNode(t, plain(t), "")
	for _, file := range []string{"/var/lib/knarr/bundle/abc/runc", "/var/lib/knarr/server/db/state.db", "/etc/knarr/kubeconfig.yaml", "/run/knarr/socket"} {
		if err := writeFile(n.host, file, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(image, []byte("image"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := (&knarr{image: image}).forget(t.Context(), n.host); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]bool{
		"/var/lib/knarr/bundle/abc/runc":       true,
		"/var/lib/knarr/agent/images/test.tar": true,
		"/var/lib/knarr/server":                false,
		"/etc/knarr/kubeconfig.yaml":           false,
		"/run/knarr":                           false,
	} {
		if _, err := os.Stat(n.host.Path(file)); (err == nil) != want {
			t.Errorf("%s is there: %t, want %t", file, err == nil, want)
		}
	}
}

func scriptNode(t *testing.T, d *disk, text string) *node {
	t.Helper()
	n, err := newNode(t.Context(), &script{text}, d, filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func plain(t *testing.T) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	d, err := plainDisk(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// lines counts those that are equal to text.
func lines(t *testing.T, file, text string) int {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		if s.Text() == text {
			n++
		}
	}
	return n
}
