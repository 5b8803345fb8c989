package throwaway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	watchtools "k8s.io/client-go/tools/watch"
)

// DemoOptions say what Demo shows.
type DemoOptions struct {
	// Exe is the Knarr executable.
	Exe string
	// Image is an archive with the image knarr.dev/test:1.
	Image string
	// Once ends when the workload has answered, in place of waiting for ctx.
	Once bool
	Out  io.Writer
}

// demoDeadline bounds how long the workload may take on a very slow machine.
const demoDeadline = 2 * time.Minute

// Demo starts a server in a lab host, runs a small workload on it and tells
// what happened when. It leaves nothing behind. It fails if the workload has
// not answered.
func Demo(ctx context.Context, o DemoOptions) (err error) {
	l, h, err := NewHost(ctx, fmt.Sprintf("demo-%d", os.Getpid()), o.Exe, []string{o.Image})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()

	logPath := filepath.Join(os.TempDir(), l.Name()+".log")
	log, err := os.Create(logPath)
	if err != nil {
		return fmt.Errorf("create log of the server: %w", err)
	}
	defer func() {
		_ = log.Close() // only read by people
		if err == nil {
			_ = os.Remove(logPath)
		}
	}()
	d := &demo{o: o, host: h}
	d.say("starting Knarr in a lab host: own network, processes, mounts, cgroups")
	if d.server, err = h.Start(ServerOptions{Output: log}); err != nil {
		return fmt.Errorf("start server: %w", err)
	}
	defer d.server.Close()
	d.start = time.Now()

	work, cancel := context.WithTimeout(ctx, demoDeadline)
	defer cancel()
	worked := make(chan error, 1)
	go func() { worked <- d.run(work) }()
	select {
	case err = <-worked:
	case <-d.server.Done():
		return fmt.Errorf("server ended (its log is %s): %w", logPath, d.server.ended())
	}
	if err == nil && !o.Once {
		d.say("use it from another terminal, until you press Ctrl-C here:")
		fmt.Fprintf(o.Out, "\n    %s\n\n", h.Shell("kubectl get pods -o wide"))
		select {
		case <-ctx.Done():
		case <-d.server.Done():
			return fmt.Errorf("server ended (its log is %s): %w", logPath, d.server.ended())
		}
	}
	if ctx.Err() != nil {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("%w (the server's log is %s)", err, logPath)
	}
	return errors.Join(err, stop(d.server))
}

// stop ends the server as systemd would.
func stop(s *Server) error {
	err := s.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	if err := errors.Join(err, s.Wait()); err != nil {
		return fmt.Errorf("stop server: %w", err)
	}
	return nil
}

type demo struct {
	o      DemoOptions
	host   *Host
	server *Server
	start  time.Time
}

func (d *demo) say(format string, args ...any) {
	at := 0.0
	if !d.start.IsZero() {
		at = time.Since(d.start).Seconds()
	}
	fmt.Fprintf(d.o.Out, "%7.2f s  %s\n", at, fmt.Sprintf(format, args...))
}

func (d *demo) run(ctx context.Context) error {
	if err := d.server.Await(ctx, "READY=1", 1); err != nil {
		return err
	}
	d.say("ready: node, network and DNS; no image was pulled")
	client, err := d.client()
	if err != nil {
		return err
	}
	if err := create(ctx, client); err != nil {
		return err
	}
	d.say("created Deployment hello (2 replicas), Service hello, and a client")
	pods := client.CoreV1().Pods("default")
	running := map[string]bool{}
	err = until(ctx, client, "app=hello", func(p *corev1.Pod) bool {
		if p.Status.Phase == corev1.PodRunning && !running[p.Name] {
			running[p.Name] = true
			d.say("pod %s runs at %s", p.Name, p.Status.PodIP)
		}
		return len(running) == 2
	})
	if err != nil {
		return fmt.Errorf("wait for two pods of the Deployment: %w", err)
	}
	err = until(ctx, client, "app=client", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
	if err != nil {
		return fmt.Errorf("wait for the client: %w", err)
	}
	answer, err := pods.GetLogs("client", &corev1.PodLogOptions{}).DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("read the client's log: %w", err)
	}
	text := strings.TrimSpace(string(answer))
	if !strings.Contains(text, "hello-") {
		return fmt.Errorf("the client at http://hello got %q, not an answer of a pod of the Deployment", text)
	}
	d.say("the client asked http://hello and was answered by %s", text)
	return nil
}

func (d *demo) client() (kubernetes.Interface, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", d.host.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	cfg.Dial = d.host.DialContext
	return kubernetes.NewForConfig(cfg)
}

func create(ctx context.Context, client kubernetes.Interface) error {
	labels := map[string]string{"app": "hello"}
	replicas, grace := int32(2), int64(0)
	_, err := client.AppsV1().Deployments("default").Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "hello"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{
					Name: "hello", Image: "knarr.dev/test:1",
					Command: []string{"testbox", "serve", "--port", "8080", "--hostname"},
				}}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create Deployment: %w", err)
	}
	_, err = client.CoreV1().Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "hello"},
		Spec:       corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create Service: %w", err)
	}
	_, err = client.CoreV1().Pods("default").Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "client", Labels: map[string]string{"app": "client"}},
		Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{
			Name: "client", Image: "knarr.dev/test:1",
			Command: []string{"testbox", "get", "--retry", "60s", "http://hello"},
		}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	return nil
}

// until watches the pods that a selector chooses.
func until(ctx context.Context, client kubernetes.Interface, selector string, done func(*corev1.Pod) bool) error {
	pods := client.CoreV1().Pods("default")
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector, o.FieldSelector = selector, fields.Everything().String()
			return pods.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = selector
			return pods.Watch(ctx, o)
		},
	}
	_, err := watchtools.UntilWithSync(ctx, lw, &corev1.Pod{}, nil, func(e watch.Event) (bool, error) {
		p, ok := e.Object.(*corev1.Pod)
		return ok && done(p), nil
	})
	return err
}
