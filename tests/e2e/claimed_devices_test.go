package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

const gadgetDriver = "gadget.example.org"

// gadgets is a driver of dynamic resource allocation. What a claim was given, it
// tells the container runtime by a file of the Container Device Interface.
type gadgets struct{ s *space }

var _ kubeletplugin.DRAPlugin = gadgets{}

func (g gadgets) spec(claim types.UID) string {
	return "/run/cdi/" + gadgetDriver + "-" + string(claim) + ".json"
}

func (g gadgets) PrepareResourceClaims(_ context.Context, claims []*resourceapi.ResourceClaim) (map[types.UID]kubeletplugin.PrepareResult, error) {
	results := map[types.UID]kubeletplugin.PrepareResult{}
	for _, c := range claims {
		var result kubeletplugin.PrepareResult
		for _, given := range c.Status.Allocation.Devices.Results {
			result.Devices = append(result.Devices, kubeletplugin.Device{
				Requests: []string{given.Request}, PoolName: given.Pool, DeviceName: given.Device,
				CDIDeviceIDs: []string{gadgetDriver + "/gadget=" + string(c.UID)},
			})
			result.Err = g.write(c.UID, given.Device)
		}
		results[c.UID] = result
	}
	return results, nil
}

// write is called for one device of a claim.
func (g gadgets) write(claim types.UID, device string) error {
	type object = map[string]any
	spec, err := json.Marshal(object{
		"cdiVersion": "0.6.0", "kind": gadgetDriver + "/gadget",
		"devices": []object{{"name": string(claim), "containerEdits": object{
			"env":         []string{"GADGET=" + device},
			"deviceNodes": []object{{"path": "/dev/gadget", "hostPath": "/dev/fuse", "permissions": "r"}},
		}}},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(g.s.Host.Path(g.spec(claim)), spec, 0o644)
}

func (g gadgets) UnprepareResourceClaims(_ context.Context, claims []kubeletplugin.NamespacedObject) (map[types.UID]error, error) {
	results := map[types.UID]error{}
	for _, c := range claims {
		err := os.Remove(g.s.Host.Path(g.spec(c.UID)))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		results[c.UID] = err
	}
	return results, nil
}

func (g gadgets) HandleError(_ context.Context, err error, what string) {
	if !errors.Is(err, context.Canceled) {
		g.s.t.Errorf("%s: %v", what, err)
	}
}

// serve has the driver run until the test ends, with two gadgets.
func (g gadgets) serve() {
	s := g.s
	s.t.Helper()
	s.Exec(s.t, "mkdir", "-p", "/run/cdi", kubeletplugin.KubeletPluginsDir+"/"+gadgetDriver)
	listen := func(_ context.Context, path string) (net.Listener, error) {
		return net.Listen("unix", s.Host.Path(path))
	}
	driver, err := kubeletplugin.Start(s.t.Context(), g, kubeletplugin.DriverName(gadgetDriver), kubeletplugin.NodeName("node"),
		kubeletplugin.KubeClient(s.Client), kubeletplugin.PluginListener(listen), kubeletplugin.RegistrarListener(listen))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(driver.Stop)
	color := func(name string) map[resourceapi.QualifiedName]resourceapi.DeviceAttribute {
		return map[resourceapi.QualifiedName]resourceapi.DeviceAttribute{"color": {StringValue: &name}}
	}
	err = driver.PublishResources(s.t.Context(), resourceslice.DriverResources{Pools: map[string]resourceslice.Pool{
		"node": {Slices: []resourceslice.Slice{{Devices: []resourceapi.Device{
			{Name: "g0", Attributes: color("red")}, {Name: "g1", Attributes: color("blue")},
		}}}},
	}})
	if err != nil {
		s.t.Fatal(err)
	}
}

// claiming has a pod claim a device of its own by a template.
func claiming(template string) kube.Option {
	return func(t *corev1.PodTemplateSpec, c *corev1.Container) {
		t.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "gadget", ResourceClaimTemplateName: &template}}
		c.Resources.Claims = []corev1.ResourceClaim{{Name: "gadget"}}
	}
}

func TestDriverOfClaimedDevicesServesPods(t *testing.T) {
	s := newSpace(t)
	gadgets{s}.serve()
	selects := func(expression string) []resourceapi.DeviceSelector {
		return []resourceapi.DeviceSelector{{CEL: &resourceapi.CELDeviceSelector{Expression: expression}}}
	}
	s.create(&resourceapi.DeviceClass{
		ObjectMeta: metav1.ObjectMeta{Name: s.ns},
		Spec:       resourceapi.DeviceClassSpec{Selectors: selects(`device.driver == "` + gadgetDriver + `"`)},
	})
	t.Cleanup(func() {
		_ = s.Client.ResourceV1().DeviceClasses().Delete(context.Background(), s.ns, metav1.DeleteOptions{}) // the cluster goes too
	})
	template := func(name string, selectors []resourceapi.DeviceSelector) *resourceapi.ResourceClaimTemplate {
		return &resourceapi.ResourceClaimTemplate{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: resourceapi.ResourceClaimTemplateSpec{
			Spec: resourceapi.ResourceClaimSpec{Devices: resourceapi.DeviceClaim{Requests: []resourceapi.DeviceRequest{{
				Name: "one", Exactly: &resourceapi.ExactDeviceRequest{DeviceClassName: s.ns, Selectors: selectors},
			}}}},
		}}
	}
	s.create(template("any", nil), template("blue", selects(`device.attributes["`+gadgetDriver+`"].color == "blue"`)),
		kube.Pod("chooser", claiming("blue")))
	s.running("chooser")
	want(t, "what the chooser has", s.in("chooser", "sh", "-c", "echo $GADGET; ( : < /dev/gadget ) && echo opens; ( : > /dev/gadget ) 2>/dev/null || echo may not write"), "g1\nopens\nmay not write")
	s.create(kube.Pod("taker", claiming("any")))
	s.running("taker")
	want(t, "what the next pod has", s.in("taker", "sh", "-c", "echo $GADGET"), "g0")

	s.create(kube.Pod("late", claiming("any")))
	s.event("late", "FailedScheduling", "cannot allocate all claims")
	s.kubectl("delete", "pod", "taker")
	s.running("late")
	want(t, "what the pod has that had to wait", s.in("late", "sh", "-c", "echo $GADGET"), "g0")
	s.kubectl("delete", "pod", "late", "chooser")
	s.WaitFor(t, "the driver to be told of the end of both", func(context.Context) (bool, error) {
		left, err := os.ReadDir(s.Host.Path("/run/cdi"))
		return len(left) == 0, err
	})
}
