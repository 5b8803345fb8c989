package controlplane

import (
	"context"
	"sync"
	_ "unsafe" // for go:linkname

	controllerhealthz "k8s.io/controller-manager/pkg/healthz"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	"k8s.io/kubernetes/pkg/volume/csi"
	"k8s.io/kubernetes/pkg/volume/csi/nodeinfomanager"
)

// csiNode is what upstream's CSI plugin knows of the node it runs on.
//
//go:linkname csiNode k8s.io/kubernetes/pkg/volume/csi.nim
var csiNode nodeinfomanager.Interface

// usersOfCSI are the controllers that make a CSI plugin for themselves.
func usersOfCSI() []string {
	return []string{
		names.PersistentVolumeBinderController, names.PersistentVolumeAttachDetachController,
		names.PersistentVolumeExpanderController, names.SELinuxWarningController,
	}
}

// build makes all controllers, and leaves the CSI plugin to the kubelet.
//
// The plugin keeps its node in variables of its package, which its user of last
// takes over. Controllers have no node: a kubelet in the same process would ask
// for a node without a name, never call its own ready, and end the process. The
// kubelet holds the lock while it makes its own, so that it does not come between
// what is kept here and what is put back.
func build(ctx context.Context, cc app.ControllerContext, descriptors map[string]*app.ControllerDescriptor, lock sync.Locker) ([]app.Controller, error) {
	making.controllers.Lock()
	defer making.controllers.Unlock()
	var all []app.Controller
	for _, name := range usersOfCSI() {
		d, ok := descriptors[name]
		if !ok {
			continue // behind a feature gate
		}
		// One by one: the kubelet may start, or ask, at any moment between.
		lock.Lock()
		node, handler := csiNode, *csi.PluginHandler
		one, err := app.BuildControllers(ctx, cc, map[string]*app.ControllerDescriptor{name: d}, nil, controllerhealthz.NewMutableHealthzHandler())
		if node != nil {
			csiNode, *csi.PluginHandler = node, handler
		}
		lock.Unlock()
		if err != nil {
			return nil, err
		}
		all = append(all, one...)
		delete(descriptors, name)
	}
	others, err := app.BuildControllers(ctx, cc, descriptors, nil, controllerhealthz.NewMutableHealthzHandler())
	return append(all, others...), err
}
