package cluster

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/controlplane/membership"
	"github.com/knarr-dev/knarr/pkg/join"
	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/pkg/token"
	"github.com/knarr-dev/knarr/pkg/version"
)

// fieldManager is who Knarr is to server-side apply.
const fieldManager = "knarr"

// membership decides which machines are nodes.
func (c *Cluster) membership() *membership.Membership {
	return membership.New(membership.Config{
		Client: c.env.Client,
		Needs:  []string{"apiserver-tls"},
		Certificates: func() membership.Certificates {
			p := c.pki()
			return membership.Certificates{ClientCAs: p.ClientCA.Trusted, Serving: p.APIServer.TLS.Leaf, Own: c.certs.own()}
		},
		Log: c.cfg.Log,
	})
}

// publish tells nodes what they have to know of the cluster.
func (c *Cluster) publish(ctx context.Context, ready chan<- struct{}) error {
	client, err := c.env.Client()
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	p := c.pki()
	if err := publishCluster(ctx, client, clusterInfo(c.cfg.Config, p)); err != nil {
		return err
	}
	if err := forgetRetired(ctx, client, p.Retired); err != nil {
		return err
	}
	close(ready)
	<-ctx.Done()
	return nil
}

func clusterInfo(c *config.Config, p *pki.PKI) join.Cluster {
	return join.Cluster{
		Version:          version.Kubernetes,
		ClusterCIDR:      c.Network.ClusterCIDR,
		ServiceCIDR:      c.Network.ServiceCIDR,
		NodeMask:         c.Network.NodeMask,
		ClusterDNS:       c.Network.ClusterDNS,
		ClusterDomain:    c.Network.ClusterDomain,
		FlannelBackend:   c.Network.FlannelBackend,
		DisableKubeProxy: c.Network.DisableKubeProxy,
		Disable:          c.Disable,
		Registry:         c.Registry.Listen(),
		EmbeddedRegistry: c.EmbeddedRegistry,
		ClientCA:         string(p.ClientCA.TrustPEM),
		ServerCA:         string(p.ServerCA.TrustPEM),
	}
}

// publishCluster writes the ConfigMap, unless it says the same already.
func publishCluster(ctx context.Context, client kubernetes.Interface, info join.Cluster) error {
	data, err := info.Data()
	if err != nil {
		return err
	}
	configMaps := client.CoreV1().ConfigMaps(join.ClusterNamespace)
	now, err := configMaps.Get(ctx, join.ClusterName, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("read what nodes are told of the cluster: %w", err)
	}
	if err == nil && maps.Equal(now.Data, data) {
		return nil
	}
	want := corev1ac.ConfigMap(join.ClusterName, join.ClusterNamespace).WithData(data).WithAnnotations(map[string]string{
		"kubernetes.io/description": "What every node has to know of the cluster. Knarr's servers write it at their start.",
	})
	if _, err := configMaps.Apply(ctx, want, metav1.ApplyOptions{FieldManager: fieldManager, Force: true}); err != nil {
		return fmt.Errorf("tell nodes of the cluster: %w", err)
	}
	return nil
}

// keepNodeToken has a token ready by which machines can join.
func (c *Cluster) keepNodeToken(ctx context.Context, ready chan<- struct{}) error {
	client, err := c.env.Client()
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	t := nodeToken{
		path:   filepath.Join(c.cfg.Config.ServerDir(), "node-token"),
		caHash: token.HashCA(c.pki().ServerCA.Cert.Raw),
		given:  c.cfg.Config.Token,
		valid:  hashes(c.pki().ServerCA.Trusted),
		log:    c.cfg.Log,
	}
	if err := t.ensure(ctx, client); err != nil {
		return err
	}
	close(ready)
	<-ctx.Done()
	return nil
}
