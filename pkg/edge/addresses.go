package edge

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A pod that starts again with no server in reach gets another address, perhaps
// one that another pod had, and nobody writes it into the EndpointSlices. The
// kubelet tries to tell it all the same, by the status of the pod. What it says is
// put into the slices that are told offline, and into the watches of them that are
// open.

// addresses are those of pods, as this node's kubelet said them last.
type addresses struct {
	of map[types.UID]podAddresses
	// changes counts what was said while no server could be reached. It is added
	// to the resourceVersion that slices are told with.
	changes uint64
	open    map[*silence]question // offline watches of slices
}

type podAddresses struct {
	ips []string // none while it has none
	// alone is set if nobody else can have them: not on the host's network.
	alone bool
}

func (p podAddresses) equal(q podAddresses) bool {
	return p.alone == q.alone && slices.Equal(p.ips, q.ips)
}

// in is the pod's address of a family; empty if it has none.
func (p podAddresses) in(family discoveryv1.AddressType) string {
	for _, ip := range p.ips {
		if familyOf(ip) == family {
			return ip
		}
	}
	return ""
}

// saidStatus is what is read of a patch of a pod's status: the difference to the
// pod as the kubelet was told it, which is as it is kept.
type saidStatus struct {
	Metadata struct {
		UID types.UID `json:"uid"`
	} `json:"metadata"`
	Status struct {
		PodIPs json.RawMessage `json:"podIPs"` // null if it had some and has none now
		Order  []corev1.PodIP  `json:"$setElementOrder/podIPs"`
	} `json:"status"`
}

// ips are all addresses that the pod has after the patch; false if it says nothing
// of them. A patch of a list that has changed names all its members in their
// order; one of a list that was empty only has the members.
func (p *saidStatus) ips() ([]string, bool) {
	var ips []string
	for _, a := range p.Status.Order {
		ips = append(ips, a.IP)
	}
	if len(ips) > 0 || len(p.Status.PodIPs) == 0 {
		return ips, len(ips) > 0
	}
	var members []struct {
		IP    string `json:"ip"`
		Patch string `json:"$patch"`
	}
	if json.Unmarshal(p.Status.PodIPs, &members) != nil {
		return nil, false
	}
	for _, a := range members {
		if a.Patch == "" {
			ips = append(ips, a.IP)
		}
	}
	return ips, true
}

// patchStatus has the server take the patch of a pod's status, and looks at it.
func (t *transport) patchStatus(req *http.Request, id objectID) (*http.Response, error) {
	s := t.store
	off := s.Offline() // then it can take long until the request has failed
	if off {
		s.heard(req, id)
	}
	resp, err := t.pass(req)
	if !off && (err != nil || resp.StatusCode < 300 || resp.StatusCode >= http.StatusInternalServerError) {
		s.heard(req, id)
	}
	return resp, err
}

// heard takes in what the kubelet says of a pod, whether a server heard it or not.
func (s *Store) heard(req *http.Request, id objectID) {
	body, err := req.GetBody()
	if err != nil {
		return
	}
	defer body.Close()
	patch, err := io.ReadAll(body)
	off := s.Offline()
	if err != nil || !off && !bytes.Contains(patch, []byte(`"podIPs"`)) {
		return
	}
	var said saidStatus
	if json.Unmarshal(patch, &said) != nil || said.Metadata.UID == "" {
		return
	}
	uid := said.Metadata.UID
	ips, changed := said.ips()
	a := podAddresses{ips: ips}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if pod := s.pod(id); pod != nil && pod.UID == uid {
		a.alone = !pod.Spec.HostNetwork
		if !changed {
			for _, ip := range pod.Status.PodIPs {
				a.ips = append(a.ips, ip.IP)
			}
		}
	} else if !changed {
		return
	}
	s.watchMu.Lock()
	defer s.watchMu.Unlock()
	if was, ok := s.addresses.of[uid]; ok && was.equal(a) {
		return
	}
	moved := append(s.addresses.take(a), uid)
	s.addresses.of[uid] = a
	if !off {
		return
	}
	s.addresses.changes++
	for w, q := range s.addresses.open {
		s.tellAddresses(w, q, moved, a.ips)
	}
}

// take ends what others are known to have of a pod's addresses, and tells whose they
// were: who has one said it last.
func (a *addresses) take(by podAddresses) []types.UID {
	if !by.alone {
		return nil
	}
	var lost []types.UID
	gone := func(ip string) bool { return slices.Contains(by.ips, ip) }
	for uid, p := range a.of {
		if p.alone && slices.ContainsFunc(p.ips, gone) {
			p.ips = slices.DeleteFunc(slices.Clone(p.ips), gone)
			a.of[uid] = p
			lost = append(lost, uid)
		}
	}
	return lost
}

// follow has a watch of slices told of what is said from now on. Hold watchMu.
func (s *Store) follow(q question, w *silence) {
	if w != nil {
		s.addresses.open[w] = q
	}
}

// unfollow ends that.
func (s *Store) unfollow(w *silence) {
	s.watchMu.Lock()
	defer s.watchMu.Unlock()
	delete(s.addresses.open, w)
}

// pod is a pod as it is kept; nil if it is not. Hold mu.
func (s *Store) pod(id objectID) *corev1.Pod {
	o, ok := s.x.objects[id]
	if !ok {
		return nil
	}
	obj, err := s.object(o)
	if err != nil {
		return nil
	}
	pod, _ := obj.(*corev1.Pod)
	return pod
}

// tellAddresses brings into a watch that pods moved, to the addresses or away from
// them. Hold mu and watchMu.
func (s *Store) tellAddresses(w *silence, q question, pods []types.UID, ips []string) {
	sel, ok := s.x.selections[q.selection]
	if !ok {
		return
	}
	members := s.x.members(sel)
	rv := s.addresses.version(s.x.version(sel, members))
	taken := s.addresses.taken()
	var events []byte
	for _, o := range members {
		value, err := s.value(o)
		if err != nil || !mentions(value, pods) && !mentions(value, ips) {
			continue
		}
		text, err := encodeValue(s.addresses.mend(value, rv, taken), q.json)
		if err == nil {
			text, err = encodeEvent("MODIFIED", text, q.json)
		}
		if err != nil {
			s.log.Warn("a pod's new address can't be told", "slice", o.id, "err", err)
			continue
		}
		events = append(events, text...)
	}
	if len(events) == 0 {
		return
	}
	s.offered[q.selection] = rv
	w.tell(events)
}

func mentions[T ~string](value []byte, texts []T) bool {
	return slices.ContainsFunc(texts, func(text T) bool { return bytes.Contains(value, []byte(text)) })
}

// version is the resourceVersion that slices are told with in place of rv, the
// newest that a server told.
func (a *addresses) version(rv string) string {
	n, err := strconv.ParseUint(rv, 10, 64)
	if err != nil || a.changes == 0 {
		return rv
	}
	return strconv.FormatUint(n+a.changes, 10)
}

// mend puts what is known into a slice as it is kept. One that becomes another
// gets the resourceVersion.
func (a *addresses) mend(value []byte, rv string, taken map[string]bool) []byte {
	if len(a.of) == 0 {
		return value
	}
	obj, err := decode(value)
	if err != nil {
		return value
	}
	slice, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok || !a.apply(slice, taken) {
		return value
	}
	slice.ResourceVersion = rv
	text, err := encode(slice, slice.GroupVersionKind(), false)
	if err != nil {
		return value
	}
	return text
}

// taken are the addresses that one pod alone has.
func (a *addresses) taken() map[string]bool {
	taken := map[string]bool{}
	for _, p := range a.of {
		for _, ip := range p.ips {
			taken[ip] = taken[ip] || p.alone
		}
	}
	return taken
}

// apply changes a slice, and tells whether it did. An endpoint whose address now is
// another pod's goes: its own pod has not said yet where it is.
func (a *addresses) apply(slice *discoveryv1.EndpointSlice, taken map[string]bool) bool {
	changed := false
	slice.Endpoints = slices.DeleteFunc(slice.Endpoints, func(e discoveryv1.Endpoint) bool {
		if e.TargetRef == nil || e.TargetRef.Kind != "Pod" || len(e.Addresses) == 0 {
			return false
		}
		ip := a.of[e.TargetRef.UID].in(slice.AddressType)
		if ip == "" {
			changed = changed || taken[e.Addresses[0]]
			return taken[e.Addresses[0]]
		}
		if e.Addresses[0] != ip {
			e.Addresses[0], changed = ip, true
		}
		return false
	})
	return changed
}

func familyOf(ip string) discoveryv1.AddressType {
	addr, err := netip.ParseAddr(ip)
	switch {
	case err != nil:
		return ""
	case addr.Is4():
		return discoveryv1.AddressTypeIPv4
	}
	return discoveryv1.AddressTypeIPv6
}

// forgetPods drops the addresses of pods that are not kept any more.
func (s *Store) forgetPods(kept map[types.UID]bool) {
	s.watchMu.Lock()
	defer s.watchMu.Unlock()
	for uid := range s.addresses.of {
		if !kept[uid] {
			delete(s.addresses.of, uid)
		}
	}
}
