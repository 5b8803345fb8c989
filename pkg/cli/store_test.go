package cli

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
)

func TestStoredValuesAreDescribedAsYAML(t *testing.T) {
	encode := func(o runtime.Object) string {
		var b strings.Builder
		if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(o, &b); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	decoder, err := storedDecoder()
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Name: "web"}}
	for name, c := range map[string]struct{ stored, want, err string }{
		"protobuf":        {stored: encode(pod), want: "kind: Pod\nmetadata:\n  name: web\n"},
		"JSON":            {stored: `{"apiVersion":"apiregistration.k8s.io/v1","kind":"APIService","metadata":{"name":"v1"}}`, want: "kind: APIService\n"},
		"custom resource": {stored: `{"apiVersion":"example.org/v1","kind":"Widget","spec":{"size":3}}`, want: "kind: Widget\nspec:\n  size: 3\n"},
		"no object":       {stored: `{"health":"true"}`, want: "health: \"true\"\n"},
		"text":            {stored: "1234", want: "1234\n"},
		"damaged":         {stored: encode(pod)[:9], err: "EOF"},
	} {
		got, err := describeStored(decoder, []byte(c.stored))
		if c.err == "" && (err != nil || !strings.Contains(got, c.want)) || c.err != "" && (err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(c.err))) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
