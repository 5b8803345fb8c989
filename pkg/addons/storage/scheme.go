package storage

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
)

// The provisioner's library adds the kinds of core/v1 to the scheme that all of
// this process's clients share, whenever a controller of it is made. They are in
// it already, and writing a map that others read ends the process.
var leaveSchemeAlone = sync.OnceFunc(func() {
	corev1.AddToScheme = unlessKnown(corev1.AddToScheme)
})

// unlessKnown leaves the shared scheme as it is where it has core/v1.
func unlessKnown(add func(*runtime.Scheme) error) func(*runtime.Scheme) error {
	return func(s *runtime.Scheme) error {
		if s == scheme.Scheme && s.IsVersionRegistered(corev1.SchemeGroupVersion) {
			return nil
		}
		return add(s)
	}
}
