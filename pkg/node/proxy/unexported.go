package proxy

import (
	"fmt"
	"reflect"
)

// unexported returns a field that upstream keeps to itself. There are two that
// nothing else leads to: the configuration that its flags make, and the listeners
// of Services' health checks, which must close when we stop.
func unexported[T any](of any, name string) (T, error) {
	f := reflect.ValueOf(of).Elem().FieldByName(name)
	if !f.IsValid() || f.Type() != reflect.TypeFor[T]() {
		var zero T
		return zero, fmt.Errorf("upstream's %T has no field %s of type %s in this version of Kubernetes", of, name, reflect.TypeFor[T]())
	}
	return *(*T)(f.Addr().UnsafePointer()), nil
}
