package join

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/kubernetes"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/certificate/csr"

	"github.com/knarr-dev/knarr/pkg/token"
)

// servingFile is the kubelet's present certificate in its folder.
const servingFile = "kubelet-server-current.pem"

// check looks whether the authorities can be trusted at all: who kept others would
// not find back.
func (c Cluster) check() error {
	for what, text := range map[string]string{"of clients": c.ClientCA, "of servers": c.ServerCA} {
		if text == "" && what == "of servers" {
			continue
		}
		if _, err := certutil.ParseCertsPEM([]byte(text)); err != nil {
			return fmt.Errorf("read the authority %s in ConfigMap %s/%s: %w", what, ClusterNamespace, ClusterName, err)
		}
	}
	return nil
}

// unlike tells whether the kept authority of servers is another than text.
func (id *Identity) unlike(text string) bool {
	have, err := os.ReadFile(id.CA())
	return err != nil || !bytes.Equal(bytes.TrimSpace(have), bytes.TrimSpace([]byte(text)))
}

// newest is the first certificate of a file: the authority that signs now.
func newest(path string) (c *x509.Certificate, several bool, err error) {
	all, err := certutil.CertsFromFile(path)
	if err != nil {
		return nil, false, fmt.Errorf("read authority: %w", err)
	}
	return all[0], len(all) > 1, nil
}

// Follow has the node's certificate signed by the newest authority of clients, and
// tells whether it was not.
func (id *Identity) Follow(ctx context.Context, client kubernetes.Interface) (renewed bool, err error) {
	by, _, err := newest(id.ClientCA())
	if err != nil {
		return false, err
	}
	own, err := id.Certificate()
	if err != nil {
		return false, err
	}
	if own.CheckSignatureFrom(by) == nil {
		return false, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return false, fmt.Errorf("make the node's key: %w", err)
	}
	request, err := requestPEM(id.Node, key)
	if err != nil {
		return false, err
	}
	name, uid, err := csr.RequestCertificateWithContext(ctx, client, request, "", certificatesv1.KubeAPIServerClientKubeletSignerName, nil, usages(), key)
	if err != nil {
		return false, fmt.Errorf("ask for a certificate of the new authority: %w", err)
	}
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cert, err := csr.WaitForCertificate(wait, client, name, uid)
	if err != nil {
		return false, fmt.Errorf("wait for a certificate of the new authority: %w", err)
	}
	got, err := certutil.ParseCertsPEM(cert)
	if err != nil {
		return false, fmt.Errorf("read the certificate of the new authority: %w", err)
	}
	if err := got[0].CheckSignatureFrom(by); err != nil {
		return false, fmt.Errorf("the server has not signed by its new authority yet: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return false, err
	}
	if _, err := id.store.Update(cert, keyPEM); err != nil {
		return false, fmt.Errorf("keep the node's certificate: %w", err)
	}
	return true, nil
}

// Followed is the hash of the new authority of servers while one replaces another,
// once the node's certificate is of the new one of clients; else nothing. Before it,
// a serving certificate of the old one is taken from the kubelet, in whose folder it
// is, so that the kubelet asks for another one at its start.
func (id *Identity) Followed(kubelet string) (string, error) {
	by, several, err := newest(id.CA())
	if err != nil {
		return "", err
	}
	if !several {
		return "", nil
	}
	serving, err := ServingCertificate(kubelet)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err == nil && serving.CheckSignatureFrom(by) != nil {
		if err := os.Remove(filepath.Join(kubelet, servingFile)); err != nil {
			return "", fmt.Errorf("remove a certificate of the old authority: %w", err)
		}
	}
	signer, _, err := newest(id.ClientCA())
	if err != nil {
		return "", err
	}
	own, err := id.Certificate()
	if err != nil {
		return "", err
	}
	if own.CheckSignatureFrom(signer) != nil {
		return "", nil // it is still to be asked for
	}
	return token.HashCA(by.Raw), nil
}
