package knarrtest_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/pkg/knarrtest"
)

// A control plane for one test.
func ExampleStart() {
	test := func(t *testing.T) {
		c := knarrtest.Start(t, knarrtest.CRDs("config/crd/bases"))
		ns := c.Namespace(t)
		_, err := c.Client(t).CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "cargo"},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	_ = test
}

// A control plane for all tests of a package, which is started when the first one
// asks for it.
func ExampleShared() {
	testMain := func(m *testing.M) int { return knarrtest.Main(m) } // os.Exit(knarrtest.Main(m))
	test := func(t *testing.T) {
		t.Parallel()
		c := knarrtest.Shared(t)
		ns := c.Namespace(t)
		_ = ns
	}
	_, _ = testMain, test
}
