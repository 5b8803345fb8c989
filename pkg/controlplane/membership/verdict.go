package membership

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	// reservation is how long a name is kept for a machine that has not registered.
	reservation = time.Hour
	// What a request may wait for before it is denied, so that the machine is
	// told: its own Node object to say where it is, another Node to give an
	// address back, the record to learn of the certificate it was made with.
	addressPatience    = 10 * time.Minute
	conflictPatience   = time.Minute
	credentialPatience = time.Minute
)

// verdict is what to do with a request. Its zero value approves.
type verdict struct {
	// denied and waits tell why, for the machine that asked.
	denied, waits string
	// again asks for another look once our own write has come back.
	again bool
	// patience is how long after its creation a waiting request is denied.
	patience time.Duration
	// upon is a Node that a waiting request depends on beside its own.
	upon string
}

func deny(format string, args ...any) verdict { return verdict{denied: fmt.Sprintf(format, args...)} }

func (c *controller) judge(ctx context.Context, r request) (verdict, error) {
	if own := c.m.cfg.Certificates().ownNode(); r.node == own {
		return deny("node name %q is that of the server itself: give this machine another (--node-name)", own), nil
	}
	if r.Spec.SignerName == servingSigner {
		return c.judgeServing(r), nil
	}
	return c.judgeClient(ctx, r)
}

// judgeClient gives a name to the first who asks, and a member new keys. The
// record holds the key before the request is approved, and our own look-ups know
// it: whoever gets the certificate can use it at once.
func (c *controller) judgeClient(ctx context.Context, r request) (verdict, error) {
	rec, cm, err := c.record(r.node)
	if err != nil {
		return deny("%v: delete it, and join anew with a token", err), nil
	}
	switch {
	case !r.byToken() && !r.byItself():
		return deny("%s may not ask for the certificate of node %s: only the bearer of a bootstrap token may, and the node itself", r.Spec.Username, r.node), nil
	case rec == nil && r.byItself():
		return deny("%s", (&Refused{Node: r.node}).Error()), nil
	case rec == nil && c.node(r.node) != nil:
		return deny("node name %q is taken by a Node object that did not join with a token: choose another (--node-name), or free it: kubectl delete node %s", r.node, r.node), nil
	case rec == nil:
		return verdict{again: true}, c.reserve(ctx, r)
	case r.byToken() && !rec.hasKey(r.key):
		return c.taken(*rec), nil
	case r.byToken(): // proven by a key of the node's
		return verdict{again: !c.roll.knows(r.node, r.key)}, nil
	}
	if v, member := provenance(r, *rec); !member {
		return v, nil
	}
	if !rec.hasKey(r.key) {
		return verdict{again: true}, c.write(ctx, cm, rec.add(credential{Key: r.key}, time.Now()))
	}
	return verdict{again: !c.roll.knows(r.node, r.key)}, nil
}

// taken tells a machine why it can't have a name, and what can be done.
func (c *controller) taken(rec record) verdict {
	if rec.UID != "" {
		return deny("node name %q is taken, and this machine does not have its key: choose another (--node-name), or, if that node is no more, free it: kubectl delete node %s", rec.Node, rec.Node)
	}
	left := time.Until(rec.Since.Add(reservation)).Round(time.Minute)
	return deny("node name %q was given to a machine that has not registered yet, and this one does not have its key: choose another (--node-name), wait %s, or free it: kubectl delete configmap --namespace %s %s",
		rec.Node, max(left, time.Minute), namespace, recordName(rec.Node))
}

// reserve gives the name away. Of two who ask at once the API server lets one
// create the record.
func (c *controller) reserve(ctx context.Context, r request) error {
	rec := record{Node: r.node, Since: time.Now().UTC().Truncate(time.Second), Credentials: []credential{{Key: r.key}}}
	cm, err := rec.configMap()
	if err != nil {
		return err
	}
	_, err = c.client.CoreV1().ConfigMaps(namespace).Create(ctx, cm, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("record node %s: %w", r.node, err)
	}
	return nil
}

// provenance tells whether a request was made with a certificate of the present
// member, and not of one that had the name before.
func provenance(r request, rec record) (verdict, bool) {
	if slices.ContainsFunc(r.credentials(), rec.hasID) {
		return verdict{}, true
	}
	return verdict{
		waits:    fmt.Sprintf("the certificate that node %s asks with is not in its record: it was made before the node was deleted, or by another authority", r.node),
		patience: credentialPatience,
	}, false
}

// judgeServing lets a node serve under its own names and addresses. The
// authority is that of the API server, whom a node must not be able to play.
func (c *controller) judgeServing(r request) verdict {
	if !r.byItself() {
		return deny("%s may not ask for the serving certificate of node %s: only the node itself may", r.Spec.Username, r.node)
	}
	wanted, why := servingNames(r)
	if why != "" {
		return deny("%s", why)
	}
	api := c.m.cfg.Certificates().Serving
	for _, name := range wanted {
		if api.VerifyHostname(name) == nil {
			return deny("%s is a name or address of the API server: no node may serve under it", name)
		}
	}
	rec, _, err := c.record(r.node)
	if err != nil || rec == nil {
		return deny("%s", (&Refused{Node: r.node}).Error())
	}
	if v, member := provenance(r, *rec); !member {
		return v
	}
	node := c.node(r.node)
	if node == nil || node.UID != rec.UID {
		return verdict{waits: fmt.Sprintf("node %s has not registered", r.node), patience: addressPatience}
	}
	has := addresses(node)
	for _, name := range wanted {
		if !slices.Contains(has, name) {
			return verdict{
				waits:    fmt.Sprintf("%s is not among the addresses in the status of node %s, which are %s", name, r.node, strings.Join(has, ", ")),
				patience: addressPatience,
			}
		}
		if other := c.otherWith(name, r.node); other != "" {
			return verdict{
				waits:    fmt.Sprintf("%s is also a name or address of node %s: change it there, or, if that node is no more, run: kubectl delete node %s", name, other, other),
				patience: conflictPatience, upon: other,
			}
		}
	}
	return verdict{}
}

// servingNames are the names and addresses asked for, in the form of addresses.
// Those that can be no node's are an error.
func servingNames(r request) (all []string, why string) {
	for _, name := range r.x509.DNSNames {
		// A wildcard, and the dot at the end, would match what they do not equal.
		if faults := validation.IsDNS1123Subdomain(strings.ToLower(name)); len(faults) > 0 {
			return nil, fmt.Sprintf("%q cannot be the name of a node: %s", name, strings.Join(faults, ", "))
		}
		all = append(all, strings.ToLower(name))
	}
	for _, ip := range r.x509.IPAddresses {
		a, ok := netip.AddrFromSlice(ip)
		if a = a.Unmap(); !ok || !a.IsGlobalUnicast() && !a.IsLinkLocalUnicast() {
			return nil, fmt.Sprintf("%s cannot be the address of a node", ip)
		}
		all = append(all, a.String())
	}
	return all, ""
}

// addresses are the names and addresses in a Node's status, in one form.
func addresses(n *corev1.Node) []string {
	var all []string
	for _, a := range n.Status.Addresses {
		name := strings.ToLower(a.Address)
		if ip, err := netip.ParseAddr(name); err == nil {
			name = ip.Unmap().WithZone("").String()
		}
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}
