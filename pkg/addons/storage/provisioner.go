package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// provisioner makes one volume, or deletes one.
type provisioner struct {
	client  kubernetes.Interface
	node    string
	own     *Folders
	path    string
	volumes cache.Store
	events  record.EventRecorder
	log     *slog.Logger
}

var _ controller.Provisioner = (*provisioner)(nil)

// Provision implements controller.Provisioner.
func (p *provisioner) Provision(ctx context.Context, o controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	claim := o.PVC
	for _, m := range claim.Spec.AccessModes {
		if m != corev1.ReadWriteOnce && m != corev1.ReadWriteOncePod {
			return nil, controller.ProvisioningFinished, fmt.Errorf("a folder of one node can't be %s: use ReadWriteOnce or ReadWriteOncePod", m)
		}
	}
	if claim.Spec.Selector != nil {
		return nil, controller.ProvisioningFinished, errors.New("the claim has a selector, and volumes made for it have no labels: leave it out")
	}
	for name := range o.StorageClass.Parameters {
		if name != paramPath && name != paramPattern {
			return nil, controller.ProvisioningFinished, fmt.Errorf("StorageClass %s: no parameter %q is known; there are %s and %s", o.StorageClass.Name, name, paramPath, paramPattern)
		}
	}
	if o.SelectedNodeName == "" {
		return nil, controller.ProvisioningFinished, fmt.Errorf("StorageClass %s: a folder is made on the node of its first pod: set volumeBindingMode: WaitForFirstConsumer", o.StorageClass.Name)
	}
	node, err := p.client.CoreV1().Nodes().Get(ctx, o.SelectedNodeName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, controller.ProvisioningReschedule, fmt.Errorf("node %s is gone", o.SelectedNodeName)
	}
	if err != nil {
		return nil, controller.ProvisioningNoChange, fmt.Errorf("read node %s: %w", o.SelectedNodeName, err)
	}
	paths, err := readPaths(ctx, p.client, node.Name, p.path)
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	base, err := choose(paths, o.StorageClass.Parameters[paramPath], o.PVName)
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	folder, err := subfolder(o.StorageClass.Parameters[paramPattern], o.PVName, claim)
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	path := filepath.Join(base, folder)
	if other := used(path, p.pathsOn(node.Name, o.PVName)); other != "" {
		return nil, controller.ProvisioningFinished, fmt.Errorf("folder %s of node %s belongs to another volume already, which has %s: what deletes one would delete the other", path, node.Name, other)
	}
	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	done, err := p.ask(ctx, job{Node: node.Name, Op: opMake, Volume: o.PVName, Path: path, Bytes: size.Value()})
	if err != nil {
		return nil, controller.ProvisioningInBackground, err
	}
	if done.Error != "" {
		return nil, controller.ProvisioningFinished, fmt.Errorf("node %s: %s", node.Name, done.Error)
	}
	if done.Unlimited != "" {
		p.events.Event(claim, corev1.EventTypeWarning, "SizeNotEnforced", done.Unlimited)
	}
	policy := corev1.PersistentVolumeReclaimDelete
	if o.StorageClass.ReclaimPolicy != nil {
		policy = *o.StorageClass.ReclaimPolicy
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName, Annotations: map[string]string{nodeAnnotation: node.Name}},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: policy,
			AccessModes:                   claim.Spec.AccessModes,
			VolumeMode:                    new(corev1.PersistentVolumeFilesystem),
			MountOptions:                  o.StorageClass.MountOptions,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: size},
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
			NodeAffinity:                  &corev1.VolumeNodeAffinity{Required: onNode(node)},
		},
	}, controller.ProvisioningFinished, nil
}

// onNode selects one node, by the label that stays when it is made anew.
func onNode(n *corev1.Node) *corev1.NodeSelector {
	name := n.Labels[corev1.LabelHostname]
	if name == "" {
		name = n.Name
	}
	return &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{name}}},
	}}}
}

// pathsOn are where the other volumes of ours on a node are.
func (p *provisioner) pathsOn(node, except string) []string {
	var list []string
	for _, obj := range p.volumes.List() {
		v, ok := obj.(*corev1.PersistentVolume)
		if ok && v.Name != except && v.Spec.Local != nil && v.Annotations[nodeAnnotation] == node {
			list = append(list, v.Spec.Local.Path)
		}
	}
	slices.Sort(list)
	return list
}

// Delete implements controller.Provisioner.
func (p *provisioner) Delete(ctx context.Context, v *corev1.PersistentVolume) error {
	node := v.Annotations[nodeAnnotation]
	if v.Spec.Local == nil || node == "" {
		return fmt.Errorf("volume %s is not as it was made: it has no local path or no annotation %s", v.Name, nodeAnnotation)
	}
	if node != p.node {
		_, err := p.client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			p.log.Info("a volume is deleted whose node is gone; its folder stays on that machine", "volume", v.Name, "node", node, "path", v.Spec.Local.Path)
			return nil
		}
		if err != nil {
			return fmt.Errorf("read node %s: %w", node, err)
		}
	}
	done, err := p.ask(ctx, job{Node: node, Op: opRemove, Volume: v.Name, Path: v.Spec.Local.Path})
	if err != nil {
		return err
	}
	if done.Error != "" {
		return fmt.Errorf("node %s: %s", node, done.Error)
	}
	return nil
}
