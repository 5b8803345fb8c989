package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

// waitTimeout bounds every wait for the cluster; it only counts when a test is
// about to fail.
const waitTimeout = 2 * time.Minute

// Kubectl runs `knarr kubectl` in the host and returns its stdout. The test
// fails if it does.
func (n *Node) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := n.kubectl(t.Context(), nil, args)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// KubectlErr is Kubectl for what may fail; the error has what it wrote to
// stderr.
func (n *Node) KubectlErr(args ...string) (string, error) {
	return n.kubectl(context.Background(), nil, args)
}

// Apply applies manifests; an empty namespace leaves it to them.
func (n *Node) Apply(t testing.TB, namespace, manifest string) {
	t.Helper()
	// Validation has kubectl fetch the description of all types, each time: dozens
	// of tests at once would mostly wait for that.
	args := []string{"apply", "--validate=false", "-f", "-"}
	if namespace != "" {
		args = append(args, "-n", namespace)
	}
	if _, err := n.kubectl(t.Context(), []byte(manifest), args); err != nil {
		t.Fatal(err)
	}
}

// Create applies objects, such as those of package kube, to a namespace. What
// is there already is changed.
func (n *Node) Create(t testing.TB, namespace string, objects ...runtime.Object) {
	t.Helper()
	list := metav1.List{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "List"}}
	for _, o := range objects {
		kinds, _, err := scheme.Scheme.ObjectKinds(o)
		if err != nil {
			t.Fatal(err)
		}
		o = o.DeepCopyObject()
		o.GetObjectKind().SetGroupVersionKind(kinds[0])
		list.Items = append(list.Items, runtime.RawExtension{Object: o})
	}
	manifest, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	n.Apply(t, namespace, string(manifest))
}

func (n *Node) kubectl(ctx context.Context, stdin []byte, args []string) (string, error) {
	cmd := n.Host.Command(ctx, n.Exe, append([]string{"kubectl"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w\n%s%s", strings.Join(args, " "), err, errs.String(), out.String())
	}
	return out.String(), nil
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// Namespace makes a namespace named after the test, which goes with it. Nobody
// waits for its end.
func (n *Node) Namespace(t testing.TB) string {
	t.Helper()
	prefix := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(t.Name()), "-"), "-")
	prefix = prefix[:min(len(prefix), 40)]
	ns, err := n.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: prefix + "-"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
		defer cancel()
		now := int64(0)
		// A failed deletion costs nothing: the host goes too.
		_ = n.Client.CoreV1().Pods(ns.Name).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
		_ = n.Client.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{})
	})
	return ns.Name
}

// WaitFor tries until what is described holds: for what no watch can tell, such
// as an answer from a Service. After a minute the last error is told.
func (n *Node) WaitFor(t testing.TB, what string, try func(context.Context) (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	for wait := 5 * time.Millisecond; ; wait = min(wait*2, 250*time.Millisecond) {
		ok, err := try(ctx)
		if ok && err == nil {
			return
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			t.Fatalf("waited %s for %s; last error: %v", waitTimeout, what, err)
		}
	}
}

// WaitPod waits until a pod is as wanted and returns it so. A pod that does not
// exist is waited for.
func (n *Node) WaitPod(t testing.TB, namespace, name, what string, wanted func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	pods := n.watchPods(t, namespace, "", "metadata.name="+name, fmt.Sprintf("pod %s %s", name, what), func(pods []*corev1.Pod) bool {
		return len(pods) == 1 && wanted(pods[0])
	})
	return pods[0]
}

// WaitPodRunning waits until a pod is ready.
func (n *Node) WaitPodRunning(t testing.TB, namespace, name string) *corev1.Pod {
	t.Helper()
	return n.WaitPod(t, namespace, name, "ready", PodReady)
}

// WaitPods waits until exactly so many pods match a label selector, all ready
// and none on its way out.
func (n *Node) WaitPods(t testing.TB, namespace, selector string, want int) []*corev1.Pod {
	t.Helper()
	return n.watchPods(t, namespace, selector, "", fmt.Sprintf("%d pods of %q", want, selector), func(pods []*corev1.Pod) bool {
		return len(pods) == want && !slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return !PodReady(p) })
	})
}

// WaitPodsUntil waits until those that a label selector matches are as wanted.
func (n *Node) WaitPodsUntil(t testing.TB, namespace, selector, what string, wanted func([]*corev1.Pod) bool) []*corev1.Pod {
	t.Helper()
	return n.watchPods(t, namespace, selector, "", fmt.Sprintf("pods of %q %s", selector, what), wanted)
}

// WaitGone waits until no pod of that name is there.
func (n *Node) WaitGone(t testing.TB, namespace, name string) {
	t.Helper()
	n.watchPods(t, namespace, "", "metadata.name="+name, fmt.Sprintf("pod %s gone", name), func(pods []*corev1.Pod) bool {
		return len(pods) == 0
	})
}

// PodReady tells whether a pod is ready and stays.
func PodReady(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// watchPods waits until those that the selectors match are as wanted.
func (n *Node) watchPods(t testing.TB, namespace, labels, field, what string, wanted func([]*corev1.Pod) bool) []*corev1.Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	if field != "" {
		if _, err := fields.ParseSelector(field); err != nil {
			t.Fatal(err)
		}
	}
	client := n.Client.CoreV1().Pods(namespace)
	restrict := func(o metav1.ListOptions) metav1.ListOptions {
		o.LabelSelector, o.FieldSelector = labels, field
		return o
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return client.List(ctx, restrict(o))
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return client.Watch(ctx, restrict(o))
		},
	}
	pods := map[string]*corev1.Pod{}
	var synced cache.Store
	list := func() []*corev1.Pod {
		var all []*corev1.Pod
		for _, p := range pods {
			all = append(all, p)
		}
		return all
	}
	_, err := watchtools.UntilWithSync(ctx, lw, &corev1.Pod{}, func(s cache.Store) (bool, error) {
		synced = s
		for _, o := range synced.List() {
			p := o.(*corev1.Pod)
			pods[p.Name] = p
		}
		return wanted(list()), nil
	}, func(e watch.Event) (bool, error) {
		p, ok := e.Object.(*corev1.Pod)
		if !ok {
			return false, nil
		}
		if e.Type == watch.Deleted {
			delete(pods, p.Name)
		} else {
			pods[p.Name] = p
		}
		return wanted(list()), nil
	})
	if err != nil {
		t.Fatalf("waited for %s in %s: %v\n%s", what, namespace, err, n.describe(namespace, labels, field))
	}
	return list()
}

// describe shows what there is of pods that did not become as wanted.
func (n *Node) describe(namespace, labels, field string) string {
	args := []string{"describe", "pods", "-n", namespace}
	if labels != "" {
		args = append(args, "-l", labels)
	}
	if name, ok := strings.CutPrefix(field, "metadata.name="); ok {
		args = append(args, name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
	defer cancel()
	out, err := n.kubectl(ctx, nil, args)
	if err != nil {
		return errors.Join(errors.New("no description"), err).Error()
	}
	return out
}
