package kubelet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/kubernetes/pkg/features"
	upstream "k8s.io/kubernetes/pkg/kubelet"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/certificate"
)

// errNoServingCertificate is for who connects before the cluster has signed one.
var errNoServingCertificate = errors.New("the cluster has not signed a serving certificate for this kubelet yet")

// bootstrapServing has the kubelet serve with a certificate that it asks the
// cluster for. What is returned ends that.
//
// Left to itself the kubelet does not know its addresses when it would ask, and
// looks again a second later: for that second a node that is ready shows no logs.
// Asked with those it is going to have, the request is there before its Node is.
func (k *Kubelet) bootstrapServing(deps *upstream.Dependencies, kc *kubeletconfig.KubeletConfiguration) (stop func(), err error) {
	if !kc.ServerTLSBootstrap || !utilfeature.DefaultFeatureGate.Enabled(features.RotateKubeletServerCertificate) {
		return func() {}, nil
	}
	var made *upstream.Kubelet
	addresses := func() []corev1.NodeAddress {
		n, err := made.GetNode(context.Background())
		if err != nil {
			return k.addresses()
		}
		return k.current(n.Status.Addresses)
	}
	manager, err := certificate.NewKubeletServerCertificateManager(deps.KubeClient, kc, types.NodeName(k.cfg.NodeName), addresses, k.cfg.CertDir)
	if err != nil {
		return nil, fmt.Errorf("watch over the serving certificate of the kubelet: %w", err)
	}
	// Given no options upstream takes the configuration as it is. It checks who
	// connects where it authenticates him.
	options := deps.TLSOptions
	deps.TLSOptions = nil
	deps.TLSConfig = &tls.Config{
		MinVersion: options.MinVersion, CipherSuites: options.CipherSuites, CurvePreferences: options.CurvePreferences,
		ClientAuth: tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if c := manager.Current(); c != nil {
				return c, nil
			}
			return nil, errNoServingCertificate
		},
	}
	deps.Options = append(deps.Options, func(u *upstream.Kubelet) {
		made = u
		manager.Start()
	})
	return manager.Stop, nil
}

// current is what the Node has, which may be more than the kubelet says, unless that
// is of another address, which the machine had before.
func (k *Kubelet) current(has []corev1.NodeAddress) []corev1.NodeAddress {
	for _, ip := range k.cfg.NodeIPs {
		if !slices.Contains(has, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip.String()}) {
			return k.addresses()
		}
	}
	return has
}

// addresses are what the kubelet is going to say of itself in its Node.
func (k *Kubelet) addresses() []corev1.NodeAddress {
	all := []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: k.cfg.NodeName}}
	for _, ip := range k.cfg.NodeIPs {
		all = append(all, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip.String()})
	}
	for _, ip := range k.cfg.ExternalIPs {
		all = append(all, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: ip.String()})
	}
	return all
}
