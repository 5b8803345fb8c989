package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestLogsHaveEveryLineInOrder(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("speaker", kube.Once, kube.Testbox("spew", "--rate=1MB", "--for=2s")))
	s.pod("speaker", "started", func(p *corev1.Pod) bool { return p.Status.Phase != corev1.PodPending })
	count, summary := 0, ""
	for _, line := range s.start("logs", "-f", "speaker").rest() {
		// It comes by stderr, and so may overtake the last lines of stdout.
		if strings.HasPrefix(line, "lines ") {
			summary = line
			continue
		}
		if !strings.HasPrefix(line, fmt.Sprintf("%012d ", count)) {
			t.Fatalf("after %d lines comes %q", count, line)
		}
		count++
	}
	wantPart(t, "the speaker's own count", summary, fmt.Sprintf("lines %d ", count))
}

func TestFollowedLogsShowLinesAsTheyAreWritten(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("speaker", kube.Once, kube.Shell("mkfifo /tmp/words; echo before; cat /tmp/words; echo end")))
	s.running("speaker")
	follow := s.start("logs", "-f", "speaker")
	want(t, "the first line", follow.line(), "before")
	s.in("speaker", "sh", "-c", "echo now > /tmp/words")
	want(t, "the line written since", follow.line(), "now")
	want(t, "the rest", strings.Join(follow.rest(), "\n"), "end")
	want(t, "the last line alone", s.kubectl("logs", "speaker", "--tail=1"), "end\n")
}

func TestLogsOfThePreviousContainerAreKept(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("twice", kube.Mount("state", "/state", kube.Scratch()),
		kube.Shell("if [ -e /state/seen ]; then echo second life; testbox sleep; fi; touch /state/seen; echo first life; exit 1")))
	s.pod("twice", "restarted", func(p *corev1.Pod) bool {
		c := p.Status.ContainerStatuses
		return len(c) == 1 && c[0].RestartCount == 1 && c[0].State.Running != nil
	})
	want(t, "what the container before wrote", s.kubectl("logs", "--previous", "twice"), "first life\n")
	want(t, "what this one wrote", s.start("logs", "-f", "twice").line(), "second life")
}

func TestExecPassesInputOutputAndExitCode(t *testing.T) {
	s := newSpace(t)
	s.client()
	echo := s.start("exec", "-i", "client", "--", "tr", "a-z", "A-Z")
	if _, err := io.WriteString(echo.stdin, "hello\n"); err != nil {
		t.Fatal(err)
	}
	echo.stdin.Close()
	want(t, "the output", strings.Join(echo.rest(), "\n"), "HELLO")

	out, err := s.kubectlErr("exec", "client", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
	want(t, "stdout", out, "out\n")
	if err == nil {
		t.Fatal("exit code 7 is no error")
	}
	wantPart(t, "the error", err.Error(), "exit status 7")
	wantPart(t, "the error", err.Error(), "err\n")
}

func TestExecCarriesMuchDataBothWays(t *testing.T) {
	s := newSpace(t)
	s.client()
	data := bytes.Repeat([]byte("0123456789abcde\n"), 1<<18) // 4 MiB
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	through := s.start("exec", "-i", "client", "--", "sha256sum")
	if _, err := through.stdin.Write(data); err != nil {
		t.Fatal(err)
	}
	through.stdin.Close()
	wantPart(t, "the sum of what arrived", through.line(), sum)

	out := s.kubectl("exec", "client", "--", "sh", "-c", "yes 0123456789abcde | head -n 262144")
	want(t, "the sum of what came back", fmt.Sprintf("%x", sha256.Sum256([]byte(out))), sum)
}

func TestExecGivesATerminal(t *testing.T) {
	s := newSpace(t)
	s.client()
	// script makes the terminal that kubectl asks its user for.
	out := s.Exec(t, "script", "-qec", s.Exe+" kubectl exec -n "+s.ns+" -it client -- tty", "/dev/null")
	wantPart(t, "the terminal's name", out, "/dev/pts/")
}

func TestAttachJoinsARunningContainer(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("listener", kube.Once, kube.Shell("read word; echo heard $word; read word; echo heard $word"),
		kube.Box(func(c *corev1.Container) { c.Stdin, c.StdinOnce = true, true })))
	s.running("listener")
	attached := s.start("attach", "-i", "listener")
	if _, err := io.WriteString(attached.stdin, "one\n"); err != nil {
		t.Fatal(err)
	}
	want(t, "the answer", attached.line(), "heard one")
	if _, err := io.WriteString(attached.stdin, "two\n"); err != nil {
		t.Fatal(err)
	}
	want(t, "the second answer", attached.line(), "heard two")
	want(t, "the log", s.ended("listener", corev1.PodSucceeded), "heard one\nheard two\n")
}

func TestRunAttachesToAPodAndRemovesIt(t *testing.T) {
	s := newSpace(t)
	run := s.start("run", "brief", "--image=knarr.dev/test:1", "--rm", "-i", "--restart=Never", "--quiet", "--", "tr", "a-z", "A-Z")
	if _, err := io.WriteString(run.stdin, "hello\n"); err != nil {
		t.Fatal(err)
	}
	run.stdin.Close()
	wantPart(t, "the output", strings.Join(run.rest(), "\n"), "HELLO")
	s.WaitGone(t, s.ns, "brief")
}

func TestPortForwardReachesPodAndService(t *testing.T) {
	s := newSpace(t)
	s.create(web("forwarded")...)
	pod := s.pods("app=web", 2)[0].Name
	for _, c := range [][]string{{"pod/" + pod, ":8080"}, {"service/web", ":80"}} {
		forward := s.start(append([]string{"port-forward"}, c...)...)
		line := forward.line()
		addr := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
		if addr == "" {
			t.Fatalf("kubectl port-forward says %q", line)
		}
		for range 3 {
			want(t, "the answer through "+c[0], s.fromNode("http://"+addr), "forwarded")
		}
	}
}

func TestCpCopiesBothWays(t *testing.T) {
	s := newSpace(t)
	s.client()
	data := bytes.Repeat([]byte{0, 1, 2, 0xff, '\n'}, 1<<18)
	s.Write(t, "/tmp/"+s.ns+"/in/data", string(data))
	s.Write(t, "/tmp/"+s.ns+"/in/deep/note", "a note\n")

	s.kubectl("cp", "/tmp/"+s.ns+"/in", "client:/tmp/copied")
	wantPart(t, "the sum in the pod", s.in("client", "sha256sum", "/tmp/copied/data"), fmt.Sprintf("%x", sha256.Sum256(data)))
	want(t, "the note in the pod", s.in("client", "cat", "/tmp/copied/deep/note"), "a note")

	s.kubectl("cp", "client:/tmp/copied", "/tmp/"+s.ns+"/out")
	back, err := os.ReadFile(s.Host.Path("/tmp/" + s.ns + "/out/data"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(back, data) {
		t.Error("what came back differs from what was sent")
	}
}

func TestDebugContainerJoinsARunningPod(t *testing.T) {
	s := newSpace(t)
	s.create(web("patient")...)
	pod := s.pods("app=web", 2)[0].Name
	s.kubectl("debug", pod, "--image=knarr.dev/test:1", "--container=doctor", "--", "testbox", "get", "http://localhost:8080")
	s.pod(pod, "examined", func(p *corev1.Pod) bool {
		c := p.Status.EphemeralContainerStatuses
		return len(c) == 1 && c[0].State.Terminated != nil
	})
	want(t, "what the debug container found", s.kubectl("logs", pod, "-c", "doctor"), "patient\n")
}
