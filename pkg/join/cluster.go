// Package join is what a machine and the servers of a cluster say to each other
// until the machine is a node: what the servers publish, and how an agent learns
// whom to trust, what it joins, and who it is.
package join

import (
	"encoding/json"
	"fmt"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ClusterNamespace and ClusterName are the ConfigMap in which servers publish
// [Cluster]. Bootstrap tokens and nodes may read it.
const (
	ClusterNamespace = metav1.NamespaceSystem
	ClusterName      = "knarr-cluster"
	clusterKey       = "cluster.json"
)

// AuthorityAnnotation is on a Node while authorities are being replaced: the hash of
// the new one of servers, once the node trusts it and has certificates of the new
// ones.
const AuthorityAnnotation = "knarr.dev/authority"

// Cluster is what every node has to know and to do alike.
type Cluster struct {
	// Version is the servers' Kubernetes version: v1.36.4+knarr1.
	Version string `json:"version"`
	// ClusterCIDR and ServiceCIDR are the ranges of pods and Services.
	ClusterCIDR netip.Prefix `json:"clusterCIDR"`
	ServiceCIDR netip.Prefix `json:"serviceCIDR"`
	// NodeMask is the length of the prefix that each node gets of ClusterCIDR;
	// 0 is upstream's default.
	NodeMask int `json:"nodeMask,omitempty"`
	// ClusterDNS and ClusterDomain are what pods find in their resolv.conf.
	ClusterDNS    netip.Addr `json:"clusterDNS"`
	ClusterDomain string     `json:"clusterDomain"`
	// FlannelBackend is vxlan, host-gw or none.
	FlannelBackend string `json:"flannelBackend"`
	// DisableKubeProxy leaves Services to another program.
	DisableKubeProxy bool `json:"disableKubeProxy,omitempty"`
	// Disable names the add-ons that no node starts.
	Disable []string `json:"disable,omitempty"`
	// Registry is the loopback address at which every node has the registry that is
	// in the servers' process; empty if there is none.
	Registry string `json:"registry,omitempty"`
	// EmbeddedRegistry has nodes pull images from each other.
	EmbeddedRegistry bool `json:"embeddedRegistry,omitempty"`
	// ClientCA is the authority, PEM, of those who may ask a kubelet.
	ClientCA string `json:"clientCA"`
	// ServerCA is the authority, PEM, of the API servers. While one replaces another
	// both hold two, the new one first. It is empty when an older server tells it.
	ServerCA string `json:"serverCA,omitempty"`
}

// Data is the ConfigMap's content.
func (c Cluster) Data() (map[string]string, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode what nodes are told of the cluster: %w", err)
	}
	return map[string]string{clusterKey: string(text)}, nil
}

// ParseCluster reads the ConfigMap's content. Keys of later versions are left
// unread.
func ParseCluster(data map[string]string) (Cluster, error) {
	var c Cluster
	text, ok := data[clusterKey]
	if !ok {
		return c, fmt.Errorf("ConfigMap %s/%s has no key %s", ClusterNamespace, ClusterName, clusterKey)
	}
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return c, fmt.Errorf("read %s of ConfigMap %s/%s: %w", clusterKey, ClusterNamespace, ClusterName, err)
	}
	if !c.ClusterCIDR.IsValid() || !c.ServiceCIDR.IsValid() || !c.ClusterDNS.IsValid() {
		return c, fmt.Errorf("ConfigMap %s/%s lacks an address range", ClusterNamespace, ClusterName)
	}
	return c, nil
}
