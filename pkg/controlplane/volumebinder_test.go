package controlplane

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/volumebinding"
)

func TestBoundVolumesAreNoticedAtOnce(t *testing.T) {
	for _, c := range []struct {
		boundAfter, noticedWithin time.Duration
	}{
		{0, 2 * time.Millisecond},
		{50 * time.Millisecond, 100 * time.Millisecond},
		{10 * time.Second, 11 * time.Second},
		{time.Hour, 10 * time.Minute}, // the timeout
	} {
		synctest.Test(t, func(t *testing.T) {
			began, asked := time.Now(), 0
			pod := &corev1.Pod{}
			claims := []*volumebinding.DynamicProvision{{PVC: &corev1.PersistentVolumeClaim{}}}
			b := &promptBinder{
				timeout: 10 * time.Minute,
				update: func(_ context.Context, p *corev1.Pod, _ []*volumebinding.BindingInfo, c []*corev1.PersistentVolumeClaim) error {
					if asked++; p != pod || len(c) != 1 || c[0] != claims[0].PVC {
						t.Errorf("asked for %v %v", p, c)
					}
					return nil
				},
				check: func(klog.Logger, *corev1.Pod, []*volumebinding.BindingInfo, []*corev1.PersistentVolumeClaim) (bool, error) {
					return time.Since(began) >= c.boundAfter, nil
				},
			}
			err := b.BindPodVolumes(t.Context(), pod, &volumebinding.PodVolumes{DynamicProvisions: claims})
			if took := time.Since(began); took > c.noticedWithin || asked != 1 || (err != nil) != (c.boundAfter > b.timeout) {
				t.Errorf("bound after %v, noticed after %v, asked %d times: %v", c.boundAfter, took, asked, err)
			}
		})
	}
}

func TestVolumesThatCannotBeBoundEndTheWait(t *testing.T) {
	no := errors.New("no")
	for _, b := range []*promptBinder{
		{timeout: time.Minute, update: func(context.Context, *corev1.Pod, []*volumebinding.BindingInfo, []*corev1.PersistentVolumeClaim) error {
			return no
		}},
		{timeout: time.Minute, update: func(context.Context, *corev1.Pod, []*volumebinding.BindingInfo, []*corev1.PersistentVolumeClaim) error {
			return nil
		}, check: func(klog.Logger, *corev1.Pod, []*volumebinding.BindingInfo, []*corev1.PersistentVolumeClaim) (bool, error) {
			return false, no
		}},
	} {
		if err := b.BindPodVolumes(t.Context(), &corev1.Pod{}, &volumebinding.PodVolumes{}); !errors.Is(err, no) {
			t.Error(err)
		}
	}
}
