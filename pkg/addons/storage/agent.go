package storage

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/part"
)

// AgentConfig is what an Agent is told.
type AgentConfig struct {
	// Client is called once the components of Needs are ready. It must be allowed
	// what Objects allow, and to annotate its own Node.
	Client func() (kubernetes.Interface, error)
	Needs  []string
	// Node is this machine's name in the cluster.
	Node string
	// Log defaults to slog.Default.
	Log *slog.Logger
}

// Agent is the component that makes and removes volumes on a node that is not in
// the controller's process. It does so only in folders that the ConfigMap gives
// the node, whatever it is asked.
type Agent struct {
	cfg    AgentConfig
	client kubernetes.Interface
	own    *Folders

	mu sync.Mutex
	// begun is the job of each volume that was begun last.
	begun map[string]string
}

var _ component.Component = (*Agent)(nil)

// NewAgent returns the component; nothing happens until Run.
func NewAgent(cfg AgentConfig) *Agent {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Agent{cfg: cfg}
}

// Name implements component.Component.
func (a *Agent) Name() string { return "local-storage-node" }

// Needs implements component.Component.
func (a *Agent) Needs() []string { return a.cfg.Needs }

// Run implements component.Component. It is ready at once. What is being removed
// when ctx ends is waited for.
func (a *Agent) Run(ctx context.Context, ready chan<- struct{}) error {
	client, err := a.cfg.Client()
	if err != nil {
		return fmt.Errorf("create client of the storage provisioner: %w", err)
	}
	a.client, a.begun = client, map[string]string{}
	a.own = &Folders{Paths: func(ctx context.Context) ([]string, error) { return readPaths(ctx, client, a.cfg.Node, "") }}
	var tasks sync.WaitGroup
	defer tasks.Wait()
	in := coreinformers.NewFilteredConfigMapInformer(client, metav1.NamespaceSystem, 0, nil, func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, jobsConfigMap).String()
	})
	_ = in.SetTransform(part.Trim) // fails only once it runs
	see := func(obj any) {
		if m, ok := obj.(*corev1.ConfigMap); ok && m.Name == jobsConfigMap {
			a.see(ctx, &tasks, m.Data)
		}
	}
	if _, err := in.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: see, UpdateFunc: func(_, now any) { see(now) }}); err != nil {
		return fmt.Errorf("watch what this node is asked to store: %w", err)
	}
	close(ready)
	in.RunWithContext(ctx)
	return nil
}

// see begins the jobs that are new.
func (a *Agent) see(ctx context.Context, tasks *sync.WaitGroup, jobs map[string]string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for volume := range a.begun {
		if jobs[volume] == "" {
			delete(a.begun, volume)
		}
	}
	for volume, text := range jobs {
		var j job
		if json.Unmarshal([]byte(text), &j) != nil || j.Node != a.cfg.Node || j.Volume != volume || a.begun[volume] == j.ID {
			continue
		}
		a.begun[volume] = j.ID
		tasks.Go(func() { a.answer(ctx, j, a.own.do(ctx, j)) })
	}
}

// current tells whether a job is still wanted.
func (a *Agent) current(j job) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.begun[j.Volume] == j.ID
}

// answer writes what came of a job, for as long as someone may want to know.
func (a *Agent) answer(ctx context.Context, j job, o outcome) {
	text, err := json.Marshal(o)
	if err != nil {
		return // it is made of texts
	}
	change, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{answerKey(j.Volume): string(text)}}})
	if err != nil {
		return
	}
	for pause := 100 * time.Millisecond; a.current(j); pause = min(2*pause, 10*time.Second) {
		_, err := a.client.CoreV1().Nodes().Patch(ctx, a.cfg.Node, types.MergePatchType, change, metav1.PatchOptions{FieldManager: "knarr"})
		if err == nil {
			return
		}
		a.cfg.Log.Debug("answer what came of a volume; it is tried again", "volume", j.Volume, "in", pause, "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}
