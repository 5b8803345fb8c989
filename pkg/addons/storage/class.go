package storage

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

const (
	isDefault = "storageclass.kubernetes.io/is-default-class"
	// steppedAside on our class remembers that it was the default until somebody
	// else's became it.
	steppedAside = group + "stepped-aside"
)

// defaults makes our class, and keeps it the default one for as long as there is
// no other. What a user says about it stands.
type defaults struct {
	client  kubernetes.Interface
	classes cache.SharedIndexInformer
	log     *slog.Logger
	changed chan struct{}
}

var _ cache.ResourceEventHandler = (*defaults)(nil)

func newDefaults(client kubernetes.Interface, classes cache.SharedIndexInformer, log *slog.Logger) *defaults {
	return &defaults{client: client, classes: classes, log: log, changed: make(chan struct{}, 1)}
}

// OnAdd implements cache.ResourceEventHandler.
func (d *defaults) OnAdd(any, bool) { d.note() }

// OnUpdate implements cache.ResourceEventHandler.
func (d *defaults) OnUpdate(any, any) { d.note() }

// OnDelete implements cache.ResourceEventHandler.
func (d *defaults) OnDelete(any) { d.note() }

func (d *defaults) note() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// look finds our class, if there is one, and the name of another's that is the
// default.
func (d *defaults) look() (ours *storagev1.StorageClass, other string) {
	for _, obj := range d.classes.GetStore().List() {
		c, ok := obj.(*storagev1.StorageClass)
		switch {
		case !ok:
		case c.Name == ClassName:
			ours = c
		case c.Annotations[isDefault] == "true":
			other = c.Name
		}
	}
	return ours, other
}

// create makes the class unless there is one of its name, whoever made it.
func (d *defaults) create(ctx context.Context) error {
	ours, other := d.look()
	if ours != nil {
		return nil
	}
	c := &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: ClassName, Annotations: map[string]string{isDefault: "true"}},
		Provisioner:       Provisioner,
		ReclaimPolicy:     new(corev1.PersistentVolumeReclaimDelete),
		VolumeBindingMode: new(storagev1.VolumeBindingWaitForFirstConsumer),
	}
	if other != "" {
		c.Annotations = map[string]string{isDefault: "false", steppedAside: "true"}
	}
	if _, err := d.client.StorageV1().StorageClasses().Create(ctx, c, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create StorageClass %s: %w", ClassName, err)
	}
	return nil
}

// run steps aside and back until ctx ends.
func (d *defaults) run(ctx context.Context) {
	for pause := time.Second; ; {
		select {
		case <-ctx.Done():
			return
		case <-d.changed:
		}
		if err := d.settle(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("make StorageClass "+ClassName+" the default one, or another's; it is tried again", "in", pause, "err", err)
			time.AfterFunc(pause, d.note)
			pause = min(2*pause, time.Minute)
			continue
		}
		pause = time.Second
	}
}

func (d *defaults) settle(ctx context.Context) error {
	ours, other := d.look()
	if ours == nil || ours.Provisioner != Provisioner {
		return nil
	}
	var change map[string]any
	switch {
	case other != "" && ours.Annotations[isDefault] == "true":
		d.log.Info("another StorageClass is the default one now", "class", other)
		change = map[string]any{isDefault: "false", steppedAside: "true"}
	case other == "" && ours.Annotations[isDefault] != "true" && ours.Annotations[steppedAside] != "":
		change = map[string]any{isDefault: "true", steppedAside: nil}
	default:
		return nil
	}
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": change}})
	if err != nil {
		return err
	}
	_, err = d.client.StorageV1().StorageClasses().Patch(ctx, ClassName, types.MergePatchType, data, metav1.PatchOptions{FieldManager: "knarr"})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("annotate StorageClass %s: %w", ClassName, err)
	}
	return nil
}
