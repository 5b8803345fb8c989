package lifecycle

import (
	"context"
	"net"
	"slices"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/knarr-dev/knarr/tests/harness"
)

const (
	csiDriver = "csi.example.org"
	csiSocket = "/var/lib/kubelet/plugins_registry/csi.example.org.sock"
)

// driver is as little of a CSI driver as the kubelet takes.
type driver struct {
	registration.UnimplementedRegistrationServer
	csi.UnimplementedNodeServer
}

func (driver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: csiDriver, Endpoint: csiSocket, SupportedVersions: []string{"1.0.0"}}, nil
}

func (driver) NotifyRegistrationStatus(context.Context, *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	return &registration.RegistrationStatusResponse{}, nil
}

func (driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: "here"}, nil
}

// The kubelet and several controllers each make a CSI plugin, and all of those
// share variables of one package.
func csiDriverRegisters(t *testing.T, n *harness.Node) {
	lis, err := net.Listen("unix", n.Host.Path(csiSocket))
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	registration.RegisterRegistrationServer(srv, &driver{})
	csi.RegisterNodeServer(srv, &driver{})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	defer func() {
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	n.WaitFor(t, "the driver to stand in CSINode", func(ctx context.Context) (bool, error) {
		node, err := n.Client.StorageV1().CSINodes().Get(ctx, "node", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		return slices.ContainsFunc(node.Spec.Drivers, func(d storagev1.CSINodeDriver) bool {
			return d.Name == csiDriver && d.NodeID == "here"
		}), nil
	})
}
