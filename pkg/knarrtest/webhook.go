package knarrtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/util/keyutil"
)

// Webhook is where the API server calls a test's webhooks, and with which certificate
// they have to answer. The fields are those of controller-runtime's webhook.Options.
type Webhook struct {
	// Host is 127.0.0.1.
	Host string
	// Port was free when the control plane started.
	Port int
	// CertDir has tls.crt and tls.key. It goes with the control plane.
	CertDir string
	// CA is the certificate, PEM, that the API server trusts.
	CA []byte
}

// newWebhook finds a port and makes a certificate that signs itself.
func newWebhook() (Webhook, error) {
	w := Webhook{Host: "127.0.0.1"}
	lis, err := net.Listen("tcp", net.JoinHostPort(w.Host, "0"))
	if err != nil {
		return w, fmt.Errorf("find a port for webhooks: %w", err)
	}
	w.Port = lis.Addr().(*net.TCPAddr).Port
	if err := lis.Close(); err != nil {
		return w, fmt.Errorf("find a port for webhooks: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return w, fmt.Errorf("make a key for webhooks: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "knarrtest webhook"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.ParseIP(w.Host)},
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return w, fmt.Errorf("make a certificate for webhooks: %w", err)
	}
	w.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return w, fmt.Errorf("make a key for webhooks: %w", err)
	}
	if w.CertDir, err = os.MkdirTemp("", "knarrtest-webhook-"); err != nil {
		return w, fmt.Errorf("make a folder for the webhooks' certificate: %w", err)
	}
	for name, data := range map[string][]byte{"tls.crt": w.CA, "tls.key": keyPEM} {
		if err := os.WriteFile(filepath.Join(w.CertDir, name), data, 0o600); err != nil {
			return w, fmt.Errorf("write the webhooks' certificate: %w", err)
		}
	}
	return w, nil
}

// redirect has an object's webhooks lead here where they lead to a Service.
func (w Webhook) redirect(u *unstructured.Unstructured) error {
	if u.GetKind() == "CustomResourceDefinition" {
		if !convertsByWebhook(u) {
			return nil
		}
		cfg, _, err := unstructured.NestedMap(u.Object, "spec", "conversion", "webhook", "clientConfig")
		if err == nil {
			err = unstructured.SetNestedMap(u.Object, w.clientConfig(cfg, "/convert"), "spec", "conversion", "webhook", "clientConfig")
		}
		if err != nil {
			return fmt.Errorf("redirect the conversion of %s: %w", u.GetName(), err)
		}
		return nil
	}
	hooks, _, err := unstructured.NestedSlice(u.Object, "webhooks")
	if err != nil {
		return fmt.Errorf("redirect webhooks of %s: %w", u.GetName(), err)
	}
	for _, h := range hooks {
		hook, ok := h.(map[string]any)
		if !ok {
			return fmt.Errorf("redirect webhooks of %s: one is no object", u.GetName())
		}
		cfg, _, err := unstructured.NestedMap(hook, "clientConfig")
		if err != nil {
			return fmt.Errorf("redirect webhooks of %s: %w", u.GetName(), err)
		}
		hook["clientConfig"] = w.clientConfig(cfg, "/")
	}
	if err := unstructured.SetNestedSlice(u.Object, hooks, "webhooks"); err != nil {
		return fmt.Errorf("redirect webhooks of %s: %w", u.GetName(), err)
	}
	return nil
}

// clientConfig is cfg, led here at the path of its Service. One with a URL of its own
// is left as it is.
func (w Webhook) clientConfig(cfg map[string]any, path string) map[string]any {
	if _, ok := cfg["url"]; ok {
		return cfg
	}
	if own, ok, err := unstructured.NestedString(cfg, "service", "path"); ok && err == nil {
		path = own
	}
	at := url.URL{Scheme: "https", Host: net.JoinHostPort(w.Host, strconv.Itoa(w.Port)), Path: path}
	return map[string]any{"url": at.String(), "caBundle": base64.StdEncoding.EncodeToString(w.CA)}
}

func convertsByWebhook(crd *unstructured.Unstructured) bool {
	strategy, _, err := unstructured.NestedString(crd.Object, "spec", "conversion", "strategy")
	return err == nil && strategy == "Webhook"
}
