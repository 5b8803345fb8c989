package proxy

import (
	"fmt"
	"reflect"
)

// unexported returns a field that upstream keeps to itself. There are three that
// nothing else leads to: the configuration that its flags make, the listeners of
// Services' health checks, which must close when we stop, and whether the base
// chains are to be made anew.
func unexported[T any](of any, name string) (*T, error) {
	f := reflect.ValueOf(of).Elem().FieldByName(name)
	if !f.IsValid() || f.Type() != reflect.TypeFor[T]() {
		return nil, fmt.Errorf("upstream's %T has no field %s of type %s in this version of Kubernetes", of, name, reflect.TypeFor[T]())
	}
	return (*T)(f.Addr().UnsafePointer()), nil
}
