// Package runtimes makes a RuntimeClass for each container runtime that a node of
// the cluster has beside runc, so that a pod gets one by naming it.
//
// A kubelet tells in its Node's status which runtimes its containerd knows. From
// that a server labels the node, and makes the class with a selector for the
// label: a pod is never scheduled to a node that cannot run it. A class that is
// not of our making is left alone.
package runtimes

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/ociruntime"
)

const (
	// Label and a class' name are the label of nodes that have the runtime, with
	// the value true.
	Label = "runtime.knarr.dev/"
	// madeBy and knarr mark a class of ours.
	madeBy = "app.kubernetes.io/managed-by"
	knarr  = "knarr"
)

// Config is what the component is told.
type Config struct {
	// Client is called on each start.
	Client func() (kubernetes.Interface, error)
	// Needs are the components to start after.
	Needs []string
	Log   *slog.Logger
}

// Runtimes is the component.
type Runtimes struct {
	cfg Config
	// handled are the classes that the last look was about; only a change of them
	// costs a request.
	handled []string
}

var _ component.Component = (*Runtimes)(nil)

// New returns the component; nothing happens until Run.
func New(cfg Config) *Runtimes { return &Runtimes{cfg: cfg} }

// Name implements component.Component.
func (r *Runtimes) Name() string { return "runtimes" }

// Needs implements component.Component.
func (r *Runtimes) Needs() []string { return r.cfg.Needs }

// Run implements component.Component. It is ready at once, and writes when nodes
// come, go or change.
func (r *Runtimes) Run(ctx context.Context, ready chan<- struct{}) error {
	client, err := r.cfg.Client()
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	r.handled = nil
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(trim))
	nodes := f.Core().V1().Nodes().Informer()
	changed := make(chan struct{}, 1)
	tell := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	_, err = nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { tell() }, DeleteFunc: func(any) { tell() },
		UpdateFunc: func(_, now any) {
			if n, ok := now.(*corev1.Node); ok && patchOf(n) != nil {
				tell()
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	f.Start(ctx.Done())
	defer f.Shutdown()
	close(ready)
	select {
	case <-nodes.HasSyncedChecker().Done():
	case <-ctx.Done():
		return nil
	}
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
		var all []*corev1.Node
		for _, o := range nodes.GetStore().List() {
			if n, ok := o.(*corev1.Node); ok {
				all = append(all, n)
			}
		}
		if err := r.settle(ctx, client, all); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// settle labels the nodes and makes the classes.
func (r *Runtimes) settle(ctx context.Context, client kubernetes.Interface, nodes []*corev1.Node) error {
	have := map[string]bool{}
	for _, n := range nodes {
		for _, rt := range runtimesOf(n) {
			have[rt.Class] = true
		}
		patch := patchOf(n)
		if patch == nil {
			continue
		}
		_, err := client.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: knarr})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("label node %s by its runtimes: %w", n.Name, err)
		}
	}
	var names []string
	for class := range have {
		names = append(names, class)
	}
	slices.Sort(names)
	if r.handled != nil && slices.Equal(names, r.handled) {
		return nil
	}
	if err := r.classes(ctx, client, have); err != nil {
		return err
	}
	r.handled = append([]string{}, names...)
	return nil
}

// classes makes those that are missing, and removes ours that no node has.
func (r *Runtimes) classes(ctx context.Context, client kubernetes.Interface, have map[string]bool) error {
	api := client.NodeV1().RuntimeClasses()
	there, err := api.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list RuntimeClasses: %w", err)
	}
	ours := map[string]bool{}
	taken := map[string]bool{}
	for _, c := range there.Items {
		taken[c.Name] = true
		ours[c.Name] = c.Labels[madeBy] == knarr
	}
	for _, rt := range ociruntime.Known() {
		switch {
		case have[rt.Class] && !taken[rt.Class]:
			_, err = api.Create(ctx, classOf(rt), metav1.CreateOptions{FieldManager: knarr})
			if apierrors.IsAlreadyExists(err) {
				err = nil // the user's own, this moment
			} else if err == nil {
				r.cfg.Log.Info("RuntimeClass made for a runtime that nodes have", "class", rt.Class)
			}
		case !have[rt.Class] && ours[rt.Class]:
			if err = api.Delete(ctx, rt.Class, metav1.DeleteOptions{}); apierrors.IsNotFound(err) {
				err = nil
			} else if err == nil {
				r.cfg.Log.Info("RuntimeClass removed, since no node has the runtime any more", "class", rt.Class)
			}
		}
		if err != nil {
			return fmt.Errorf("RuntimeClass %s: %w", rt.Class, err)
		}
	}
	return nil
}

func classOf(rt ociruntime.Runtime) *nodev1.RuntimeClass {
	return &nodev1.RuntimeClass{
		ObjectMeta: metav1.ObjectMeta{Name: rt.Class, Labels: map[string]string{madeBy: knarr}},
		Handler:    rt.Handler,
		Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{Label + rt.Class: "true"}},
	}
}

// runtimesOf are those that a node's kubelet tells of.
func runtimesOf(n *corev1.Node) []ociruntime.Runtime {
	return slices.DeleteFunc(ociruntime.Known(), func(rt ociruntime.Runtime) bool {
		return !slices.ContainsFunc(n.Status.RuntimeHandlers, func(h corev1.NodeRuntimeHandler) bool { return h.Name == rt.Handler })
	})
}

// patchOf makes the node's labels those of its runtimes; nil if they are.
func patchOf(n *corev1.Node) []byte {
	if len(n.Status.RuntimeHandlers) == 0 {
		return nil // the kubelet has not told yet
	}
	labels := map[string]any{}
	for label := range n.Labels {
		if strings.HasPrefix(label, Label) {
			labels[label] = nil
		}
	}
	for _, rt := range runtimesOf(n) {
		label := Label + rt.Class
		if n.Labels[label] == "true" {
			delete(labels, label)
			continue
		}
		labels[label] = "true"
	}
	if len(labels) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
	if err != nil {
		return nil // a map of strings is always written
	}
	return patch
}

// trim keeps of a Node what is read here.
func trim(o any) (any, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	small := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Labels: map[string]string{}}}
	for k, v := range n.Labels {
		if strings.HasPrefix(k, Label) {
			small.Labels[k] = v
		}
	}
	small.Status.RuntimeHandlers = n.Status.RuntimeHandlers
	return small, nil
}
