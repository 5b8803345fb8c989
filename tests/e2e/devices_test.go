package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	deviceplugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

const (
	widget       = "example.org/widget"
	widgetSocket = "example.org-widget.sock"
)

// widgets is a device plugin.
type widgets struct {
	deviceplugin.UnimplementedDevicePluginServer

	folder string // of the node, shown to who gets a widget

	mu      sync.Mutex
	health  map[string]string
	changed chan struct{} // closed when health changes
}

func (w *widgets) GetDevicePluginOptions(context.Context, *deviceplugin.Empty) (*deviceplugin.DevicePluginOptions, error) {
	return &deviceplugin.DevicePluginOptions{}, nil
}

func (w *widgets) ListAndWatch(_ *deviceplugin.Empty, stream grpc.ServerStreamingServer[deviceplugin.ListAndWatchResponse]) error {
	for {
		w.mu.Lock()
		changed, list := w.changed, &deviceplugin.ListAndWatchResponse{}
		for id, health := range w.health {
			list.Devices = append(list.Devices, &deviceplugin.Device{ID: id, Health: health})
		}
		w.mu.Unlock()
		if err := stream.Send(list); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

func (w *widgets) Allocate(_ context.Context, req *deviceplugin.AllocateRequest) (*deviceplugin.AllocateResponse, error) {
	answer := &deviceplugin.AllocateResponse{}
	for _, c := range req.ContainerRequests {
		answer.ContainerResponses = append(answer.ContainerResponses, &deviceplugin.ContainerAllocateResponse{
			Envs:    map[string]string{"WIDGETS": strings.Join(c.DevicesIds, ",")},
			Mounts:  []*deviceplugin.Mount{{HostPath: w.folder, ContainerPath: "/widget", ReadOnly: true}},
			Devices: []*deviceplugin.DeviceSpec{{HostPath: "/dev/fuse", ContainerPath: "/dev/widget", Permissions: "r"}},
		})
	}
	return answer, nil
}

func (w *widgets) sicken(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.health[id] = deviceplugin.Unhealthy
	close(w.changed)
	w.changed = make(chan struct{})
}

// serve is called once, and returns what ends the plugin.
func (w *widgets) serve(s *space) (stop func()) {
	s.t.Helper()
	lis, err := net.Listen("unix", s.Host.Path(deviceplugin.DevicePluginPath+widgetSocket))
	if err != nil {
		s.t.Fatal(err)
	}
	srv := grpc.NewServer()
	deviceplugin.RegisterDevicePluginServer(srv, w)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	stop = sync.OnceFunc(func() {
		srv.Stop()
		if err := <-served; err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(stop)

	conn, err := grpc.NewClient("unix://"+s.Host.Path(deviceplugin.KubeletSocket), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	_, err = deviceplugin.NewRegistrationClient(conn).Register(s.t.Context(), &deviceplugin.RegisterRequest{
		Version: deviceplugin.Version, Endpoint: widgetSocket, ResourceName: widget,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return stop
}

// hasWidgets waits until pods may have so many.
func (s *space) hasWidgets(count string) {
	s.t.Helper()
	s.WaitFor(s.t, "the node to offer "+count+" widgets", func(ctx context.Context) (bool, error) {
		node, err := s.Client.CoreV1().Nodes().Get(ctx, "node", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		if has := node.Status.Allocatable[widget]; has.String() != count {
			return false, fmt.Errorf("it offers %s", has.String())
		}
		return true, nil
	})
}

func TestDevicePluginServesPods(t *testing.T) {
	s := newSpace(t)
	w := &widgets{
		folder: s.folder(), changed: make(chan struct{}),
		health: map[string]string{"w0": deviceplugin.Healthy, "w1": deviceplugin.Healthy},
	}
	s.Write(t, w.folder+"/note", "driver\n")
	stop := w.serve(s)
	s.hasWidgets("2")
	s.create(kube.Pod("one", kube.Limit(widget, "1")), kube.Pod("none"))
	s.running("one")
	out := s.in("one", "sh", "-c", `echo $WIDGETS; cat /widget/note; stat -c %F /dev/widget; ( : < /dev/widget ) && echo opens; ( : > /dev/widget ) 2>/dev/null || echo may not write`)
	id, rest, _ := strings.Cut(out, "\n")
	if id != "w0" && id != "w1" {
		t.Errorf("the pod has the widgets %q", id)
	}
	want(t, "what the pod has of it", rest, "driver\ncharacter special file\nopens\nmay not write")
	s.running("none")
	want(t, "what a pod has that asked for none", s.in("none", "sh", "-c", "ls -d /widget /dev/widget 2>/dev/null; mknod /fuse c 10 229; ( : < /fuse ) 2>/dev/null || echo nothing"), "nothing")

	s.create(kube.Pod("two", kube.Limit(widget, "2")))
	s.event("two", "FailedScheduling", "Insufficient "+widget)
	s.kubectl("delete", "pod", "one")
	s.running("two")
	w.sicken("w0")
	s.hasWidgets("1")
	stop()
	s.hasWidgets("0")
}
