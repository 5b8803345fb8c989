package kubelet

import (
	"reflect"
	"testing"
	"unsafe"

	"k8s.io/client-go/tools/cache"
	upstream "k8s.io/kubernetes/pkg/kubelet"
)

func TestTheKubeletTellsWhetherItKnowsItsNode(t *testing.T) {
	kl := &upstream.Kubelet{}
	if _, err := nodeHasSynced(kl); err == nil {
		t.Fatal("a kubelet that looks for no node is taken for one that does")
	}
	field := reflect.ValueOf(kl).Elem().FieldByName("nodeHasSynced")
	if !field.IsValid() {
		t.Fatal("upstream's field has moved: find it anew")
	}
	known := false
	*(*cache.InformerSynced)(unsafe.Pointer(field.UnsafeAddr())) = func() bool { return known }
	synced, err := nodeHasSynced(kl)
	if err != nil {
		t.Fatal(err)
	}
	for _, known = range []bool{false, true} {
		if synced() != known {
			t.Errorf("knows its node: %v, the kubelet's own answer is %v", synced(), known)
		}
	}
}
