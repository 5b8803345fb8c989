// Package e2e tests what users do with a cluster, on one real node that all
// tests share. Each test has a namespace of its own and runs beside the others;
// those that change the node itself run alone, before them.
package e2e

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// recycler is the pod that empties recycled volumes; upstream's own is of an
// image that nobody here has.
const recycler = `
apiVersion: v1
kind: Pod
metadata: {name: recycler, namespace: default}
spec:
  restartPolicy: Never
  volumes: [{name: vol, hostPath: {path: /set/by/the/controller}}]
  containers:
  - name: recycler
    image: knarr.dev/test:1
    command: [sh, -c, 'rm -rf /volume/* && test -z "$(ls -A /volume)"']
    volumeMounts: [{name: vol, mountPath: /volume}]
`

var shared = harness.Lazy(harness.Options{
	Args: []string{
		"--kube-controller-manager-arg=pv-recycler-pod-template-filepath-hostpath=/etc/knarr/recycler.yaml",
		"--registry",
		"--image-credential-provider-config=/etc/knarr/credentials.yaml",
		"--image-credential-provider-bin-dir=/etc/knarr/credentials",
	},
	Files: map[string]string{
		"/etc/knarr/recycler.yaml":            recycler,
		"/etc/knarr/credentials.yaml":         credentialProviders,
		"/etc/knarr/credentials/lab-provider": credentialProvider,
	},
})

func TestMain(m *testing.M) {
	// Tests mostly wait for the node, so that more of them run at a time than
	// there are processors. The command line's -parallel comes later, and wins.
	if err := flag.Set("test.parallel", "8"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	harness.Main(m, shared)
}

// space is a namespace on the shared node, for one test. What a test needs in
// it is made of package kube's objects; manifests are for what that has not, and
// for tests about manifests.
type space struct {
	*harness.Node
	t  *testing.T
	ns string
}

// newSpace lets the test run beside others.
func newSpace(t *testing.T) *space {
	t.Helper()
	t.Parallel()
	return newSpaceAlone(t)
}

func newSpaceAlone(t *testing.T) *space {
	t.Helper()
	n := shared.Get(t)
	return &space{Node: n, t: t, ns: n.Namespace(t)}
}

func (s *space) apply(manifest string) {
	s.t.Helper()
	s.Apply(s.t, s.ns, manifest)
}

// create makes objects in the test's namespace, or changes them.
func (s *space) create(objects ...runtime.Object) {
	s.t.Helper()
	s.Create(s.t, s.ns, objects...)
}

// kubectl runs in the test's namespace.
func (s *space) kubectl(args ...string) string {
	s.t.Helper()
	return s.Kubectl(s.t, append([]string{"-n", s.ns}, args...)...)
}

func (s *space) kubectlErr(args ...string) (string, error) {
	return s.KubectlErr(append([]string{"-n", s.ns}, args...)...)
}

// get is one field, by kubectl's JSONPath.
func (s *space) get(what, path string) string {
	s.t.Helper()
	return s.kubectl("get", what, "-o", "jsonpath={"+path+"}")
}

// waitUntil waits by `kubectl wait`, which watches.
func (s *space) waitUntil(what, condition string) {
	s.t.Helper()
	s.kubectl("wait", what, "--for="+condition, "--timeout=60s")
}

func (s *space) running(pod string) *corev1.Pod {
	s.t.Helper()
	return s.WaitPodRunning(s.t, s.ns, pod)
}

func (s *space) pods(selector string, want int) []*corev1.Pod {
	s.t.Helper()
	return s.WaitPods(s.t, s.ns, selector, want)
}

func (s *space) pod(name, what string, wanted func(*corev1.Pod) bool) *corev1.Pod {
	s.t.Helper()
	return s.WaitPod(s.t, s.ns, name, what, wanted)
}

// ended waits until a pod has, and returns its output.
func (s *space) ended(pod string, phase corev1.PodPhase) string {
	s.t.Helper()
	s.pod(pod, string(phase), func(p *corev1.Pod) bool { return p.Status.Phase == phase })
	return s.kubectl("logs", pod, "--all-containers")
}

// client makes a pod to do things from.
func (s *space) client() {
	s.t.Helper()
	s.create(kube.Pod("client", kube.Grace(0)))
	s.running("client")
}

// in runs a command in a pod and returns what it wrote, without the last line's
// end.
func (s *space) in(pod string, command ...string) string {
	s.t.Helper()
	return strings.TrimSuffix(s.kubectl(append([]string{"exec", pod, "--"}, command...)...), "\n")
}

func (s *space) inErr(pod string, command ...string) (string, error) {
	out, err := s.kubectlErr(append([]string{"exec", pod, "--"}, command...)...)
	return strings.TrimSuffix(out, "\n"), err
}

// fromPod asks a URL from the pod named client, until it answers.
func (s *space) fromPod(url string) string {
	s.t.Helper()
	return s.in("client", "testbox", "get", url, "--retry", "30s", "--timeout", "2s")
}

// fromNode asks a URL from the node, until it answers.
func (s *space) fromNode(url string) string {
	s.t.Helper()
	var answer string
	s.WaitFor(s.t, "an answer from "+url, func(ctx context.Context) (bool, error) {
		var err error
		answer, err = s.fetch(ctx, url)
		return err == nil, err
	})
	return answer
}

func (s *space) fetch(ctx context.Context, url string) (string, error) {
	return fetchBy(ctx, s.Host.DialContext, url)
}

// fetchBy asks a URL from where a dialer is.
func fetchBy(ctx context.Context, dial func(ctx context.Context, network, address string) (net.Conn, error), url string) (string, error) {
	c := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", url, resp.Status, body)
	}
	return strings.TrimSpace(string(body)), err
}

// fails makes a condition of WaitFor of an error that is waited for.
func fails(err error, words string) (bool, error) {
	if err != nil && strings.Contains(err.Error(), words) {
		return true, nil
	}
	return false, fmt.Errorf("not %q but: %w", words, err)
}

// nodeAddr is the node's address with a port.
func (s *space) nodeAddr(port string) string {
	return net.JoinHostPort(s.Host.Addr().String(), port)
}

// event waits for an event about an object and returns its message.
func (s *space) event(object, reason, words string) string {
	s.t.Helper()
	var message string
	s.WaitFor(s.t, fmt.Sprintf("event %s of %s with %q", reason, object, words), func(context.Context) (bool, error) {
		out, err := s.kubectlErr("get", "events", "--field-selector", "involvedObject.name="+object+",reason="+reason, "-o", "jsonpath={range .items[*]}{.message}{'\\n'}{end}")
		if err != nil {
			return false, err
		}
		lines := strings.Split(out, "\n")
		i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, words) })
		if i < 0 {
			return false, fmt.Errorf("there is %q", lines)
		}
		message = lines[i]
		return true, nil
	})
	return message
}

// session is a kubectl that goes on.
type session struct {
	t     *testing.T
	cmd   *lab.Cmd
	lines *bufio.Scanner
	stdin io.WriteCloser
}

// start runs kubectl beside the test, which ends it.
func (s *space) start(args ...string) *session {
	s.t.Helper()
	cmd := s.Host.Command(s.t.Context(), s.Exe, append([]string{"kubectl", "-n", s.ns}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stderr = s.t.Output()
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return &session{t: s.t, cmd: cmd, lines: bufio.NewScanner(out), stdin: in}
}

// line is the next one that kubectl writes.
func (s *session) line() string {
	s.t.Helper()
	if !s.lines.Scan() {
		s.t.Fatalf("kubectl wrote no further line: %v", s.lines.Err())
	}
	return s.lines.Text()
}

// rest is what it writes until its end, which must be a success.
func (s *session) rest() []string {
	s.t.Helper()
	var lines []string
	for s.lines.Scan() {
		lines = append(lines, s.lines.Text())
	}
	if err := s.cmd.Wait(); err != nil {
		s.t.Fatalf("kubectl: %v\n%s", err, strings.Join(lines, "\n"))
	}
	return lines
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %q, want %q", what, got, want)
	}
}

func wantPart(t *testing.T, what, got, part string) {
	t.Helper()
	if !strings.Contains(got, part) {
		t.Errorf("%s has no %q:\n%s", what, part, got)
	}
}
