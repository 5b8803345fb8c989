// Command csidriver is a CSI driver whose volumes are folders, and files behind
// loop devices, of one node. It stands in for csi-driver-host-path, which the
// module proxy does not have, beside the sidecars that its authors ship, and it
// registers itself with the kubelet.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const driverName = "disk.example.org"

func main() {
	var d driver
	flag.StringVar(&d.data, "data", "/data", "folder of the volumes, on the node too")
	flag.StringVar(&d.node, "node", "", "name of the node")
	flag.StringVar(&d.kubelet, "kubelet", "/var/lib/kubelet/plugins/"+driverName+"/csi.sock", "the socket as the kubelet sees it")
	socket := flag.String("socket", "/csi/csi.sock", "the socket as the sidecars see it")
	registry := flag.String("registry", "/registration/"+driverName+"-reg.sock", "where the kubelet looks for drivers")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := d.serve(ctx, *socket, *registry); err != nil {
		fmt.Fprintln(os.Stderr, "csidriver:", err)
		os.Exit(1)
	}
}

type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	registration.UnimplementedRegistrationServer

	data, node, kubelet string
}

func (d *driver) serve(ctx context.Context, socket, registry string) error {
	for _, dir := range []string{"volumes", "snapshots"} {
		if err := os.MkdirAll(filepath.Join(d.data, dir), 0o755); err != nil {
			return err
		}
	}
	ended := make(chan error, 2)
	for path, register := range map[string]func(*grpc.Server){
		socket: func(s *grpc.Server) {
			csi.RegisterIdentityServer(s, d)
			csi.RegisterControllerServer(s, d)
			csi.RegisterNodeServer(s, d)
		},
		registry: func(s *grpc.Server) { registration.RegisterRegistrationServer(s, d) },
	} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		lis, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		s := grpc.NewServer(grpc.UnaryInterceptor(tell))
		register(s)
		context.AfterFunc(ctx, s.GracefulStop)
		go func() { ended <- s.Serve(lis) }()
	}
	return errors.Join(<-ended, <-ended)
}

// tell writes a line for each call.
func tell(ctx context.Context, req any, call *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	resp, err := handle(ctx, req)
	fmt.Println(filepath.Base(call.FullMethod), req, "→", resp, err)
	return resp, err
}

func (d *driver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: driverName, Endpoint: d.kubelet, SupportedVersions: []string{"1.0.0"}}, nil
}

func (d *driver) NotifyRegistrationStatus(context.Context, *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	return &registration.RegistrationStatusResponse{}, nil
}

func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: driverName, VendorVersion: "1"}, nil
}

func (d *driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{
		{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}}},
		{Type: &csi.PluginCapability_VolumeExpansion_{VolumeExpansion: &csi.PluginCapability_VolumeExpansion{Type: csi.PluginCapability_VolumeExpansion_ONLINE}}},
	}}, nil
}

func (d *driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (d *driver) volume(id string) string { return filepath.Join(d.data, "volumes", filepath.Base(id)) }
func (d *driver) snapshot(id string) string {
	return filepath.Join(d.data, "snapshots", filepath.Base(id))
}
