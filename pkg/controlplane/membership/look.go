package membership

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (c *controller) onRequest(_, now *certificatesv1.CertificateSigningRequest) {
	if now == nil || !isOurs(now) {
		return
	}
	if !isDecided(now) {
		c.queue.Add(item{requestItem, now.Name})
		return
	}
	if node := claimed(now); node != "" && isOfFormer(now, node) {
		c.queue.Add(item{nodeItem, node}) // it may be left over
	}
}

func (c *controller) onRecord(old, now *corev1.ConfigMap) {
	var is record
	damaged := errors.New("there is none")
	if now != nil {
		if is, damaged = readRecord(now); damaged != nil {
			c.m.info("the record of a node is damaged; delete it, and have the machine join anew", "error", damaged)
		}
	}
	if old != nil {
		if was, err := readRecord(old); err == nil && (damaged != nil || now.UID != old.UID) {
			c.roll.remove(was.Node, old.UID)
			c.wake(was.Node)
		}
	}
	if damaged == nil {
		c.roll.set(now.UID, is)
		c.wake(is.Node)
	}
}

func (c *controller) onNode(old, now *corev1.Node) {
	// Heartbeats change nothing that is read here.
	if old != nil && now != nil && old.UID == now.UID && slices.Equal(old.Status.Addresses, now.Status.Addresses) {
		return
	}
	n := now
	if n == nil {
		n = old
	}
	c.wake(n.Name)
	c.mu.Lock()
	defer c.mu.Unlock()
	for csr := range c.upon[n.Name] {
		c.queue.Add(item{requestItem, csr})
	}
	delete(c.upon, n.Name) // those that still wait say so again
}

// wake has a node and the requests for it looked at.
func (c *controller) wake(node string) {
	c.queue.Add(item{nodeItem, node})
	for _, csr := range c.requestsFor(node) {
		if !isDecided(csr) {
			c.queue.Add(item{requestItem, csr.Name})
		}
	}
}

func (c *controller) requestsFor(node string) []*certificatesv1.CertificateSigningRequest {
	objs, _ := c.requests.GetIndexer().ByIndex(byNode, node) // fails only for an index that does not exist
	all := make([]*certificatesv1.CertificateSigningRequest, 0, len(objs))
	for _, o := range objs {
		if csr, ok := o.(*certificatesv1.CertificateSigningRequest); ok {
			all = append(all, csr)
		}
	}
	return all
}

// record returns what we know of a node's record, nil if it has none.
func (c *controller) record(node string) (*record, *corev1.ConfigMap, error) {
	obj, found, err := c.records.GetIndexer().GetByKey(namespace + "/" + recordName(node))
	if err != nil || !found {
		return nil, nil, err
	}
	cm, ok := obj.(*corev1.ConfigMap)
	if !ok {
		return nil, nil, nil
	}
	rec, err := readRecord(cm)
	if err != nil {
		return nil, nil, err
	}
	return &rec, cm, nil
}

// write changes a record, if nobody else has since.
func (c *controller) write(ctx context.Context, cm *corev1.ConfigMap, rec record) error {
	cm = cm.DeepCopy()
	if err := rec.store(cm); err != nil {
		return err
	}
	if _, err := c.client.CoreV1().ConfigMaps(namespace).Update(ctx, cm, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("change record of node %s: %w", rec.Node, err)
	}
	return nil
}

// node returns what we know of a Node, nil if there is none.
func (c *controller) node(name string) *corev1.Node {
	obj, found, err := c.nodes.GetIndexer().GetByKey(name)
	if err != nil || !found {
		return nil
	}
	n, _ := obj.(*corev1.Node)
	return n
}

// otherWith is the name of another Node that has the name or address, or nothing.
func (c *controller) otherWith(name, than string) string {
	if name != than && c.node(name) != nil {
		return name
	}
	objs, _ := c.nodes.GetIndexer().ByIndex(byAddress, name)
	for _, o := range objs {
		if n, ok := o.(*corev1.Node); ok && n.Name != than {
			return n.Name
		}
	}
	return ""
}

// decide looks at a request.
func (c *controller) decide(ctx context.Context, name string) error {
	obj, found, err := c.requests.GetIndexer().GetByKey(name)
	csr, ok := obj.(*certificatesv1.CertificateSigningRequest)
	if err != nil || !found || !ok || !isOurs(csr) || isDecided(csr) {
		return err
	}
	r, err := readRequest(csr)
	var v verdict
	if err != nil {
		v = deny("%v", err)
	} else if v, err = c.judge(ctx, r); err != nil {
		return err
	}
	if v.upon != "" {
		c.wait(csr.Name, v.upon)
		if v, err = c.judge(ctx, r); err != nil { // the other Node may have changed meanwhile
			return err
		}
	}
	if v.again {
		return errAgain
	}
	if v.waits != "" {
		left := time.Until(csr.CreationTimestamp.Add(v.patience))
		if left > 0 {
			c.queue.AddAfter(item{requestItem, csr.Name}, left)
			c.m.cfg.Log.Debug("request of a node waits", "request", csr.Name, "node", r.node, "why", v.waits)
			return nil
		}
		v = deny("%s", v.waits)
	}
	return c.conclude(ctx, r, v)
}

// wait has a request looked at again when another Node changes.
func (c *controller) wait(csr, upon string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.upon[upon] == nil {
		c.upon[upon] = make(map[string]bool)
	}
	c.upon[upon][csr] = true
}

// conclude tells the verdict to the machine and, once, to the operator.
func (c *controller) conclude(ctx context.Context, r request, v verdict) error {
	csr := r.DeepCopy()
	condition := certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, LastUpdateTime: metav1.Now(),
		Reason: reasonApproved, Message: "the node's name, key and addresses are as they should be",
	}
	if v.denied != "" {
		condition.Type, condition.Reason, condition.Message = certificatesv1.CertificateDenied, reasonDenied, v.denied
	}
	csr.Status.Conditions = append(csr.Status.Conditions, condition)
	_, err := c.client.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, csr.Name, csr, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("decide on request %s: %w", csr.Name, err)
	}
	switch {
	case v.denied != "":
		c.m.info("a node's certificate was denied", "request", csr.Name, "by", csr.Spec.Username, "why", v.denied)
	case r.Spec.SignerName == clientSigner && r.byToken():
		c.m.info("a node joins", "node", r.node, "with", csr.Spec.Username)
	default:
		c.m.cfg.Log.Debug("a node's certificate was approved", "request", csr.Name, "node", r.node)
	}
	return nil
}
