// Package scale runs many hollow agents against one real server: they join, have
// certificates of their own, renew leases and tell of nodes and pods as kubelets
// do, and run nothing.
package scale

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

var (
	nodes = flag.Int("nodes", 0, "how many hollow nodes; 0 leaves the test out")
	pods  = flag.Int("pods", 3000, "how many pods they have at rest")
	churn = flag.Int("churn", 1000, "how many pods come and go while it is measured")
	rate  = flag.Int("rate", 20, "how many pods a second come and go when it is not as fast as can be")
	rest  = flag.Duration("rest", time.Minute, "how long rest is measured")
	into  = flag.String("into", "", "a Markdown file whose section about this run is written anew")
)

func TestMain(m *testing.M) { harness.Main(m) }

func TestManyHollowNodes(t *testing.T) {
	if *nodes == 0 {
		t.Skip("make scale")
	}
	server := harness.Start(t, harness.Options{Args: []string{"--disable-agent"}})
	out := &report{started: time.Now()}
	before := measure(t, server)

	ctx, stop := context.WithCancel(t.Context())
	fleet := newFleet(t, server, *nodes)
	began := time.Now()
	fleet.join(ctx)
	server.WaitFor(t, "all nodes", func(ctx context.Context) (bool, error) {
		l, err := server.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		return err == nil && ready(l.Items) == *nodes, err
	})
	out.add("%d nodes joined, one after the other's answer, 16 at a time", time.Since(began).Seconds(), "s", *nodes)
	joined := measure(t, server)

	ns := server.Namespace(t)
	out.rollout("%d pods created until they run", *pods, fleet, createPods(t, server, fleet, ns, "rest", *pods, 0))
	time.Sleep(20 * time.Second) // what a rollout leaves behind
	full := measure(t, server)
	time.Sleep(*rest)
	calm := measure(t, server)
	out.interval("at rest", full, calm)
	out.add("memory of the server, PSS, before any node", before.memory, "MiB")
	out.add("with the nodes", joined.memory, "MiB")
	out.add("with nodes and pods, after a minute of rest", calm.memory, "MiB")

	// At a rate, and then as fast as can be.
	fleet.forget()
	pace := time.Second / time.Duration(*rate)
	what := fmt.Sprintf("%d a second", *rate)
	start := measure(t, server)
	out.rollout("%d more pods, "+what+", created until they run", *churn, fleet, createPods(t, server, fleet, ns, "pace", *churn, pace))
	deletePods(t, server, ns, "pace", *churn, pace)
	end := measure(t, server)
	out.interval("while pods come and go, "+what, start, end)
	out.requests(what, start, end)

	fleet.forget()
	start = measure(t, server)
	out.rollout("%d more pods created until they run", *churn, fleet, createPods(t, server, fleet, ns, "churn", *churn, 0))
	began = time.Now()
	if err := server.Client.CoreV1().Pods(ns).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "app=churn"}); err != nil {
		t.Fatal(err)
	}
	server.WaitPods(t, ns, "app=churn", 0)
	out.add("%d pods removed", time.Since(began).Seconds(), "s", *churn)
	end = measure(t, server)
	out.interval("while pods come and go as fast as can be", start, end)
	out.requests("as fast as can be", start, end)
	stop()
	fleet.wait()

	for _, line := range out.lines {
		t.Log(line)
	}
	if *into != "" {
		if err := out.publish(*into); err != nil {
			t.Fatal(err)
		}
	}
}

func ready(all []corev1.Node) (n int) {
	for _, node := range all {
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				n++
			}
		}
	}
	return n
}

// createPods makes pods as a controller does, 16 at a time and no sooner than pace
// after each other, and waits until the fleet has told that each runs. It returns how
// long each took.
func createPods(t *testing.T, server *harness.Node, f *fleet, ns, app string, count int, pace time.Duration) []time.Duration {
	t.Helper()
	var mu sync.Mutex
	created := make(map[string]time.Time, count)
	next := make(chan int)
	var work sync.WaitGroup
	for range 16 {
		work.Go(func() {
			for i := range next {
				name := fmt.Sprintf("%s-%d", app, i)
				mu.Lock()
				created[name] = time.Now()
				mu.Unlock()
				pod := kube.Pod(name, kube.Label("app", app), kube.Serve("x"))
				if _, err := server.Client.CoreV1().Pods(ns).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	inStep(count, pace, func(i int) { next <- i })
	close(next)
	work.Wait()
	var took []time.Duration
	for name, at := range f.await(t, app+"-", count) {
		took = append(took, at.Sub(created[name]))
	}
	return took
}

// deletePods removes pods one after the other, and waits until they are gone.
func deletePods(t *testing.T, server *harness.Node, ns, app string, count int, pace time.Duration) {
	t.Helper()
	inStep(count, pace, func(i int) {
		if err := server.Client.CoreV1().Pods(ns).Delete(t.Context(), fmt.Sprintf("%s-%d", app, i), metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	server.WaitPods(t, ns, "app="+app, 0)
}

func inStep(count int, pace time.Duration, do func(int)) {
	var step <-chan time.Time
	if pace > 0 {
		ticker := time.NewTicker(pace)
		defer ticker.Stop()
		step = ticker.C
	}
	for i := range count {
		if step != nil {
			<-step
		}
		do(i)
	}
}

// sample is how the server does.
type sample struct {
	at      time.Time
	memory  float64 // MiB
	cpu     time.Duration
	metrics map[string]float64
}

func measure(t *testing.T, n *harness.Node) sample {
	t.Helper()
	s := sample{at: time.Now(), metrics: map[string]float64{}}
	raw, err := n.Client.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if f, err := strconv.ParseFloat(value, 64); ok && err == nil && wanted(name) {
			s.metrics[name] += f
		}
	}
	for _, pid := range serverPIDs(t, n) {
		s.memory += pss(t, n, pid)
		s.cpu += cpu(t, n, pid)
	}
	return s
}

func wanted(name string) bool {
	return strings.HasPrefix(name, "apiserver_request_duration_seconds_bucket") || strings.HasPrefix(name, "knarr_store_commit_duration_seconds_count") ||
		strings.HasPrefix(name, "knarr_store_commit_changes_sum")
}

func serverPIDs(t *testing.T, n *harness.Node) []string {
	t.Helper()
	return strings.Fields(n.Exec(t, "sh", "-c", `for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline | grep -q '^[^ ]*knarr server' && echo ${p#/proc/}; done; true`))
}

func pss(t *testing.T, n *harness.Node, pid string) float64 {
	t.Helper()
	for line := range strings.Lines(n.Exec(t, "cat", "/proc/"+pid+"/smaps_rollup")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			kib, _ := strconv.ParseFloat(f[1], 64)
			return kib / 1024
		}
	}
	return 0
}

// cpu is a process' time, of /proc/PID/stat in ticks of 10 ms (proc_pid_stat(5)).
func cpu(t *testing.T, n *harness.Node, pid string) time.Duration {
	t.Helper()
	_, after, _ := strings.Cut(n.Exec(t, "cat", "/proc/"+pid+"/stat"), ") ")
	f := strings.Fields(after)
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// report is what a run has found out.
type report struct {
	started time.Time
	lines   []string
}

func (r *report) add(format string, value float64, unit string, args ...any) {
	r.lines = append(r.lines, fmt.Sprintf("| %s | %.4g %s |", fmt.Sprintf(format, args...), value, unit))
}

func (r *report) rollout(format string, count int, _ *fleet, took []time.Duration) {
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	what := fmt.Sprintf(format, count)
	r.add("%s: p50", took[len(took)/2].Seconds(), "s", what)
	r.add("%s: p99", took[len(took)*99/100].Seconds(), "s", what)
}

func (r *report) interval(what string, a, b sample) {
	took := b.at.Sub(a.at).Seconds()
	r.add("CPU of the server %s", 100*(b.cpu-a.cpu).Seconds()/took, "% of a core", what)
	r.add("commits of the store %s", diff(a, b, "knarr_store_commit_duration_seconds_count")/took, "1/s", what)
	r.add("changes in them %s", diff(a, b, "knarr_store_commit_changes_sum")/took, "1/s", what)
}

func diff(a, b sample, name string) float64 { return b.metrics[name] - a.metrics[name] }

// requests adds the latencies that the API server has counted, by verb, of
// requests for single objects.
func (r *report) requests(what string, a, b sample) {
	type bucket struct{ le, n float64 }
	verbs := map[string][]bucket{}
	for name := range b.metrics {
		labels, ok := strings.CutPrefix(name, "apiserver_request_duration_seconds_bucket{")
		if !ok {
			continue
		}
		get := func(key string) string {
			_, rest, _ := strings.Cut(labels, key+`="`)
			v, _, _ := strings.Cut(rest, `"`)
			return v
		}
		verb := get("verb")
		le, err := strconv.ParseFloat(get("le"), 64)
		if err != nil || get("subresource") == "log" || !slices.Contains([]string{"GET", "POST", "PUT", "PATCH", "DELETE"}, verb) || get("scope") != "resource" {
			continue
		}
		verbs[verb] = append(verbs[verb], bucket{le, diff(a, b, name)})
	}
	for _, verb := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
		sum := map[float64]float64{}
		for _, x := range verbs[verb] {
			sum[x.le] += x.n
		}
		var les []float64
		for le := range sum {
			les = append(les, le)
		}
		sort.Float64s(les)
		if len(les) == 0 || sum[les[len(les)-1]] == 0 {
			continue
		}
		total := sum[les[len(les)-1]]
		for _, q := range []float64{0.5, 0.99} {
			i := slices.IndexFunc(les, func(le float64) bool { return sum[le] >= q*total })
			r.add("%s of single objects, %s, %.0f of them: p%.0f, at most", 1000*les[i], "ms", verb, what, total, 100*q)
		}
	}
}

const (
	sectionBegin = "<!-- scale: written by make scale -->\n"
	sectionEnd   = "<!-- end of scale -->\n"
)

// publish replaces the section between the markers.
func (r *report) publish(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(text), sectionBegin)
	_, after, ok2 := strings.Cut(rest, sectionEnd)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no markers for the results", file)
	}
	section := fmt.Sprintf("%d hollow nodes, %d pods, %s:\n\n| what | |\n|---|---|\n%s\n", *nodes, *pods, r.started.UTC().Format(time.DateOnly), strings.Join(r.lines, "\n"))
	return os.WriteFile(file, []byte(before+sectionBegin+section+sectionEnd+after), 0o644)
}
