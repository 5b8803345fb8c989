package helm

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// setFinalizer puts ours on a HelmChart, or takes it off.
func (c *Controller) setFinalizer(ctx context.Context, hc *helmChart, on bool) error {
	if slices.Contains(hc.Finalizers, finalizer) == on {
		return nil
	}
	want := slices.DeleteFunc(slices.Clone(hc.Finalizers), func(f string) bool { return f == finalizer })
	if on {
		want = append(want, finalizer)
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"finalizers": want, "resourceVersion": hc.ResourceVersion}})
	if err != nil {
		return fmt.Errorf("encode finalizers: %w", err)
	}
	o, err := c.dynamic.Resource(charts(hc.group)).Namespace(hc.Namespace).Patch(ctx, hc.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: manager})
	if apierrors.IsNotFound(err) && !on {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set finalizer: %w", err)
	}
	if on {
		return decode(o, hc)
	}
	return nil
}

// setStatus says how a HelmChart stands, if that is new. A nil problem is well.
func (c *Controller) setStatus(ctx context.Context, hc *helmChart, revision int, chart string, problem error) error {
	next := chartStatus{Conditions: slices.Clone(hc.Status.Conditions), Revision: revision, Chart: chart}
	well, message := metav1.ConditionTrue, ""
	bad, reason := metav1.ConditionFalse, "Deployed"
	if problem != nil {
		well, bad, reason, message = metav1.ConditionFalse, metav1.ConditionTrue, "Failed", problem.Error()
	}
	meta.SetStatusCondition(&next.Conditions, metav1.Condition{Type: deployed, Status: well, Reason: reason, Message: message, ObservedGeneration: hc.Generation})
	meta.SetStatusCondition(&next.Conditions, metav1.Condition{Type: failed, Status: bad, Reason: reason, Message: message, ObservedGeneration: hc.Generation})
	if reflect.DeepEqual(next, hc.Status) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"status": next})
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	_, err = c.dynamic.Resource(charts(hc.group)).Namespace(hc.Namespace).Patch(ctx, hc.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: manager}, "status")
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

// event tells of a HelmChart. It is no matter if it can't: the log and the
// status tell it too.
func (c *Controller) event(ctx context.Context, hc *helmChart, kind, reason, message string) {
	now := metav1.Now()
	if len(message) > 1000 {
		message = message[:1000] + "…"
	}
	_, err := c.client.CoreV1().Events(hc.Namespace).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: hc.Name[:min(len(hc.Name), 200)] + ".", Namespace: hc.Namespace},
		InvolvedObject: corev1.ObjectReference{APIVersion: hc.group + "/" + version, Kind: chartKind, Namespace: hc.Namespace, Name: hc.Name, UID: hc.UID},
		Type:           kind, Reason: reason, Message: message,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
		Source: corev1.EventSource{Component: manager},
	}, metav1.CreateOptions{})
	if err != nil {
		c.cfg.Log.Debug("event not written", "helmchart", hc.Namespace+"/"+hc.Name, "err", err)
	}
}
