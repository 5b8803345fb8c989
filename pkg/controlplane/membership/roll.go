package membership

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// roll is what the records say, in the form that each request of a node is
// compared with.
type roll struct {
	mu      sync.RWMutex
	members map[string]*member // by the node's name
}

// member is one node. All but in is guarded by the roll's lock.
type member struct {
	record types.UID // of the ConfigMap
	keys   map[fingerprint]bool
	certs  map[fingerprint]bool
	// seen are certificates that were verified and are not in the record yet.
	seen map[fingerprint]credential
	// in ends when the node has left.
	in    context.Context
	leave context.CancelFunc
}

func newRoll() *roll { return &roll{members: make(map[string]*member)} }

// set takes over what a record says.
func (r *roll) set(uid types.UID, rec record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.members[rec.Node]
	if m != nil && m.record != uid { // deleted and made anew, for another machine
		m.leave()
		m = nil
	}
	if m == nil {
		m = &member{record: uid, seen: make(map[fingerprint]credential)}
		m.in, m.leave = context.WithCancel(context.Background())
		r.members[rec.Node] = m
	}
	m.keys, m.certs = make(map[fingerprint]bool), make(map[fingerprint]bool)
	for _, c := range rec.Credentials {
		if key, err := parseFingerprint(c.Key); err == nil { // readRecord has checked it
			m.keys[key] = true
		}
		if id, err := parseFingerprint(strings.TrimPrefix(c.ID, credentialPrefix)); err == nil {
			m.certs[id] = true
			delete(m.seen, id)
		}
	}
}

// remove is for a record that has gone; that of a later machine stays.
func (r *roll) remove(node string, uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.members[node]; m != nil && m.record == uid {
		m.leave()
		delete(r.members, node)
	}
}

// close ends what the members have open.
func (r *roll) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.members {
		m.leave()
	}
}

// find returns the member of that name, nil if there is none, and whether the
// certificate is known to be its.
func (r *roll) find(node string, cert fingerprint) (m *member, known bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	m = r.members[node]
	if m == nil {
		return nil, false
	}
	_, seen := m.seen[cert]
	return m, seen || m.certs[cert]
}

// hasKey tells whether the member is known by that public key.
func (r *roll) hasKey(m *member, key fingerprint) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return m.keys[key]
}

// knows tells whether the node's holder of that key, in hex, is let in. A record
// is in the informer's store a moment before it is here.
func (r *roll) knows(node, key string) bool {
	k, err := parseFingerprint(key)
	if err != nil {
		return false
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	m := r.members[node]
	return m != nil && m.keys[k]
}

// see takes note of a certificate that was verified.
func (r *roll) see(m *member, cert fingerprint, c credential) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !m.certs[cert] {
		m.seen[cert] = c
	}
}

// unrecorded are the certificates that a node's record lacks, in a fixed order.
func (r *roll) unrecorded(node string) []credential {
	r.mu.RLock()
	defer r.mu.RUnlock()
	m := r.members[node]
	if m == nil {
		return nil
	}
	return slices.SortedFunc(maps.Values(m.seen), func(a, b credential) int { return strings.Compare(a.ID, b.ID) })
}
