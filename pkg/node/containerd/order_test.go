package containerd

import (
	"context"
	"maps"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubelet/pkg/types"
)

// service has the shape of containerd's CRI service.
type service struct{ runtime.RuntimeServiceServer }

// pod is the runtime of one pod whose clock was set back before the second
// attempt.
type pod struct {
	runtime.UnimplementedRuntimeServiceServer
	created map[string]time.Time
}

func newPod() pod {
	now := time.Now()
	return pod{created: map[string]time.Time{"0": now.Add(24 * time.Hour), "1": now.Add(time.Minute), "2": now}}
}

func (p pod) metadata(id string) (uid string, attempt uint32) { return "uid", uint32(id[0] - '0') }

func (p pod) ListPodSandbox(context.Context, *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	resp := &runtime.ListPodSandboxResponse{Items: []*runtime.PodSandbox{
		{Id: "other", CreatedAt: 1, Metadata: &runtime.PodSandboxMetadata{Uid: "another", Attempt: 9}},
	}}
	for id, at := range p.created {
		uid, attempt := p.metadata(id)
		resp.Items = append(resp.Items, &runtime.PodSandbox{Id: id, CreatedAt: at.UnixNano(), Metadata: &runtime.PodSandboxMetadata{Uid: uid, Attempt: attempt}})
	}
	return resp, nil
}

func (p pod) ListContainers(_ context.Context, req *runtime.ListContainersRequest) (*runtime.ListContainersResponse, error) {
	resp := &runtime.ListContainersResponse{}
	if uid, _ := p.metadata("0"); req.Filter.LabelSelector[types.KubernetesPodUIDLabel] != uid {
		return resp, nil
	}
	for id, at := range p.created {
		_, attempt := p.metadata(id)
		resp.Containers = append(resp.Containers, &runtime.Container{Id: id, CreatedAt: at.UnixNano(), Metadata: &runtime.ContainerMetadata{Name: "c", Attempt: attempt}})
	}
	return resp, nil
}

func (p pod) ContainerStatus(_ context.Context, req *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error) {
	uid, attempt := p.metadata(req.ContainerId)
	state := runtime.ContainerState_CONTAINER_EXITED
	if attempt == 2 {
		state = runtime.ContainerState_CONTAINER_RUNNING
	}
	return &runtime.ContainerStatusResponse{Status: &runtime.ContainerStatus{
		Id: req.ContainerId, State: state, CreatedAt: p.created[req.ContainerId].UnixNano(),
		Metadata: &runtime.ContainerMetadata{Name: "c", Attempt: attempt},
		Labels:   map[string]string{types.KubernetesPodUIDLabel: uid},
	}}, nil
}

func inOrder(t *testing.T, created map[string]int64, newest time.Time) {
	t.Helper()
	if created["2"] != newest.UnixNano() || created["1"] >= created["2"] || created["0"] >= created["1"] {
		t.Errorf("the attempts are not one younger than the other: %v", created)
	}
}

func TestAttemptsFollowEachOtherWhenTheClockWasSetBack(t *testing.T) {
	p := newPod()
	before := maps.Clone(p.created)
	s := &service{p}
	if err := keepOrder(s); err != nil {
		t.Fatal(err)
	}

	sandboxes, err := s.ListPodSandbox(t.Context(), &runtime.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	created := map[string]int64{}
	for _, item := range sandboxes.Items {
		created[item.Id] = item.CreatedAt
	}
	inOrder(t, created, before["2"])
	if created["other"] != 1 {
		t.Error("another pod's sandbox has another age, too")
	}

	clear(created)
	for id := range before {
		resp, err := s.ContainerStatus(t.Context(), &runtime.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		created[id] = resp.Status.CreatedAt
	}
	inOrder(t, created, before["2"])
}

func TestAServiceOfAnotherShapeIsRefused(t *testing.T) {
	if err := keepOrder(&struct{}{}); err == nil {
		t.Error("nothing was wrapped, and no error says so")
	}
}
