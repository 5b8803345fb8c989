package runtimes

import (
	"log/slog"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
)

func node(name string, handlers ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, h := range append([]string{"", "runc"}, handlers...) {
		n.Status.RuntimeHandlers = append(n.Status.RuntimeHandlers, corev1.NodeRuntimeHandler{Name: h})
	}
	return n
}

func classes(t *testing.T, client kubernetes.Interface) (names []string) {
	t.Helper()
	list, err := client.NodeV1().RuntimeClasses().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Items {
		names = append(names, c.Name+"="+c.Handler)
	}
	slices.Sort(names)
	return names
}

func TestClassesFollowTheRuntimesThatNodesHave(t *testing.T) {
	own := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "kata"}, Handler: "kata-qemu"}
	a, b := node("a", "crun", "kata"), node("b", "runsc", "unknown")
	client := fake.NewClientset(own, a, b)
	r := New(Config{Log: slog.New(slog.DiscardHandler)})
	settle := func(nodes ...*corev1.Node) {
		t.Helper()
		if err := r.settle(t.Context(), client, nodes); err != nil {
			t.Fatal(err)
		}
	}
	settle(a, b)
	if got := classes(t, client); !slices.Equal(got, []string{"crun=crun", "gvisor=runsc", "kata=kata-qemu"}) {
		t.Errorf("the classes are %q", got)
	}
	labelled, err := client.CoreV1().Nodes().Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if l := labelled.Labels; l[Label+"crun"] != "true" || l[Label+"kata"] != "true" || l[Label+"gvisor"] != "" {
		t.Errorf("node a has the labels %v", l)
	}
	if patch := patchOf(labelled); patch != nil {
		t.Errorf("a labelled node is written again: %s", patch)
	}
	crun, err := client.NodeV1().RuntimeClasses().Get(t.Context(), "crun", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if crun.Scheduling == nil || crun.Scheduling.NodeSelector[Label+"crun"] != "true" {
		t.Errorf("pods of crun may go anywhere: %+v", crun.Scheduling)
	}

	// The runtime is uninstalled, and another node leaves.
	labelled.Status = node("a").Status
	settle(labelled)
	if got := classes(t, client); !slices.Equal(got, []string{"kata=kata-qemu"}) {
		t.Errorf("the classes that are left are %q", got)
	}
	labelled, err = client.CoreV1().Nodes().Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil || len(labelled.Labels) != 0 {
		t.Errorf("node a is left with the labels %v, %v", labelled.Labels, err)
	}
}

func TestANodeThatHasNotToldItsRuntimesKeepsItsLabels(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{Label + "crun": "true"}}}
	if patch := patchOf(n); patch != nil {
		t.Errorf("it is patched: %s", patch)
	}
}

func TestOnlyWhatIsReadOfANodeIsKept(t *testing.T) {
	n := node("a", "crun")
	n.Labels = map[string]string{Label + "crun": "true", "other": "label"}
	n.Status.Images = []corev1.ContainerImage{{Names: []string{"image"}}}
	o, err := trim(n)
	if err != nil {
		t.Fatal(err)
	}
	small := o.(*corev1.Node)
	if len(small.Labels) != 1 || small.Status.Images != nil || len(runtimesOf(small)) != 1 {
		t.Errorf("kept is %+v", small)
	}
}
