package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// packer fills one node before it takes the next, and nothing else counts.
const packer = `
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: default-scheduler
- schedulerName: packer
  plugins:
    score:
      disabled: [{name: "*"}]
      enabled: [{name: NodeResourcesFit}]
  pluginConfig:
  - name: NodeResourcesFit
    args:
      scoringStrategy: {type: MostAllocated, resources: [{name: cpu, weight: 1}]}
`

// nodes is a cluster of nodes that are only told of, for the scheduler's part:
// two in the north and one in the south.
type nodes struct {
	*harness.Node
	t  *testing.T
	ns string
}

func TestSchedulerChoosesAmongNodes(t *testing.T) {
	n := harness.Prepare(t, harness.Options{
		Args: []string{
			"--disable-agent", "--kube-scheduler-arg=config=/etc/knarr/scheduler.yaml",
			// Nobody renews what these nodes say.
			"--kube-controller-manager-arg=node-monitor-grace-period=1h",
		},
		Files: map[string]string{"/etc/knarr/scheduler.yaml": packer},
	})
	// A machine without the files of time zones, as small ones are.
	n.Exec(t, "sh", "-c", "if [ -d /usr/share/zoneinfo ]; then mount -t tmpfs none /usr/share/zoneinfo; fi")
	n.Resume(t)
	for _, name := range []string{"north-1", "north-2", "south-1"} {
		zone, _, _ := strings.Cut(name, "-")
		size := map[string]string{"north": "4", "south": "16"}[zone]
		imagine(t, n, name, corev1.NodeSpec{}, corev1.LabelTopologyZone, zone, "example.org/size", size)
	}
	for _, c := range []struct {
		what string
		test func(*nodes)
	}{
		{"by labels", byLabels},
		{"by what a pod prefers", byPreference},
		{"by where other pods are", byCompany},
		{"so that pods are spread over zones", bySpread},
		{"by taints", byTaints},
		{"by huge pages", byHugePages},
		{"without the cordoned", cordoned},
		{"and a DaemonSet takes all", forDaemons},
		{"until all are full", untilFull},
		{"by profiles", byProfiles},
		{"by whom it costs least to displace", byPriority},
		{"and knows time zones that the machine does not", timeZones},
	} {
		t.Run(c.what, func(t *testing.T) {
			ns := n.Namespace(t)
			n.WaitFor(t, "its ServiceAccount", func(ctx context.Context) (bool, error) {
				_, err := n.Client.CoreV1().ServiceAccounts(ns).Get(ctx, "default", metav1.GetOptions{})
				return err == nil, err
			})
			c.test(&nodes{Node: n, t: t, ns: ns})
			// The next test finds the nodes empty.
			if err := n.Client.CoreV1().Pods(ns).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
				t.Fatal(err)
			}
			n.WaitPods(t, ns, "", 0)
		})
	}
}

// imagine registers a node with labels, which take turns with their values, and
// waits until the cluster believes that it is ready. It goes with the test.
func imagine(t *testing.T, n *harness.Node, name string, spec corev1.NodeSpec, labels ...string) {
	t.Helper()
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"),
		corev1.ResourcePods: resource.MustParse("110"), "hugepages-2Mi": resource.MustParse("0"),
	}
	if name == "south-1" {
		room["hugepages-2Mi"] = resource.MustParse("64Mi")
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name, corev1.LabelOSStable: "linux"}},
		Spec:       spec,
		Status: corev1.NodeStatus{Capacity: room, Allocatable: room, Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Imagined", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
		}}},
	}
	for l := range slices.Chunk(labels, 2) {
		node.Labels[l[0]] = l[1]
	}
	client := n.Client.CoreV1().Nodes()
	if _, err := client.Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Delete(context.Background(), name, metav1.DeleteOptions{}) }) // the whole host goes at last
	tainted(t, n, name, len(spec.Taints))
}

// tainted waits until a node has so many taints: not its own alone, but also
// those by which the cluster says that it is not ready or cordoned.
func tainted(t *testing.T, n *harness.Node, name string, taints int) {
	t.Helper()
	n.WaitFor(t, fmt.Sprintf("%d taints of %s", taints, name), func(ctx context.Context) (bool, error) {
		now, err := n.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		if len(now.Spec.Taints) != taints {
			return false, fmt.Errorf("its taints are %v", now.Spec.Taints)
		}
		return true, nil
	})
}

func (n *nodes) cordon(name string) {
	n.t.Helper()
	n.Kubectl(n.t, "cordon", name)
	tainted(n.t, n.Node, name, 1)
}

func (n *nodes) uncordon(name string) {
	n.t.Helper()
	n.Kubectl(n.t, "uncordon", name)
	tainted(n.t, n.Node, name, 0)
}

// create makes a pod that nobody is there to end.
func (n *nodes) create(name string, opts []kube.Option) {
	n.t.Helper()
	pod := kube.Pod(name, append(opts, kube.Grace(0))...)
	if _, err := n.Client.CoreV1().Pods(n.ns).Create(n.t.Context(), pod, metav1.CreateOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

// place creates a pod and returns where it is scheduled.
func (n *nodes) place(name string, opts ...kube.Option) string {
	n.t.Helper()
	n.create(name, opts)
	return n.WaitPod(n.t, n.ns, name, "scheduled", func(p *corev1.Pod) bool { return p.Spec.NodeName != "" }).Spec.NodeName
}

// placed creates a pod that must be scheduled to that node.
func (n *nodes) placed(want, name string, opts ...kube.Option) {
	n.t.Helper()
	if got := n.place(name, opts...); got != want {
		n.t.Errorf("pod %s is on %s, want %s", name, got, want)
	}
}

// refused creates a pod that must wait, and be told why.
func (n *nodes) refused(words, name string, opts ...kube.Option) {
	n.t.Helper()
	n.create(name, opts)
	n.WaitPod(n.t, n.ns, name, "refused with "+words, func(p *corev1.Pod) bool { return unschedulable(p, words) })
}

func nodeAffinity(a *corev1.NodeAffinity) kube.Option {
	return kube.Spec(func(p *corev1.PodSpec) { p.Affinity = &corev1.Affinity{NodeAffinity: a} })
}

func term(key string, op corev1.NodeSelectorOperator, values ...string) corev1.NodeSelectorTerm {
	return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: op, Values: values}}}
}

// required needs one of the terms.
func required(terms ...corev1.NodeSelectorTerm) kube.Option {
	return nodeAffinity(&corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms}})
}

func byLabels(n *nodes) {
	zone, size := corev1.LabelTopologyZone, "example.org/size"
	n.placed("south-1", "selects", kube.Node(zone, "south"))
	n.placed("south-1", "other", required(term(zone, corev1.NodeSelectorOpNotIn, "north")))
	n.placed("south-1", "large", required(term(size, corev1.NodeSelectorOpGt, "8")))
	n.placed("north-2", "either", required(term("example.org/none", corev1.NodeSelectorOpExists), term(corev1.LabelHostname, corev1.NodeSelectorOpIn, "north-2")))
	n.placed("north-2", "by-name", required(corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{
		Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{"north-2"},
	}}}))
	n.refused("3 node(s) didn't match Pod's node affinity/selector", "both", kube.Node(zone, "north"), required(term(size, corev1.NodeSelectorOpGt, "8")))
}

func byPreference(n *nodes) {
	prefer := func(zone string) kube.Option {
		return nodeAffinity(&corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{
			{Weight: 100, Preference: term(corev1.LabelTopologyZone, corev1.NodeSelectorOpIn, zone)},
		}})
	}
	n.placed("south-1", "southward", prefer("south"))
	n.place("nowhere", prefer("east"))
}

// beside is a term about the pods of an app, in zones or on hosts.
func beside(app, topology string) corev1.PodAffinityTerm {
	return corev1.PodAffinityTerm{TopologyKey: topology, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}}
}

func affinity(a corev1.Affinity) kube.Option {
	return kube.Spec(func(p *corev1.PodSpec) { p.Affinity = &a })
}

func byCompany(n *nodes) {
	zone, host := corev1.LabelTopologyZone, corev1.LabelHostname
	n.placed("south-1", "cache", kube.Node(zone, "south"))
	n.placed("south-1", "near", affinity(corev1.Affinity{PodAffinity: &corev1.PodAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{beside("cache", zone)},
	}}))
	n.placed("south-1", "rather-near", affinity(corev1.Affinity{PodAffinity: &corev1.PodAffinity{
		PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 100, PodAffinityTerm: beside("cache", host)}},
	}}))
	apart := func() kube.Option {
		return affinity(corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{beside("cache", zone), {
				TopologyKey: host, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "apart"}},
			}},
		}})
	}
	tier := kube.Label("tier", "apart")
	first, second := n.place("apart-1", tier, apart()), n.place("apart-2", tier, apart())
	if got := []string{first, second}; !slices.Contains(got, "north-1") || !slices.Contains(got, "north-2") {
		n.t.Errorf("pods that keep apart, in the zone without the cache, are on %s", got)
	}
	n.refused("didn't match pod anti-affinity rules", "apart-3", tier, apart())
	n.placed("south-1", "rather-apart", affinity(corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
		PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 100, PodAffinityTerm: corev1.PodAffinityTerm{
			TopologyKey: host, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "apart"}},
		}}},
	}}))
}

// where counts the pods of a selector on each node, once all have one.
func (n *nodes) where(selector string, total int) map[string]int {
	n.t.Helper()
	on := map[string]int{}
	n.WaitPodsUntil(n.t, n.ns, selector, "are scheduled", func(pods []*corev1.Pod) bool {
		clear(on)
		for _, p := range pods {
			on[p.Spec.NodeName]++
		}
		return len(pods) == total && on[""] == 0
	})
	return on
}

func bySpread(n *nodes) {
	even := func(topology string, otherwise corev1.UnsatisfiableConstraintAction) kube.Option {
		return kube.Spec(func(p *corev1.PodSpec) {
			p.TopologySpreadConstraints = append(p.TopologySpreadConstraints, corev1.TopologySpreadConstraint{
				MaxSkew: 1, TopologyKey: topology, WhenUnsatisfiable: otherwise, NodeAffinityPolicy: new(corev1.NodeInclusionPolicyIgnore),
				LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "even"}},
			})
		})
	}
	zones := even(corev1.LabelTopologyZone, corev1.DoNotSchedule)
	n.Create(n.t, n.ns, kube.Deployment("web", 4, kube.Grace(0), kube.Label("tier", "even"), zones, even(corev1.LabelHostname, corev1.ScheduleAnyway)))
	on := n.where("app=web", 4)
	if on["south-1"] != 2 || on["north-1"] != 1 || on["north-2"] != 1 {
		n.t.Errorf("four pods, evenly over two zones, are %v", on)
	}
	n.placed("south-1", "fifth", kube.Label("tier", "even"), zones, kube.Node(corev1.LabelTopologyZone, "south"))
	n.refused("didn't match pod topology spread constraints", "sixth", kube.Label("tier", "even"), zones, kube.Node(corev1.LabelTopologyZone, "south"))
	n.Kubectl(n.t, "delete", "deployment", "web", "-n", n.ns)
}

func byTaints(n *nodes) {
	taint := func(effect corev1.TaintEffect) corev1.NodeSpec {
		return corev1.NodeSpec{Taints: []corev1.Taint{{Key: "example.org/for", Value: "work", Effect: effect}}}
	}
	imagine(n.t, n.Node, "closed", taint(corev1.TaintEffectNoSchedule))
	imagine(n.t, n.Node, "shy", taint(corev1.TaintEffectPreferNoSchedule))
	on := func(node string) kube.Option { return kube.Node(corev1.LabelHostname, node) }
	n.refused("untolerated taint", "stranger", on("closed"))
	n.placed("closed", "worker", on("closed"), kube.Tolerate("example.org/for", "work", corev1.TaintEffectNoSchedule))
	n.refused("untolerated taint", "mistaken", on("closed"), kube.Tolerate("example.org/for", "play", corev1.TaintEffectNoSchedule))
	n.placed("shy", "insistent", on("shy"))
	if node := n.place("polite"); node == "shy" || node == "closed" {
		n.t.Errorf("a pod that need not is on %s", node)
	}
}

func byHugePages(n *nodes) {
	pages := []kube.Option{kube.Limit("hugepages-2Mi", "48Mi"), kube.Limit("memory", "16Mi")}
	n.placed("south-1", "pages", pages...)
	n.refused("Insufficient hugepages-2Mi", "more", pages...)
}

func cordoned(n *nodes) {
	n.cordon("north-1")
	n.cordon("south-1")
	n.placed("north-2", "first")
	n.placed("north-2", "second")
	n.uncordon("north-1")
	n.uncordon("south-1")
}

func forDaemons(n *nodes) {
	n.cordon("north-1") // daemons do not mind
	n.Create(n.t, n.ns, kube.DaemonSet("agent", kube.Grace(0)))
	on := n.where("app=agent", 3)
	for _, name := range []string{"north-1", "north-2", "south-1"} {
		if on[name] != 1 {
			n.t.Errorf("node %s has %d of the daemon's pods", name, on[name])
		}
	}
	// A node that joins later has it too.
	imagine(n.t, n.Node, "newcomer", corev1.NodeSpec{})
	if on := n.where("app=agent", 4); on["newcomer"] != 1 {
		n.t.Errorf("the daemon's pods are %v", on)
	}
	n.uncordon("north-1")
	n.Kubectl(n.t, "delete", "daemonset", "agent", "-n", n.ns)
}

func untilFull(n *nodes) {
	large := kube.Request("cpu", "3")
	var on []string
	for i := range 3 {
		on = append(on, n.place(fmt.Sprint("large-", i), large))
	}
	slices.Sort(on)
	if !slices.Equal(on, []string{"north-1", "north-2", "south-1"}) {
		n.t.Errorf("pods of which a node has room for one are on %v", on)
	}
	n.refused("3 Insufficient cpu", "one-more", large)
	n.place("small", kube.Request("cpu", "1"))
	n.Kubectl(n.t, "delete", "pod", "large-1", "-n", n.ns)
	n.WaitPod(n.t, n.ns, "one-more", "scheduled", func(p *corev1.Pod) bool {
		return p.Spec.NodeName == on[0] || p.Spec.NodeName == on[1] || p.Spec.NodeName == on[2]
	})
}

func byProfiles(n *nodes) {
	by := func(profile string) map[string]int {
		on := map[string]int{}
		for i := range 3 {
			on[n.place(fmt.Sprint(profile, "-", i), kube.Request("cpu", "500m"), kube.Spec(func(p *corev1.PodSpec) { p.SchedulerName = profile }))]++
		}
		return on
	}
	if on := by("default-scheduler"); len(on) != 3 {
		n.t.Errorf("the default profile puts three pods on %v", on)
	}
	if on := by("packer"); len(on) != 1 {
		n.t.Errorf("the profile that packs puts three pods on %v", on)
	}
}

func byPriority(n *nodes) {
	for name, value := range map[string]int32{"low": 10, "middle": 20, "high": 1000} {
		n.Create(n.t, n.ns, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value, GlobalDefault: name == "middle"})
	}
	most := kube.Request("cpu", "3")
	class := func(name string) kube.Option {
		return kube.Spec(func(p *corev1.PodSpec) { p.PriorityClassName = name })
	}
	n.WaitFor(n.t, "the default priority", func(ctx context.Context) (bool, error) {
		p, err := n.Client.CoreV1().Pods(n.ns).Create(ctx, kube.Pod("usual"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err == nil && p.Spec.PriorityClassName == "middle" && *p.Spec.Priority == 20, err
	})
	n.placed("north-1", "usual", most, kube.Node(corev1.LabelHostname, "north-1"))
	n.placed("north-2", "lowly", most, kube.Node(corev1.LabelHostname, "north-2"), class("low"))
	n.placed("south-1", "lofty", most, kube.Node(corev1.LabelHostname, "south-1"), class("high"))
	n.placed("north-2", "important", most, class("high"))
	n.WaitGone(n.t, n.ns, "lowly")
	for _, name := range []string{"usual", "lofty"} {
		n.WaitPod(n.t, n.ns, name, "left in peace", func(p *corev1.Pod) bool { return p.DeletionTimestamp == nil })
	}
}

func timeZones(n *nodes) {
	n.Create(n.t, n.ns, &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "yearly"}, Spec: batchv1.CronJobSpec{
		Schedule: "0 0 1 1 *", TimeZone: new("Asia/Tokyo"), JobTemplate: batchv1.JobTemplateSpec{Spec: kube.Job("greet").Spec},
	}})
}
