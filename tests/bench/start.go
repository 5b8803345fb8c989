package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

const (
	podName = "first"
	// probeEvery is the pause between two attempts, and so the precision of
	// what can only be found out by trying. A shorter one would slow down
	// what is measured.
	probeEvery = 10 * time.Millisecond
)

// milestones are times since exec.
type milestones struct {
	api, node, accepted, running time.Duration
}

func (m milestones) add(s *system, kind string) {
	s.add(kind+".api", m.api.Seconds())
	s.add(kind+".node", m.node.Seconds())
	s.add(kind+".accepted", m.accepted.Seconds())
	s.add(kind+".running", m.running.Seconds())
}

func (m milestones) String() string {
	return fmt.Sprintf("API %.3f s, node %.3f s, pod accepted %.3f s, running %.3f s",
		m.api.Seconds(), m.node.Seconds(), m.accepted.Seconds(), m.running.Seconds())
}

// timeStart starts the subject and waits until the first pod runs.
func (n *node) timeStart(ctx context.Context) (milestones, error) {
	var m milestones
	if err := n.start(ctx); err != nil {
		return m, err
	}
	err := n.while(ctx, "start", func(ctx context.Context) error {
		if err := n.awaitPort(ctx); err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return n.note(&m.api, n.awaitReadyz(ctx)) })
		g.Go(func() error {
			client, hangUp, err := n.awaitClient(ctx)
			if err != nil {
				return err
			}
			defer hangUp()
			if err := n.note(&m.accepted, createPod(ctx, client, kube.Pod(podName))); err != nil {
				return err
			}
			return n.note(&m.running, awaitPod(ctx, client, podName))
		})
		g.Go(func() error {
			client, hangUp, err := n.awaitClient(ctx)
			if err != nil {
				return err
			}
			defer hangUp()
			return n.note(&m.node, awaitNode(ctx, client, ""))
		})
		return g.Wait()
	})
	return m, err
}

// timeRestart ends the subject, starts it anew and waits for its API.
func (n *node) timeRestart(ctx context.Context) (api time.Duration, err error) {
	if err := n.stop(); err != nil {
		return 0, err
	}
	if err := n.start(ctx); err != nil {
		return 0, err
	}
	err = n.while(ctx, "restart", func(ctx context.Context) error {
		if err := n.awaitPort(ctx); err != nil {
			return err
		}
		return n.note(&api, n.awaitReadyz(ctx))
	})
	return api, err
}

// note writes the time down unless what it is the time of failed.
func (n *node) note(d *time.Duration, err error) error {
	*d = time.Since(n.started)
	return err
}

// try calls fn until it tells that it is done.
func try(ctx context.Context, fn func() (done bool, err error)) error {
	for {
		done, err := fn()
		if done {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(probeEvery):
		}
	}
}

// awaitPort waits until something listens where the API will be.
func (n *node) awaitPort(ctx context.Context) error {
	return try(ctx, func() (bool, error) {
		conn, err := n.host.DialContext(ctx, "tcp", "127.0.0.1:6443")
		if err != nil {
			return false, err
		}
		return true, conn.Close()
	})
}

// awaitReadyz asks anonymously, as a load balancer would: the API may be ready
// before there is a file that tells the administrator how to reach it.
func (n *node) awaitReadyz(ctx context.Context) error {
	transport := &http.Transport{
		DialContext:       n.host.DialContext,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // nothing secret is said or believed
		ForceAttemptHTTP2: true,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	return try(ctx, func() (bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://127.0.0.1:6443/readyz", nil)
		if err != nil {
			return true, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return false, err
		}
		resp.Body.Close()
		switch resp.StatusCode {
		case http.StatusOK:
			return true, nil
		case http.StatusUnauthorized:
			return true, errors.New("/readyz answers 401: anonymous requests must be allowed for this measurement")
		}
		return false, fmt.Errorf("/readyz answers %s", resp.Status)
	})
}

// awaitClient waits for the administrator's kubeconfig.
func (n *node) awaitClient(ctx context.Context) (client *kubernetes.Clientset, hangUp func(), err error) {
	err = try(ctx, func() (done bool, err error) {
		client, hangUp, err = n.client()
		return err == nil, err
	})
	return client, hangUp, err
}

// awaitNode waits for the node of that name, or with none for any.
func awaitNode(ctx context.Context, client kubernetes.Interface, name string) error {
	return await(ctx, "node Ready", func() (watch.Interface, error) {
		return client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{})
	}, func(object any) (bool, error) {
		node, ok := object.(*corev1.Node)
		if !ok || name != "" && node.Name != name {
			return false, nil
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				return true, nil
			}
		}
		return false, nil
	})
}

func createPod(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod) error {
	return try(ctx, func() (bool, error) {
		_, err := client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
		if err == nil || apierrors.IsAlreadyExists(err) {
			return true, nil
		}
		return false, fmt.Errorf("create pod: %w", err)
	})
}

func awaitPod(ctx context.Context, client kubernetes.Interface, name string) error {
	return await(ctx, "pod "+name+" Running", func() (watch.Interface, error) {
		return client.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(),
		})
	}, func(object any) (bool, error) {
		pod, ok := object.(*corev1.Pod)
		if !ok {
			return false, nil
		}
		switch pod.Status.Phase {
		case corev1.PodRunning:
			return true, nil
		case corev1.PodFailed, corev1.PodSucceeded:
			return true, fmt.Errorf("pod is %s: %s", pod.Status.Phase, pod.Status.Message)
		}
		return false, nil
	})
}

// await watches until an object shows what is waited for. A watch without a
// version begins with what there is.
func await(ctx context.Context, what string, open func() (watch.Interface, error), seen func(object any) (bool, error)) error {
	err := try(ctx, func() (bool, error) {
		w, err := open()
		if err != nil {
			return false, err
		}
		defer w.Stop()
		for event := range w.ResultChan() {
			if done, err := seen(event.Object); done {
				return true, err
			}
		}
		return false, errors.New("watch ended")
	})
	if err != nil {
		return fmt.Errorf("wait for %s: %w", what, err)
	}
	return nil
}

// podState tells whether a pod's containers are those of before.
func (n *node) podState(ctx context.Context) (string, error) {
	client, hangUp, err := n.client()
	if err != nil {
		return "", err
	}
	defer hangUp()
	pod, err := client.CoreV1().Pods("default").Get(ctx, podName, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	state := string(pod.Status.Phase)
	for _, s := range pod.Status.ContainerStatuses {
		state += fmt.Sprintf(" %s restarted %d times", s.ContainerID, s.RestartCount)
	}
	return state, nil
}
