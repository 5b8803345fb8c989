package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/connrotation"
)

// patience bounds every wait. It only counts when a test is about to fail: an
// emulated processor on a busy machine is slow.
const patience = time.Hour

// cluster is the API server in the machine, as seen from this one.
type cluster struct {
	kubernetes.Interface
	dialer *connrotation.Dialer
}

// connect reads the machine's kubeconfig and makes a client of it.
func (m *Machine) connect(ctx context.Context) (*cluster, error) {
	text, err := m.run(ctx, nil, "cat", "/etc/knarr/kubeconfig.yaml")
	if err != nil {
		return nil, err
	}
	cfg, err := clientcmd.RESTConfigFromKubeConfig([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("read the machine's kubeconfig: %w", err)
	}
	cfg.Host = "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(m.api))
	cfg.QPS = -1
	dialer := connrotation.NewDialer((&net.Dialer{}).DialContext)
	cfg.Dial = dialer.DialContext
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	return &cluster{Interface: client, dialer: dialer}, nil
}

// hangUp forgets connections to a boot that has ended, which nobody tells.
func (c *cluster) hangUp() { c.dialer.CloseAll() }

// pods are those of the namespace default, by name.
type pods map[string]*corev1.Pod

// waitPods waits until the pods are as wanted.
func (c *cluster) waitPods(t *testing.T, what string, wanted func(pods) bool) pods {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	all := pods{}
	client := c.CoreV1().Pods("default")
	err := follow(ctx, func() (string, error) {
		list, err := client.List(ctx, metav1.ListOptions{})
		if err != nil {
			return "", err
		}
		clear(all)
		for i := range list.Items {
			all[list.Items[i].Name] = &list.Items[i]
		}
		return list.ResourceVersion, nil
	}, client.Watch, func(e watch.Event) {
		p, ok := e.Object.(*corev1.Pod)
		switch {
		case !ok:
		case e.Type == watch.Deleted:
			delete(all, p.Name)
		default:
			all[p.Name] = p
		}
	}, func() bool { return wanted(all) })
	if err != nil {
		t.Fatalf("waited for %s: %v\n%s", what, err, describe(all))
	}
	return all
}

// follow lists and watches until done, again and again where the server goes.
func follow(ctx context.Context, list func() (string, error), open func(context.Context, metav1.ListOptions) (watch.Interface, error), see func(watch.Event), done func() bool) error {
	var last error
	for {
		version, err := list()
		if err == nil {
			if done() {
				return nil
			}
			var w watch.Interface
			if w, err = open(ctx, metav1.ListOptions{ResourceVersion: version}); err == nil {
				for e := range w.ResultChan() {
					if see(e); done() {
						w.Stop()
						return nil
					}
				}
				err = errors.New("the watch ended")
			}
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return fmt.Errorf("%w; last error: %v", ctx.Err(), last)
		}
	}
}

func describe(all pods) string {
	var text string
	for name, p := range all {
		text += fmt.Sprintf("%s: %s %s %s\n", name, p.Status.Phase, p.Status.Reason, p.Status.Message)
		for _, c := range p.Status.Conditions {
			text += fmt.Sprintf("  %s %s %s %s\n", c.Type, c.Status, c.Reason, c.Message)
		}
		for _, s := range p.Status.ContainerStatuses {
			text += fmt.Sprintf("  container %s: restarts %d, now %v, before %v\n", s.Name, s.RestartCount, s.State, s.LastTerminationState)
		}
	}
	return text
}

// ready tells whether a pod is there, ready, and stays.
func (p pods) ready(name string) bool {
	pod, ok := p[name]
	if !ok || pod.DeletionTimestamp != nil {
		return false
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// readyOf counts the ready pods of an app that started after a time.
func (p pods) readyOf(app string, after time.Time) int {
	n := 0
	for name, pod := range p {
		if pod.Labels["app"] == app && p.ready(name) && pod.Status.ContainerStatuses[0].State.Running != nil &&
			pod.Status.ContainerStatuses[0].State.Running.StartedAt.After(after) {
			n++
		}
	}
	return n
}

// waitHeartbeat waits until the node has renewed its lease at a time between.
func (c *cluster) waitHeartbeat(t *testing.T, from, to time.Time) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client := c.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	var renewed time.Time
	err := follow(ctx, func() (string, error) {
		list, err := client.List(ctx, metav1.ListOptions{})
		if err != nil {
			return "", err
		}
		for i := range list.Items {
			if at := renewal(watch.Event{Object: &list.Items[i]}); !at.IsZero() {
				renewed = at
			}
		}
		return list.ResourceVersion, nil
	}, client.Watch, func(e watch.Event) {
		if at := renewal(e); !at.IsZero() {
			renewed = at
		}
	}, func() bool { return renewed.After(from) && renewed.Before(to) })
	if err != nil {
		t.Fatalf("waited for a heartbeat of the node between %s and %s, the last is of %s: %v", from, to, renewed, err)
	}
}

// renewal is when the lease of an event was renewed, zero if it is none.
func renewal(e watch.Event) time.Time {
	l, ok := e.Object.(*coordinationv1.Lease)
	if !ok || l.Spec.RenewTime == nil {
		return time.Time{}
	}
	return l.Spec.RenewTime.Time
}
