package kubelet

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// rememberFor bounds for how long a list counts of which nothing has been told
	// since: should a change ever go untold, the kubelet learns of it by then.
	rememberFor = 10 * time.Second
	// listenAgain is the pause before the runtime is asked to tell of changes again.
	listenAgain = time.Second
)

// remembering is a container runtime that is asked for its pods and containers when
// there may be others. The kubelet lists them all once a second and again every
// two, for ever, which is a third of what a node without work costs.
//
// What the runtime tells (GetContainerEvents of the CRI) and what the kubelet has it
// do ends what is remembered. A runtime that does not tell is asked each time.
type remembering struct {
	internalapi.RuntimeService
	now func() time.Time

	mu sync.Mutex
	// tells is set while the runtime tells of changes; changes counts them.
	tells      bool
	changes    uint64
	sandboxes  memory[*runtimeapi.PodSandbox]
	containers memory[*runtimeapi.Container]
}

// memory is a list as of a moment; of the zero one, none.
type memory[T any] struct {
	all []T
	at  time.Time
}

func remember(rs internalapi.RuntimeService) *remembering {
	return &remembering{RuntimeService: rs, now: time.Now}
}

// listen hears what the runtime tells until ctx ends, or at once if it never will.
func (r *remembering) listen(ctx context.Context) {
	events := make(chan *runtimeapi.ContainerEventResponse)
	var heard sync.WaitGroup
	defer heard.Wait()
	defer close(events)
	heard.Go(func() {
		for range events {
			r.forget()
		}
	})
	for ctx.Err() == nil {
		err := r.RuntimeService.GetContainerEvents(ctx, events, func(runtimeapi.RuntimeService_GetContainerEventsClient) { r.hear(true) })
		r.hear(false)
		if status.Code(err) == codes.Unimplemented {
			return
		}
		select {
		case <-time.After(listenAgain):
		case <-ctx.Done():
		}
	}
}

func (r *remembering) hear(tells bool) {
	r.mu.Lock()
	r.tells = tells
	r.mu.Unlock()
	r.forget()
}

func (r *remembering) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes++
	r.sandboxes, r.containers = memory[*runtimeapi.PodSandbox]{}, memory[*runtimeapi.Container]{}
}

// recall returns what m remembers, or asks, and remembers that if nothing has
// changed meanwhile.
func recall[T any](r *remembering, m *memory[T], ask func() ([]T, error)) ([]T, error) {
	r.mu.Lock()
	began, changes := r.now(), r.changes
	if !m.at.IsZero() && began.Sub(m.at) < rememberFor {
		defer r.mu.Unlock()
		return slices.Clone(m.all), nil // whose it is may sort it
	}
	r.mu.Unlock()
	all, err := ask()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tells && r.changes == changes {
		*m = memory[T]{slices.Clone(all), began}
	}
	return all, nil
}

// ListPodSandbox implements internalapi.RuntimeService.
func (r *remembering) ListPodSandbox(ctx context.Context, f *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	if f.GetId() != "" || len(f.GetLabelSelector()) > 0 {
		return r.RuntimeService.ListPodSandbox(ctx, f)
	}
	all, err := recall(r, &r.sandboxes, func() ([]*runtimeapi.PodSandbox, error) { return r.RuntimeService.ListPodSandbox(ctx, nil) })
	if s := f.GetState(); s != nil {
		all = slices.DeleteFunc(all, func(p *runtimeapi.PodSandbox) bool { return p.GetState() != s.GetState() })
	}
	return all, err
}

// ListContainers implements internalapi.RuntimeService.
func (r *remembering) ListContainers(ctx context.Context, f *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	if f.GetId() != "" || f.GetPodSandboxId() != "" || len(f.GetLabelSelector()) > 0 {
		return r.RuntimeService.ListContainers(ctx, f)
	}
	all, err := recall(r, &r.containers, func() ([]*runtimeapi.Container, error) { return r.RuntimeService.ListContainers(ctx, nil) })
	if s := f.GetState(); s != nil {
		all = slices.DeleteFunc(all, func(c *runtimeapi.Container) bool { return c.GetState() != s.GetState() })
	}
	return all, err
}

// RunPodSandbox implements internalapi.RuntimeService.
func (r *remembering) RunPodSandbox(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	defer r.forget()
	return r.RuntimeService.RunPodSandbox(ctx, config, handler)
}

// StopPodSandbox implements internalapi.RuntimeService.
func (r *remembering) StopPodSandbox(ctx context.Context, id string) error {
	defer r.forget()
	return r.RuntimeService.StopPodSandbox(ctx, id)
}

// RemovePodSandbox implements internalapi.RuntimeService.
func (r *remembering) RemovePodSandbox(ctx context.Context, id string) error {
	defer r.forget()
	return r.RuntimeService.RemovePodSandbox(ctx, id)
}

// CreateContainer implements internalapi.RuntimeService.
func (r *remembering) CreateContainer(ctx context.Context, sandbox string, config *runtimeapi.ContainerConfig, sandboxConfig *runtimeapi.PodSandboxConfig) (string, error) {
	defer r.forget()
	return r.RuntimeService.CreateContainer(ctx, sandbox, config, sandboxConfig)
}

// StartContainer implements internalapi.RuntimeService.
func (r *remembering) StartContainer(ctx context.Context, id string) error {
	defer r.forget()
	return r.RuntimeService.StartContainer(ctx, id)
}

// StopContainer implements internalapi.RuntimeService.
func (r *remembering) StopContainer(ctx context.Context, id string, timeout int64) error {
	defer r.forget()
	return r.RuntimeService.StopContainer(ctx, id, timeout)
}

// RemoveContainer implements internalapi.RuntimeService.
func (r *remembering) RemoveContainer(ctx context.Context, id string) error {
	defer r.forget()
	return r.RuntimeService.RemoveContainer(ctx, id)
}
