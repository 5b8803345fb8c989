package controlplane

import (
	"reflect"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"k8s.io/client-go/util/workqueue"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	"k8s.io/kube-aggregator/pkg/controllers/openapiv3"
)

func TestTheAggregatorHasAQueueForOpenAPI(t *testing.T) {
	s := &aggregatorapiserver.APIAggregator{}
	if _, err := openAPIQueue(s); err == nil {
		t.Fatal("an aggregator without a controller has a queue")
	}
	field := reflect.ValueOf(s).Elem().FieldByName("openAPIV3AggregationController")
	if !field.IsValid() {
		t.Fatal("upstream's field has moved: find it anew")
	}
	*(**openapiv3.AggregationController)(unsafe.Pointer(field.UnsafeAddr())) = &openapiv3.AggregationController{}
	queue, err := openAPIQueue(s)
	if err != nil {
		t.Fatal(err)
	}
	if *queue != nil {
		t.Fatalf("a new controller's queue is %v", *queue)
	}
}

func TestOwnServersAreAskedForOpenAPIWhileItCanChange(t *testing.T) {
	const local = "k8s_internal_local_delegation_chain_0000000001"
	synctest.Test(t, func(t *testing.T) {
		inner := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())
		defer inner.ShutDown()
		q := &calmQueue{TypedRateLimitingInterface: inner, busyUntil: time.Now().Add(openAPIStaysBusy)}
		// due tells whether key is taken up within two seconds.
		due := func(key string) bool {
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if inner.Len() == 0 {
				return false
			}
			got, _ := inner.Get()
			inner.Done(got)
			return got == key
		}
		asked := func(key string) bool {
			q.AddAfter(key, time.Second)
			return due(key)
		}
		if !asked(local) {
			t.Error("a server of ours was not asked after the start")
		}
		time.Sleep(openAPIStaysBusy)
		if !asked("v1.example.org") {
			t.Error("a service of the user's was not asked")
		}
		if asked(local) {
			t.Error("a server of ours was asked although nothing changes")
		}
		q.stir()
		if !due(local) {
			t.Error("a server of ours was not asked after a change")
		}
		if !asked(local) {
			t.Error("a server of ours was not asked again soon after a change")
		}
		q.stayBusy()
		time.Sleep(openAPIStaysBusy)
		if !asked(local) {
			t.Error("with nobody to tell of changes, a server of ours was not asked")
		}
	})
}
