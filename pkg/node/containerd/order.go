package containerd

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubelet/pkg/types"
)

// The kubelet takes the youngest of a pod's sandboxes, and of a container's
// attempts, for the one that counts. When the clock was set back that is a dead
// one from the future: until the time has caught up with it the kubelet would
// try to make its successor, which there is. So the CRI service is wrapped by
// one that tells nothing to be younger than its successor.
const (
	orderedID   = "ordered"
	upstreamCRI = string(plugins.GRPCPlugin) + ".cri"
	orderedCRI  = string(plugins.GRPCPlugin) + "." + orderedID
)

func registerOrdered() {
	replace(upstreamCRI, orderedID, func(_ *plugin.InitContext, made any) (any, error) {
		return made, keepOrder(made)
	})
}

// keepOrder wraps the runtime of a CRI service from within, since what serves it
// accepts no other service. Its type has no exported name, but the field has.
func keepOrder(service any) error {
	field := reflect.Indirect(reflect.ValueOf(service)).FieldByName("RuntimeServiceServer")
	if !field.CanSet() {
		return fmt.Errorf("keep the order of attempts: containerd's %T has no runtime to wrap", service)
	}
	field.Set(reflect.ValueOf(ordered{field.Interface().(runtime.RuntimeServiceServer)}))
	return nil
}

// ordered is a runtime in which time follows the number of the attempt.
type ordered struct{ runtime.RuntimeServiceServer }

func (o ordered) ListPodSandbox(ctx context.Context, req *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	resp, err := o.RuntimeServiceServer.ListPodSandbox(ctx, req)
	if err != nil {
		return nil, err
	}
	all := make([]attempt, 0, len(resp.Items))
	for _, s := range resp.Items {
		all = append(all, attempt{s.Metadata.GetUid(), s.Metadata.GetAttempt(), &s.CreatedAt})
	}
	order(all)
	return resp, nil
}

func (o ordered) ContainerStatus(ctx context.Context, req *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error) {
	resp, err := o.RuntimeServiceServer.ContainerStatus(ctx, req)
	pod := resp.GetStatus().GetLabels()[types.KubernetesPodUIDLabel]
	// What has not ended has no successor.
	if err != nil || pod == "" || resp.Status.State != runtime.ContainerState_CONTAINER_EXITED {
		return resp, err
	}
	list, err := o.ListContainers(ctx, &runtime.ListContainersRequest{
		Filter: &runtime.ContainerFilter{LabelSelector: map[string]string{types.KubernetesPodUIDLabel: pod}},
	})
	if err != nil {
		return nil, err
	}
	var all []attempt
	for _, c := range list.Containers {
		at := &c.CreatedAt
		if c.Id == resp.Status.Id {
			at = &resp.Status.CreatedAt
		}
		all = append(all, attempt{c.Metadata.GetName(), c.Metadata.GetAttempt(), at})
	}
	order(all)
	return resp, nil
}

// attempt is one of those to run what name stands for.
type attempt struct {
	name    string
	number  uint32
	created *int64
}

// order makes each attempt older than its successor.
func order(all []attempt) {
	slices.SortFunc(all, func(a, b attempt) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(b.number, a.number))
	})
	for i := 1; i < len(all); i++ {
		if newer := all[i-1]; newer.name == all[i].name {
			*all[i].created = min(*all[i].created, *newer.created-1)
		}
	}
}
