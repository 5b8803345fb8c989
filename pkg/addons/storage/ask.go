package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
)

// A node is asked by a ConfigMap that all nodes read and only administrators
// write, under the volume's name. It answers by an annotation of its own Node,
// which a node may write.
const (
	jobsConfigMap = "knarr-local-storage"
	// answerTime is how long an attempt waits for a node; the next one asks anew.
	answerTime = 5 * time.Second
)

func answerKey(volume string) string { return group + volume }

// ask has a node do a job.
func (p *provisioner) ask(ctx context.Context, j job) (outcome, error) {
	if j.Node == p.node {
		return p.own.do(ctx, j), nil
	}
	j.ID = string(uuid.NewUUID())
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	// The watch begins before the question, and misses no answer.
	w, err := p.client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, j.Node).String()})
	if err != nil {
		return outcome{}, fmt.Errorf("watch node %s: %w", j.Node, err)
	}
	defer w.Stop()
	text, err := json.Marshal(j)
	if err != nil {
		return outcome{}, fmt.Errorf("ask node %s: %w", j.Node, err)
	}
	if err := p.setJob(ctx, j.Volume, string(text)); err != nil {
		return outcome{}, fmt.Errorf("ask node %s: %w", j.Node, err)
	}
	for {
		select {
		case <-ctx.Done():
			return outcome{}, fmt.Errorf("node %s does not answer; it is asked again", j.Node)
		case e, open := <-w.ResultChan():
			if !open {
				return outcome{}, fmt.Errorf("watch node %s: the watch ended", j.Node)
			}
			n, ok := e.Object.(*corev1.Node)
			if !ok || n.Name != j.Node {
				continue
			}
			var o outcome
			if json.Unmarshal([]byte(n.Annotations[answerKey(j.Volume)]), &o) != nil || o.ID != j.ID {
				continue
			}
			return o, p.tidy(ctx, j)
		}
	}
}

// tidy removes a question and its answer.
func (p *provisioner) tidy(ctx context.Context, j job) error {
	if err := p.setJob(ctx, j.Volume, nil); err != nil {
		return fmt.Errorf("take back what node %s was asked: %w", j.Node, err)
	}
	change, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{answerKey(j.Volume): nil}}})
	if err != nil {
		return err
	}
	_, err = p.client.CoreV1().Nodes().Patch(ctx, j.Node, types.MergePatchType, change, metav1.PatchOptions{FieldManager: "knarr"})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("take back what node %s has answered: %w", j.Node, err)
	}
	return nil
}

// setJob sets a key of the ConfigMap, or removes it with nil.
func (p *provisioner) setJob(ctx context.Context, key string, value any) error {
	maps := p.client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	change, err := json.Marshal(map[string]any{"data": map[string]any{key: value}})
	if err != nil {
		return err
	}
	_, err = maps.Patch(ctx, jobsConfigMap, types.MergePatchType, change, metav1.PatchOptions{FieldManager: "knarr"})
	if !apierrors.IsNotFound(err) || value == nil {
		return ignore(err, apierrors.IsNotFound)
	}
	text, _ := value.(string)
	_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: jobsConfigMap}, Data: map[string]string{key: text}}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) { // another worker was quicker
		_, err = maps.Patch(ctx, jobsConfigMap, types.MergePatchType, change, metav1.PatchOptions{FieldManager: "knarr"})
	}
	return err
}

// ignore drops an error of a kind.
func ignore(err error, kind func(error) bool) error {
	if err != nil && kind(err) {
		return nil
	}
	return errors.Join(err)
}
