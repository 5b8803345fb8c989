// Package manifest reads files of Kubernetes objects.
package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Parse reads YAML documents or JSON. Lists are taken apart, and documents without
// content left out. An error tells the number of its document, from 1; it is one,
// too, that an object has no kind, apiVersion or name of its own.
func Parse(text []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	docs := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for n := 1; ; n++ {
		var content map[string]any
		err := docs.Decode(&content)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		if len(content) == 0 {
			continue // nothing but comments
		}
		o := &unstructured.Unstructured{Object: content}
		if !o.IsList() {
			if err := check(o); err != nil {
				return nil, fmt.Errorf("document %d: %w", n, err)
			}
			objects = append(objects, o)
			continue
		}
		err = o.EachListItem(func(item runtime.Object) error {
			one, ok := item.(*unstructured.Unstructured)
			if !ok {
				return errors.New("an item is no object")
			}
			objects = append(objects, one)
			return check(one)
		})
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
	}
}

// check finds what no API server would be asked with.
func check(o *unstructured.Unstructured) error {
	switch {
	case o.GetKind() == "":
		return errors.New("it has no kind")
	case o.GetAPIVersion() == "":
		return fmt.Errorf("%s has no apiVersion", o.GetKind())
	case o.GetName() == "" && o.GetGenerateName() != "":
		return fmt.Errorf("%s %s…: give it a name: with generateName there would be a new one each time", o.GetKind(), o.GetGenerateName())
	case o.GetName() == "":
		return fmt.Errorf("%s has no metadata.name", o.GetKind())
	}
	return nil
}
