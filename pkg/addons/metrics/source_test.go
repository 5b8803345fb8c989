package metrics

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apitypes "k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/metrics-server/pkg/storage"
)

// kubelets answers as one of a node that uses a core, and one pod half of it.
type kubelets struct {
	now     time.Time
	scrapes int
	dead    bool
}

func (k *kubelets) Scrape(context.Context) *storage.MetricsBatch {
	k.scrapes++
	if k.dead {
		return &storage.MetricsBatch{}
	}
	start := time.Unix(0, 0)
	used := uint64(k.now.Sub(start))
	return &storage.MetricsBatch{
		Nodes: map[string]storage.MetricsPoint{"n": {StartTime: start, Timestamp: k.now, CumulativeCPUUsed: used, MemoryUsage: 1 << 20}},
		Pods: map[apitypes.NamespacedName]storage.PodMetricsPoint{{Namespace: "d", Name: "p"}: {Containers: map[string]storage.MetricsPoint{
			"c": {StartTime: start, Timestamp: k.now, CumulativeCPUUsed: used / 2, MemoryUsage: 1 << 20},
		}}},
	}
}

func TestKubeletsAreAskedWhenSomebodyAsks(t *testing.T) {
	k := &kubelets{now: time.Unix(1000, 0)}
	s := newSource(k, func() time.Time { return k.now })
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	pod := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: "p"}}
	ask := func(what string, scrapes int, window time.Duration) {
		t.Helper()
		nodes, err := s.GetNodeMetrics(node)
		if err != nil {
			t.Fatal(err)
		}
		pods, err := s.GetPodMetrics(pod)
		if err != nil {
			t.Fatal(err)
		}
		if k.scrapes != scrapes {
			t.Errorf("%s: %d scrapes, want %d", what, k.scrapes, scrapes)
		}
		if window == 0 {
			if len(nodes) > 0 {
				t.Errorf("%s: a rate of one sample: %v", what, nodes)
			}
			return
		}
		if len(nodes) != 1 || len(pods) != 1 {
			t.Fatalf("%s: got %v and %v", what, nodes, pods)
		}
		if got := nodes[0].Window.Duration; got != window {
			t.Errorf("%s: window is %s, want %s", what, got, window)
		}
		if got := nodes[0].Usage.Cpu().MilliValue(); got != 1000 {
			t.Errorf("%s: the node uses %dm", what, got)
		}
		if got := pods[0].Containers[0].Usage.Cpu().MilliValue(); got != 500 {
			t.Errorf("%s: the container uses %dm", what, got)
		}
	}
	ask("at first", 1, 0)
	if got := s.next(); got != freshFor {
		t.Errorf("after one sample kubelets are asked in %s, want %s", got, freshFor)
	}
	k.now = k.now.Add(freshFor)
	ask("after ten seconds", 2, freshFor)
	k.now = k.now.Add(freshFor - 1)
	ask("while it is fresh", 2, freshFor)
	if got := s.next(); got != baseline-freshFor+1 {
		t.Errorf("kubelets are asked unasked in %s", got)
	}
	k.now = k.now.Add(time.Hour)
	ask("after a pause", 3, time.Hour+freshFor-1)

	k.dead = true
	k.now = k.now.Add(freshFor)
	ask("without an answer", 4, 0)
	if got := s.next(); got != baseline {
		t.Errorf("dead kubelets are asked in %s, want %s", got, baseline)
	}
}
