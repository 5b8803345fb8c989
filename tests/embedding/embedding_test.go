// Package embedding tests whole nodes in Go programs: in a test, and in a program
// that is an appliance.
package embedding

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/knarr-dev/knarr/pkg/knarrtest"
	"github.com/knarr-dev/knarr/pkg/throwaway"
	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestMain(m *testing.M) { os.Exit(knarrtest.Main(m)) }

const (
	testImages = "../../build/images/test.tar"
	limit      = 2 * time.Minute
)

func TestNodeOfATestRunsPods(t *testing.T) {
	harness.TakeTurn(t)
	n := knarrtest.Node(t, knarrtest.Executable(harness.Exe(t)), knarrtest.Images(testImages), knarrtest.ServerArgs("--node-label=sea=north"))
	pods := n.Client(t).CoreV1().Pods("default")
	pod := kube.Pod("sailor", kube.Node("sea", "north"), kube.Testbox("sleep"))
	if _, err := pods.Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	w, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=sailor"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for running := false; !running; {
		e, ok := <-w.ResultChan()
		if !ok || e.Type == watch.Error {
			t.Fatalf("the pod did not run: %v %v", e.Object, ctx.Err())
		}
		p, is := e.Object.(*corev1.Pod)
		running = is && harness.PodReady(p)
	}
	out, err := n.Command(t.Context(), "knarr", "kubectl", "exec", "sailor", "--", "echo", "ahoy").Output()
	if err != nil || string(out) != "ahoy\n" {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := os.Stat(n.Path("/var/lib/knarr/server")); err != nil {
		t.Error(err)
	}
}

// buildAppliance builds examples/appliance with the image that its pod is of.
func buildAppliance(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../examples/appliance")
	if err != nil {
		t.Fatal(err)
	}
	image, err := filepath.Abs(testImages)
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(dir, "files", "images", "test.tar"): image}})
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	if err := os.WriteFile(filepath.Join(work, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(work, "appliance")
	if out, err := exec.Command("go", "build", "-overlay", filepath.Join(work, "overlay.json"), "-ldflags=-s -w", "-o", exe, dir).CombinedOutput(); err != nil {
		t.Fatalf("build the appliance: %v\n%s", err, out)
	}
	return exe
}

func TestApplianceIsOneFileWithItsWorkload(t *testing.T) {
	exe := buildAppliance(t)
	harness.TakeTurn(t)
	l, h, err := throwaway.NewHost(t.Context(), "appliance", exe, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	var log strings.Builder
	s, err := h.Start(throwaway.ServerOptions{Output: &log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := s.Await(ctx, "READY=1", 1); err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	client := http.Client{Transport: &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true}}
	for {
		answer, err := get(ctx, client, "http://"+net.JoinHostPort(h.Addr().String(), "8080"))
		if err == nil && answer != "" {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the workload does not answer: %v", err)
		}
	}
	// Its files lie where it says.
	for _, file := range []string{"/var/lib/appliance/server", "/etc/appliance/kubeconfig.yaml"} {
		if _, err := os.Stat(h.Path(file)); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(s.Signal(syscall.SIGTERM), s.Wait()); err != nil {
		t.Errorf("SIGTERM: %v\n%s", err, log.String())
	}
	s.Close()
}

func get(ctx context.Context, client http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return string(text), err
}
