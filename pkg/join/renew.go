package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/certificate"

	"github.com/knarr-dev/knarr/pkg/component"
)

// Renewer is a component that renews the node's client certificate when seven
// to nine tenths of its life are over. Clients of [Identity.RESTConfig] take the
// new one and close connections made with the old.
func (id *Identity) Renewer(access func() *rest.Config) component.Component {
	return component.Func("node-certificate", []string{"pki"}, func(ctx context.Context, ready chan<- struct{}) error {
		m, err := certificate.NewManager(&certificate.Config{
			ClientsetFn: func(*tls.Certificate) (kubernetes.Interface, error) {
				return kubernetes.NewForConfig(access())
			},
			GetTemplate:      func() *x509.CertificateRequest { return &x509.CertificateRequest{Subject: subject(id.Node)} },
			SignerName:       certificatesv1.KubeAPIServerClientKubeletSignerName,
			Usages:           usages(),
			CertificateStore: id.store,
			Name:             "node",
			Ctx:              &ctx,
		})
		if err != nil {
			return fmt.Errorf("watch over the node's certificate: %w", err)
		}
		m.Start()
		defer m.Stop()
		close(ready)
		<-ctx.Done()
		return nil
	})
}
