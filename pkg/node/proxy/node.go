package proxy

import (
	"fmt"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
)

// node is what is known of this machine's Node.
type node struct {
	complete chan struct{} // closed once it tells what it is needed for
	listed   cache.DoneChecker

	mu      sync.Mutex
	current *v1.Node
	moved   func()
}

// watchNode follows the informer's one Node. Enough says when it is complete,
// also of a nil one.
func watchNode(i cache.SharedIndexInformer, enough func(*v1.Node) bool) (*node, error) {
	n := &node{complete: make(chan struct{})}
	var once sync.Once
	check := func(now *v1.Node) {
		if enough(now) {
			once.Do(func() { close(n.complete) })
		}
	}
	check(nil)
	r, err := i.AddEventHandler(handler[v1.Node]{update: func(_, now *v1.Node) {
		if now == nil {
			return // as upstream does, go on by what it was
		}
		n.set(now)
		check(now)
	}})
	if err != nil {
		return nil, fmt.Errorf("watch the node: %w", err)
	}
	n.listed = r.HasSyncedChecker()
	return n, nil
}

func (n *node) set(now *v1.Node) {
	n.mu.Lock()
	before := zone(n.current)
	n.current = now
	moved := n.moved
	n.mu.Unlock()
	if moved != nil && zone(now) != before {
		moved()
	}
}

// Node returns the Node, or nil while none has been seen. Upstream's health
// server asks it whether load balancers may send traffic here.
func (n *node) Node() *v1.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.current
}

// onTopology has f called whenever the Node's zone changes.
func (n *node) onTopology(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.moved = f
}

// topology returns the labels by which endpoints are chosen.
func (n *node) topology() map[string]string {
	labels := make(map[string]string)
	if z := zone(n.Node()); z != "" {
		labels[v1.LabelTopologyZone] = z
	}
	return labels
}

func zone(n *v1.Node) string {
	if n == nil {
		return ""
	}
	return n.Labels[v1.LabelTopologyZone]
}
