package storage

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
)

func TestTheSchemeThatAllShareIsNotWritten(t *testing.T) {
	var written []*runtime.Scheme
	add := unlessKnown(func(s *runtime.Scheme) error {
		written = append(written, s)
		return nil
	})
	own := runtime.NewScheme()
	for _, s := range []*runtime.Scheme{scheme.Scheme, own} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	if len(written) != 1 || written[0] != own {
		t.Errorf("%d schemes were written", len(written))
	}

	New(Config{})
	// The race detector sees a write, and so may a plain run.
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 100 {
			for gvk := range scheme.Scheme.AllKnownTypes() {
				_ = scheme.Scheme.Recognizes(gvk)
			}
		}
	}()
	for range 100 {
		if err := corev1.AddToScheme(scheme.Scheme); err != nil {
			t.Fatal(err)
		}
	}
	<-done
}
