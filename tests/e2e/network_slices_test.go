package e2e

import (
	"context"
	"testing"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestServiceGathersItsEndpointsFromSeveralSlices(t *testing.T) {
	s := newSpace(t)
	one := kube.Pod("one", kube.Serve("one"), kube.Container("more", kube.Testbox("serve", "--port=9090", "--body=one-more")))
	two := kube.Pod("two", kube.Serve("two"), kube.Container("more", kube.Testbox("serve", "--port=9191", "--body=two-more")))
	service := kube.Service("both", kube.Manual, kube.Port(80, 8080), kube.Port(90, 9090))
	service.Spec.Ports[1].Name = "more"
	s.create(one, two, service)
	s.client()
	slice := func(pod, more string) {
		t.Helper()
		s.apply(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: both-` + pod + `
  labels: {kubernetes.io/service-name: both, endpointslice.kubernetes.io/managed-by: test}
addressType: IPv4
endpoints: [{addresses: [` + s.running(pod).Status.PodIP + `], conditions: {ready: true}}]
ports: [{name: http, port: 8080}, {name: more, port: ` + more + `}]
`)
	}
	slice("one", "9090")
	slice("two", "9191")
	for url, answers := range map[string][]string{"http://both": {"one", "two"}, "http://both:90": {"one-more", "two-more"}} {
		missing := map[string]bool{answers[0]: true, answers[1]: true}
		s.WaitFor(t, "the answers of both", func(context.Context) (bool, error) {
			out, err := s.inErr("client", "testbox", "get", url, "--timeout", "2s")
			delete(missing, out)
			return len(missing) == 0, err
		})
	}
}

func TestServiceThatSelectsNothingHasAnEmptySlice(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Service("lonely", kube.Port(80, 8080)))
	const slices = "--selector=kubernetes.io/service-name=lonely"
	s.WaitFor(t, "the slice", func(context.Context) (bool, error) {
		out, err := s.kubectlErr("get", "endpointslice", slices, "-o", "name")
		return out != "", err
	})
	want(t, "the endpoints of the slice", s.kubectl("get", "endpointslice", slices, "-o", "jsonpath={.items[*].endpoints[*].addresses}"), "")
	s.kubectl("wait", "endpoints/lonely", "--for=create", "--timeout=60s")
	s.kubectl("delete", "service", "lonely")
	s.kubectl("wait", "endpointslice", slices, "--for=delete", "--timeout=60s")
	s.kubectl("wait", "endpoints/lonely", "--for=delete", "--timeout=60s")
}
