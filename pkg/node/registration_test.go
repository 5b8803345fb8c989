package node

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestNodeIsReadyOncePodsCanStart(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(start.Truncate(time.Second))}
	notYet, before, elsewhere := ready, ready, ready
	notYet.Status = corev1.ConditionFalse
	before.LastHeartbeatTime = metav1.NewTime(start.Add(-time.Minute))
	elsewhere.Type = corev1.NodeDiskPressure

	for what, c := range map[string]struct {
		condition corev1.NodeCondition
		taints    []corev1.Taint
		want      bool
	}{
		"the kubelet calls it ready":                        {condition: ready, want: true},
		"it has a taint of the user":                        {condition: ready, taints: []corev1.Taint{{Key: "example.org/work", Effect: corev1.TaintEffectNoSchedule}}, want: true},
		"it is cordoned":                                    {condition: ready, taints: []corev1.Taint{{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}}, want: true},
		"the kubelet calls it not ready":                    {condition: notYet},
		"it was ready before the machine rebooted":          {condition: before},
		"only another condition is known":                   {condition: elsewhere},
		"pods are still kept away, as from one not ready":   {condition: ready, taints: []corev1.Taint{{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}}},
		"pods are still kept away, as from one unreachable": {condition: ready, taints: []corev1.Taint{{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}}},
	} {
		n := &corev1.Node{Spec: corev1.NodeSpec{Taints: c.taints}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{c.condition}}}
		if got := isReady(n, start); got != c.want {
			t.Errorf("%s: ready is %t, want %t", what, got, c.want)
		}
	}
}
