package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// absence is how long the server stays away in tests of what goes on without it.
const absence = 10 * time.Second

// workload is a Service with two pods, clients of it, and a pod that writes a
// megabyte a second to its log.
func workload() []runtime.Object {
	all := kube.Label("all", "yes")
	return []runtime.Object{
		kube.Deployment("web", 2, all, kube.Serve(""), kube.Ready(kube.HTTP("/healthz", 8080))),
		kube.Service("web", kube.Port(80, 8080)),
		kube.Pod("spew", all, kube.Testbox("spew", "--rate", "1MB/s", "--report", "/tmp/longest")),
		kube.Pod("lookups", all, kube.Testbox("probe", "lookup", "kubernetes.default.svc.cluster.local", "--every", "50ms", "--timeout", "20s")),
	}
}

const podsOfWorkload = 5

func TestPodsOutliveTheServer(t *testing.T) {
	n := harness.Start(t, harness.Options{Exe: "/opt/own/knarr"})
	ns := n.Namespace(t)
	n.Create(t, ns, workload()...)
	service := n.Kubectl(t, "get", "service", "web", "-n", ns, "-o", "jsonpath={.spec.clusterIP}")
	n.Create(t, ns, kube.Pod("gets", kube.Label("all", "yes"), kube.Testbox("probe", "get", "http://"+service+"/", "--every", "20ms")))
	n.WaitPods(t, ns, "all=yes", podsOfWorkload)
	w := &outliving{n: n, ns: ns, service: service}
	w.answers(t)

	t.Run("when it is stopped for ten seconds, and no log line is lost", w.stoppedForLong)
	t.Run("when it is stopped while it starts", w.stoppedEarly)
	t.Run("when it is killed", w.killed)
	t.Run("when another build replaces it", w.replaced)
	t.Run("when it restarts in place, and DNS queries wait", w.restartedInPlace)
	t.Run("when systemd restarts it, and DNS queries wait", w.restartedBySystemd)
	t.Run("when the machine reboots, with no address leaked", w.rebooted)
}

// stoppedEarly stops a server at moments at which it may be finding its pods.
func (w *outliving) stoppedEarly(t *testing.T) {
	w.whileAway(t, func() {
		w.n.Stop(t)
		for i := range 12 {
			if err := w.n.Launch(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(200+i*25) * time.Millisecond)
			w.n.Signal(t, syscall.SIGTERM)
			_ = w.n.Wait(t) // ended by the signal, if it was too early to be told of it
		}
		w.n.Resume(t)
	})
}

type outliving struct {
	n           *harness.Node
	ns, service string
}

// answers waits until the Service does: kube-proxy may be a moment behind.
func (w *outliving) answers(t *testing.T) {
	t.Helper()
	w.n.WaitFor(t, "an answer from the Service", func(ctx context.Context) (bool, error) {
		return true, w.get(ctx)
	})
}

// get asks the Service from the host.
func (w *outliving) get(ctx context.Context) error {
	_, err := get(ctx, w.n, "http://"+w.service)
	return err
}

// get asks for a page from the host, by a connection of its own.
func get(ctx context.Context, n *harness.Node, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{DialContext: n.Host.DialContext, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return string(body), err
}

// whileAway does what makes the server go and come, and checks that nothing in
// the cluster noticed: the same processes in the same containers, and Services
// that answered each time they were asked.
func (w *outliving) whileAway(t *testing.T, goAndCome func()) {
	t.Helper()
	containers, tasks := w.containers(t), w.tasks(t)
	before := w.probes(t, "gets")
	asked := w.keepAsking(t)
	goAndCome()
	count, err := asked()
	if err != nil {
		t.Errorf("asked the Service from the host %d times: %v", count, err)
	}
	t.Logf("the Service answered the host %d times", count)

	w.n.WaitPods(t, w.ns, "all=yes", podsOfWorkload)
	if now := w.containers(t); !maps.Equal(now, containers) {
		t.Errorf("containers before: %v\nand after: %v", containers, now)
	}
	if now := w.tasks(t); now != tasks {
		t.Errorf("processes of containers before:\n%s\nand after:\n%s", tasks, now)
	}
	lines := w.probeLines(t, "gets", before)
	if bad := failed(lines); len(bad) > 0 {
		t.Errorf("a pod asked the Service %d times, and failed: %s", len(lines), strings.Join(bad, "\n"))
	}
	w.answers(t)
}

// containers are the names and ids of all, with their restarts.
func (w *outliving) containers(t *testing.T) map[string]string {
	t.Helper()
	pods, err := w.n.Client.CoreV1().Pods(w.ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]string{}
	for _, p := range pods.Items {
		for _, c := range p.Status.ContainerStatuses {
			ids[p.Name+"/"+c.Name] = fmt.Sprintf("%s restarted %d times", c.ContainerID, c.RestartCount)
		}
	}
	return ids
}

// tasks are containerd's list of processes, with their numbers.
func (w *outliving) tasks(t *testing.T) string {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(w.n.Exec(t, w.n.Exe, "ctr", "tasks", "list")), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// keepAsking asks the Service until the returned function is called, which
// tells how often and the first failure.
func (w *outliving) keepAsking(t *testing.T) func() (int, error) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	count, failure := 0, error(nil)
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for ; ; <-tick.C {
			err := w.get(ctx)
			if ctx.Err() != nil {
				return
			}
			count++
			if err != nil && failure == nil {
				failure = fmt.Errorf("time %d: %w", count, err)
			}
		}
	}()
	return func() (int, error) {
		cancel()
		<-done
		return count, failure
	}
}

// probeLines are the attempts that a probing pod has begun since the number and
// written down.
func (w *outliving) probeLines(t *testing.T, pod string, since int) []string {
	t.Helper()
	var lines []string
	// A kubelet that just started learns of its pods a moment after the API
	// answers.
	w.n.WaitFor(t, "what pod "+pod+" wrote", func(context.Context) (bool, error) {
		text, err := w.n.KubectlErr("logs", "-n", w.ns, pod)
		lines = slices.DeleteFunc(strings.Split(strings.TrimSpace(text), "\n"), func(l string) bool {
			number, _, _ := strings.Cut(l, " ")
			i, err := strconv.Atoi(number)
			return err != nil || i < since
		})
		return len(lines) > 0, err
	})
	return lines
}

// probes is how many attempts a probing pod has begun, nearly.
func (w *outliving) probes(t *testing.T, pod string) int {
	t.Helper()
	most := 0
	for _, l := range w.probeLines(t, pod, 0) {
		number, _, _ := strings.Cut(l, " ")
		i, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, i)
	}
	return most
}

func failed(lines []string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return strings.HasSuffix(l, " ok") })
}

// longest is the longest time that one of the attempts took.
func longest(t *testing.T, lines []string) time.Duration {
	t.Helper()
	var most time.Duration
	for _, l := range lines {
		var i int
		var took string
		if _, err := fmt.Sscan(l, &i, &took); err != nil {
			t.Fatalf("line %q of a probe: %v", l, err)
		}
		d, err := time.ParseDuration(took)
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, d)
	}
	return most
}

func (w *outliving) stoppedForLong(t *testing.T) {
	w.whileAway(t, func() {
		w.n.Stop(t)
		time.Sleep(absence) // the absence itself, not a wait for something
		start := time.Now()
		if err := w.n.Launch(); err != nil {
			t.Fatal(err)
		}
		w.n.WaitFor(t, "the API to answer again", func(ctx context.Context) (bool, error) {
			_, err := w.n.Client.CoreV1().Namespaces().Get(ctx, "default", metav1.GetOptions{})
			return err == nil, err
		})
		t.Log("exec to the API's first answer:", time.Since(start).Round(time.Millisecond))
		w.n.WaitReady(t)
		t.Log("exec to ready:", time.Since(start).Round(time.Millisecond))
	})
	pod, err := w.n.Client.CoreV1().Pods(w.ns).Get(t.Context(), "spew", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.n.WaitFor(t, "the writer to go on", w.spewGoesOn(t, pod))
	checkNumbered(t, w.spewLines(t, pod))
	blocked := w.n.Kubectl(t, "exec", "-n", w.ns, "spew", "--", "cat", "/tmp/longest")
	t.Logf("away for %s; a write of the pod at 1 MB/s blocked for at most %s", absence, strings.TrimSpace(blocked))
}

// spewGoesOn tells whether a line was written after the first call.
func (w *outliving) spewGoesOn(t *testing.T, pod *corev1.Pod) func(context.Context) (bool, error) {
	path := filepath.Join(w.logFolder(pod), "0.log")
	size := int64(-1)
	return func(context.Context) (bool, error) {
		info, err := os.Stat(path)
		if err != nil {
			return false, err
		}
		before := size
		size = info.Size()
		return before >= 0 && size != before, nil
	}
}

func (w *outliving) logFolder(pod *corev1.Pod) string {
	name := fmt.Sprintf("%s_%s_%s", pod.Namespace, pod.Name, pod.UID)
	return w.n.Host.Path(filepath.Join("/var/log/pods", name, pod.Spec.Containers[0].Name))
}

func (w *outliving) killed(t *testing.T) {
	before := w.probes(t, "lookups")
	w.whileAway(t, func() {
		w.n.Kill(t)
		w.n.Resume(t)
	})
	// DNS was away, and nothing was there in which queries could wait.
	lines := w.probeLines(t, "lookups", before)
	if last := lines[len(lines)-1]; !strings.HasSuffix(last, " ok") {
		t.Errorf("DNS was asked after the restart: %s", last)
	}
	t.Logf("of %d look-ups %d failed, the longest took %s", len(lines), len(failed(lines)), longest(t, lines))
}

func (w *outliving) replaced(t *testing.T) {
	const other = "/opt/other/knarr"
	if err := w.n.CopyExe(other, []byte("another build")); err != nil {
		t.Fatal(err)
	}
	w.whileAway(t, func() {
		w.n.Stop(t)
		w.n.Exe = other
		w.n.Resume(t)
	})
}

func (w *outliving) restartedInPlace(t *testing.T) {
	// The executable at the same path is a new one by now, as after an update.
	if err := w.n.CopyExe(w.n.Exe, []byte("a later build")); err != nil {
		t.Fatal(err)
	}
	pid := w.n.Status(t).PID
	started := w.n.Status(t).StartedAt
	w.noLookUpFails(t, func() { w.n.Reload(t) })
	s := w.n.Status(t)
	if s.PID != pid || !s.StartedAt.After(started) {
		t.Errorf("after SIGHUP process %d, started %s; before: %d, %s", s.PID, s.StartedAt, pid, started)
	}
	if exe := w.n.Exec(t, "readlink", fmt.Sprintf("/proc/%d/exe", s.PID)); strings.TrimSpace(exe) != w.n.Exe {
		t.Errorf("after SIGHUP %s runs, want the new %s", exe, w.n.Exe)
	}
}

func (w *outliving) restartedBySystemd(t *testing.T) {
	w.n.KeepSockets = true
	w.noLookUpFails(t, func() { w.n.Restart(t) })
	w.n.KeepSockets = false
}

func (w *outliving) noLookUpFails(t *testing.T, goAndCome func()) {
	before := w.probes(t, "lookups")
	w.whileAway(t, goAndCome)
	lines := w.probeLines(t, "lookups", before)
	if bad := failed(lines); len(bad) > 0 {
		t.Errorf("of %d look-ups failed: %s", len(lines), strings.Join(bad, "\n"))
	}
	t.Logf("of %d look-ups none failed, the longest took %s", len(lines), longest(t, lines))
}

func (w *outliving) rebooted(t *testing.T) {
	before := w.containers(t)
	w.n.Reboot(t)
	w.n.Resume(t)
	for name := range before {
		pod, _, _ := strings.Cut(name, "/")
		w.n.WaitPod(t, w.ns, pod, "in a new container and ready", func(p *corev1.Pod) bool {
			return harness.PodReady(p) && !strings.Contains(before[name], p.Status.ContainerStatuses[0].ContainerID)
		})
	}
	w.answers(t)

	var pods struct{ Items []corev1.Pod }
	if err := json.Unmarshal([]byte(w.n.Kubectl(t, "get", "pods", "-A", "-o", "json")), &pods); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, p := range pods.Items {
		if !p.Spec.HostNetwork {
			want = append(want, p.Status.PodIP)
		}
	}
	slices.Sort(want)
	w.n.WaitFor(t, fmt.Sprintf("as many addresses taken as pods have: %s", want), func(context.Context) (bool, error) {
		taken, err := addressesTaken(w.n)
		if err == nil && !slices.Equal(taken, want) {
			err = fmt.Errorf("addresses taken: %s", taken)
		}
		return err == nil, err
	})
}

// addressesTaken are those that the CNI plugin holds for pods.
func addressesTaken(n *harness.Node) ([]string, error) {
	files, err := filepath.Glob(n.Host.Path("/run/knarr/cni-ipam/*/10.*"))
	if err == nil && len(files) == 0 {
		err = errors.New("no address is taken")
	}
	for i, f := range files {
		files[i] = filepath.Base(f)
	}
	slices.Sort(files)
	return files, err
}
