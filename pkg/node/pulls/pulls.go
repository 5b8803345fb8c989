// Package pulls tells pods how far the pulls of their images have come, by events:
//
//	PullProgress  Pulling image "registry.example.org/app:1": 45 % of 120 MB
//
// containerd pulls an image for nobody in particular, several pods may wait for
// one. So it is told to all pods of this node with a container that waits for an
// image of that name. Pulls that end within [Every] are not told of, and an idle
// node costs nothing.
package pulls

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

const (
	// Every is the time between two words about one pull.
	Every = 10 * time.Second
	// Reason is the events'.
	Reason = "PullProgress"
	// tellTimeout bounds the wait for the API server, which a pull doesn't wait for.
	tellTimeout = 5 * time.Second
	component   = "knarr"
)

// Config is what a Teller is told.
type Config struct {
	// Client is called when there is something to tell.
	Client func() (kubernetes.Interface, error)
	// Node is this one's name.
	Node string
	// Now defaults to time.Now.
	Now func() time.Time
	// Log defaults to slog.Default.
	Log *slog.Logger
}

// Teller tells pods of pulls.
type Teller struct{ cfg Config }

// New returns one. Nothing happens until there is a pull.
func New(cfg Config) *Teller {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Teller{cfg: cfg}
}

// Pulling is called when the pull of an image, by its full name, begins. What it
// returns is called with the bytes that have come and those that are known to come,
// as often as one likes, until ctx ends.
func (t *Teller) Pulling(ctx context.Context, image string) func(done, total int64) {
	p := &pull{teller: t, image: image, told: t.cfg.Now(), events: map[types.UID]event{}}
	return func(done, total int64) { p.note(ctx, done, total) }
}

// pull is one of an image.
type pull struct {
	teller *Teller
	image  string

	mu   sync.Mutex
	told time.Time // last, or the beginning
	busy bool      // telling

	events map[types.UID]event // by pod; the one who tells has it
}

// event is what a pod has been told so far.
type event struct {
	name  string
	count int32
}

func (p *pull) note(ctx context.Context, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.teller.cfg.Now()
	if p.busy || total <= 0 || done >= total || now.Sub(p.told) < Every {
		return
	}
	p.busy, p.told = true, now
	go func() {
		ctx, cancel := context.WithTimeout(ctx, tellTimeout)
		defer cancel()
		if err := p.tell(ctx, done, total); err != nil && ctx.Err() == nil {
			p.teller.cfg.Log.Debug("tell pods how far the pull of their image is", "image", p.image, "err", err)
		}
		p.mu.Lock()
		p.busy = false
		p.mu.Unlock()
	}()
}

func (p *pull) tell(ctx context.Context, done, total int64) error {
	client, err := p.teller.cfg.Client()
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	node := p.teller.cfg.Node
	pods, err := client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		ResourceVersion: "0",
		FieldSelector:   fields.OneTermEqualSelector("spec.nodeName", node).String(),
	})
	if err != nil {
		return fmt.Errorf("list pods of this node: %w", err)
	}
	message := fmt.Sprintf("Pulling image %q: %d %% of %s", p.image, 100*done/total, size(total))
	for _, pod := range pods.Items {
		field := waitsFor(&pod, p.image)
		if pod.Spec.NodeName != node || field == "" {
			continue
		}
		if err := p.tellPod(ctx, client, &pod, field, message); err != nil {
			return fmt.Errorf("pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
	}
	return nil
}

// tellPod writes an event, or what is new into the one that is there.
func (p *pull) tellPod(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod, field, message string) error {
	now := metav1.NewTime(p.teller.cfg.Now())
	events := client.CoreV1().Events(pod.Namespace)
	if e, ok := p.events[pod.UID]; ok {
		e.count++
		patch, err := json.Marshal(map[string]any{"message": message, "lastTimestamp": now, "count": e.count})
		if err != nil {
			return err
		}
		if _, err := events.Patch(ctx, e.name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("change event: %w", err)
		}
		p.events[pod.UID] = e
		return nil
	}
	made, err := events.Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			// As recorders of events name theirs.
			Name: fmt.Sprintf("%s.%x", pod.Name, now.UnixNano()), Namespace: pod.Namespace,
		},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, FieldPath: field,
		},
		Type: corev1.EventTypeNormal, Reason: Reason, Message: message,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
		Source: corev1.EventSource{Component: component, Host: p.teller.cfg.Node}, ReportingController: component, ReportingInstance: p.teller.cfg.Node,
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	p.events[pod.UID] = event{made.Name, 1}
	return nil
}

// waitsFor tells which container of a pod waits for an image, as events name
// containers; empty if none does.
func waitsFor(pod *corev1.Pod, image string) string {
	for _, kind := range []struct {
		field      string
		containers []corev1.Container
		statuses   []corev1.ContainerStatus
	}{
		{"spec.initContainers", pod.Spec.InitContainers, pod.Status.InitContainerStatuses},
		{"spec.containers", pod.Spec.Containers, pod.Status.ContainerStatuses},
	} {
		for _, c := range kind.containers {
			full, err := reference.ParseDockerRef(c.Image)
			if err != nil || full.String() != image {
				continue
			}
			i := slices.IndexFunc(kind.statuses, func(s corev1.ContainerStatus) bool { return s.Name == c.Name })
			if i < 0 || kind.statuses[i].State.Running == nil && kind.statuses[i].State.Terminated == nil {
				return fmt.Sprintf("%s{%s}", kind.field, c.Name)
			}
		}
	}
	return ""
}

// size writes bytes in the unit that registries use.
func size(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%d MB", (n+5e5)/1e6)
	}
	return fmt.Sprintf("%d kB", (n+500)/1000)
}
