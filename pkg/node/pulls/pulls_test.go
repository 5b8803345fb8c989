package pulls

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
)

func pod(name, node, image string, state corev1.ContainerState) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: image}}},
		Status:     corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "c", State: state}}},
	}
}

func TestPodsThatWaitForAnImageAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		waiting := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}
		running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
		client := fake.NewClientset(
			pod("first", "here", "app:1", waiting), pod("second", "here", "docker.io/library/app:1", waiting),
			pod("elsewhere", "there", "app:1", waiting), pod("running", "here", "app:1", running), pod("other", "here", "app:2", waiting),
		)
		var asked atomic.Int32
		teller := New(Config{Node: "here", Client: func() (kubernetes.Interface, error) { asked.Add(1); return client, nil }})
		note := teller.Pulling(t.Context(), "docker.io/library/app:1")
		events := func() map[string]corev1.Event {
			t.Helper()
			synctest.Wait()
			list, err := client.CoreV1().Events("default").List(context.Background(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			told := map[string]corev1.Event{}
			for _, e := range list.Items {
				if _, twice := told[e.InvolvedObject.Name]; twice {
					t.Errorf("%s has two events", e.InvolvedObject.Name)
				}
				told[e.InvolvedObject.Name] = e
			}
			return told
		}

		note(1e6, 120e6)
		time.Sleep(Every - time.Second)
		note(2e6, 120e6)
		if told := events(); len(told) != 0 || asked.Load() != 0 {
			t.Errorf("too early: %v", told)
		}
		time.Sleep(time.Second)
		for range 10 {
			note(54e6, 120e6)
		}
		told := events()
		const want = `Pulling image "docker.io/library/app:1": 45 % of 120 MB`
		if len(told) != 2 || told["first"].Message != want || told["second"].Message != want || asked.Load() != 1 {
			t.Errorf("told %v, asked %d times", told, asked.Load())
		}
		if e := told["first"]; e.Reason != Reason || e.InvolvedObject.FieldPath != "spec.containers{c}" || e.Count != 1 {
			t.Errorf("the event is %+v", e)
		}
		time.Sleep(Every)
		note(60e6, 120e6)
		if e := events()["first"]; e.Message != `Pulling image "docker.io/library/app:1": 50 % of 120 MB` || e.Count != 2 {
			t.Errorf("the event became %+v", e)
		}
		time.Sleep(Every)
		note(120e6, 120e6)
		if e := events()["first"]; e.Count != 2 {
			t.Errorf("what has come is told: %+v", e)
		}
	})
}

func TestSizesAreWrittenShortly(t *testing.T) {
	for n, want := range map[int64]string{400: "0 kB", 1500: "2 kB", 2e6: "2 MB", 1.25e9: "1.2 GB"} {
		if got := size(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}
