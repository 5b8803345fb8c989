package membership

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// reconcile compares a node's record with its Node object. At a start that is
// done for all of them, so that what happened meanwhile is made up for.
func (c *controller) reconcile(ctx context.Context, name string) error {
	rec, cm, err := c.record(name)
	if err != nil {
		return nil // onRecord has told of it; only an operator can mend it
	}
	if rec == nil {
		return c.sweep(ctx, name)
	}
	node := c.node(name)
	if rec.UID != "" && (node == nil || node.UID != rec.UID) {
		return c.leave(ctx, *rec, cm, "its Node object was deleted")
	}
	if rec.UID == "" && node == nil {
		if left := time.Until(rec.Since.Add(reservation)); left > 0 {
			c.queue.AddAfter(item{nodeItem, name}, left)
		} else {
			return c.leave(ctx, *rec, cm, "it has not registered within an hour")
		}
	}
	want := *rec
	if node != nil {
		want.UID = node.UID
	}
	for _, seen := range c.roll.unrecorded(name) {
		want = want.add(seen, time.Now())
	}
	if reflect.DeepEqual(want, *rec) {
		return nil
	}
	return c.write(ctx, cm, want)
}

// leave deletes a node's record, and with it its right to talk to the API
// server, and then what it leaves behind. Whether the Node is there is asked
// once more: what we know of it may be older than the record.
func (c *controller) leave(ctx context.Context, rec record, cm *corev1.ConfigMap, why string) error {
	node, err := c.client.CoreV1().Nodes().Get(ctx, rec.Node, metav1.GetOptions{})
	switch {
	case err == nil && (rec.UID == "" || node.UID == rec.UID):
		return errAgain
	case err != nil && !apierrors.IsNotFound(err):
		return fmt.Errorf("look for node %s: %w", rec.Node, err)
	}
	err = c.client.CoreV1().ConfigMaps(namespace).Delete(ctx, cm.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &cm.UID, ResourceVersion: &cm.ResourceVersion},
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete record of node %s: %w", rec.Node, err)
	}
	c.m.info("a node has left: its certificates are refused from now on", "node", rec.Node, "why", why)
	// Its requests are swept once the record is seen to be gone.
	return c.deleteLease(ctx, rec.Node, rec.UID)
}

// deleteLease is for a Lease that bears the mark of the Node that has gone, or
// none; the garbage collector is slower.
func (c *controller) deleteLease(ctx context.Context, node string, uid types.UID) error {
	leases := c.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	lease, err := leases.Get(ctx, node, metav1.GetOptions{})
	if err == nil && len(lease.OwnerReferences) > 0 &&
		!slices.ContainsFunc(lease.OwnerReferences, func(o metav1.OwnerReference) bool { return o.UID == uid }) {
		return nil
	}
	if err == nil {
		err = leases.Delete(ctx, node, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &lease.UID}})
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete lease of node %s: %w", node, err)
	}
	return nil
}

// sweep deletes the requests of a node that has no record. Upstream's
// csrcleaner would, an hour later.
func (c *controller) sweep(ctx context.Context, node string) error {
	left := c.requestsFor(node)
	left = slices.DeleteFunc(left, func(csr *certificatesv1.CertificateSigningRequest) bool {
		return !isDecided(csr) || !isOfFormer(csr, node)
	})
	if len(left) == 0 || node == c.m.cfg.Certificates().ownNode() {
		return nil
	}
	_, err := c.client.CoreV1().ConfigMaps(namespace).Get(ctx, recordName(node), metav1.GetOptions{})
	if err == nil {
		return nil // ours to hear of soon
	}
	if !apierrors.IsNotFound(err) {
		return fmt.Errorf("look for record of node %s: %w", node, err)
	}
	for _, csr := range left {
		err := c.client.CertificatesV1().CertificateSigningRequests().Delete(ctx, csr.Name, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &csr.UID},
		})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("delete request %s of node %s: %w", csr.Name, node, err)
		}
	}
	return nil
}
