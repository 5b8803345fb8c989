package join

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/certificate"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/klog/v2"

	"github.com/knarr-dev/knarr/pkg/dial"
	"github.com/knarr-dev/knarr/pkg/pki"
)

// Identity is what a machine keeps of a cluster that it has joined: whom to
// trust, what the cluster is like, and the node's key and certificate.
type Identity struct {
	// Node is the node's name.
	Node string
	// Cluster is what the servers said last.
	Cluster Cluster

	dir   string
	store certificate.FileStore
}

// The files in an identity's folder, beside those of the certificate store.
const (
	caFile       = "server-ca.crt"
	clientCAFile = "client-ca.crt"
	clusterFile  = "cluster.json"
	nodeFile     = "node-name"
	keyFile      = "node.key"
	pairName     = "node-client"
)

// Load returns the identity in a folder, with an error that is fs.ErrNotExist
// where this machine has not joined, or has not finished to.
func Load(dir string) (*Identity, error) {
	id, err := open(dir)
	if err != nil {
		return nil, err
	}
	name, err := os.ReadFile(id.path(nodeFile))
	if err != nil {
		return nil, fmt.Errorf("read the name that this node joined by: %w", err)
	}
	id.Node = string(name)
	text, err := os.ReadFile(id.path(clusterFile))
	if err != nil {
		return nil, fmt.Errorf("read what is known of the cluster: %w", err)
	}
	if err := json.Unmarshal(text, &id.Cluster); err != nil {
		return nil, fmt.Errorf("read what is known of the cluster: %s: %w; restore it, or remove the folder and join anew with a token", id.path(clusterFile), err)
	}
	for _, f := range []string{caFile, clientCAFile} {
		if _, err := os.Stat(id.path(f)); err != nil {
			return nil, fmt.Errorf("look for authority: %w", err)
		}
	}
	if _, err := os.Stat(id.store.CurrentPath()); err != nil {
		return nil, fmt.Errorf("look for the node's certificate: %w", err)
	}
	return id, nil
}

func open(dir string) (*Identity, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the node's identity: %w", err)
	}
	store, err := certificate.NewFileStoreWithLogger(klog.Background().V(5), pairName, dir, dir, "", "")
	if err != nil {
		return nil, fmt.Errorf("open the store of the node's certificate: %w", err)
	}
	return &Identity{dir: dir, store: store}, nil
}

func (id *Identity) path(file string) string { return filepath.Join(id.dir, file) }

// CA and ClientCA are the files of the authorities of the API servers, and of
// those who may ask this node's kubelet.
func (id *Identity) CA() string       { return id.path(caFile) }
func (id *Identity) ClientCA() string { return id.path(clientCAFile) }

// Certificate is the node's, which may have expired.
func (id *Identity) Certificate() (*x509.Certificate, error) {
	pair, err := id.store.Current()
	if err != nil {
		return nil, fmt.Errorf("read the node's certificate: %w", err)
	}
	return pair.Leaf, nil
}

// Pair is the node's certificate with its key, as it is now.
func (id *Identity) Pair() (*tls.Certificate, error) {
	pair, err := id.store.Current()
	if err != nil {
		return nil, fmt.Errorf("read the node's certificate: %w", err)
	}
	return pair, nil
}

// RESTConfig is how the node asks an API server, each time with the certificate
// that is current then. dialer decides which server answers; address is what
// errors call it.
func (id *Identity) RESTConfig(address string, dialer dial.Func) *rest.Config {
	return &rest.Config{
		Host: "https://" + address,
		Dial: dialer,
		TLSClientConfig: rest.TLSClientConfig{
			ServerName: apiServerName,
			CAFile:     id.CA(),
			CertFile:   id.store.CurrentPath(),
			KeyFile:    id.store.CurrentPath(),
		},
	}
}

// TLS is how the node greets an API server, each time with the certificate that
// is current then.
func (id *Identity) TLS() (*tls.Config, error) {
	text, err := os.ReadFile(id.CA())
	if err != nil {
		return nil, fmt.Errorf("read the API servers' authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("read the API servers' authority: %s holds no certificate; restore it, or remove the folder and join anew with a token", id.CA())
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		RootCAs:    roots,
		ServerName: apiServerName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return id.store.Current()
		},
	}, nil
}

// Forget removes an identity, so that the machine can join anew, with a token.
func Forget(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("forget the node's identity: %w", err)
	}
	return nil
}

// key is the node's present one, by which it may prove its name; else one that
// is kept for the next attempt, should this one fail.
func (id *Identity) key() (*ecdsa.PrivateKey, error) {
	if pair, err := id.store.Current(); err == nil {
		if key, ok := pair.PrivateKey.(*ecdsa.PrivateKey); ok {
			return key, nil
		}
	}
	text, err := os.ReadFile(id.path(keyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return id.makeKey()
	}
	if err != nil {
		return nil, fmt.Errorf("read the node's key: %w", err)
	}
	key, err := keyutil.ParsePrivateKeyPEM(text)
	if ec, ok := key.(*ecdsa.PrivateKey); err == nil && ok {
		return ec, nil
	}
	// Torn by a crash before it was ever used.
	return id.makeKey()
}

// Prepare makes the key by which a machine that has not joined yet will, and
// returns the public one, as [x509.ParsePKIXPublicKey] takes it.
func Prepare(dir string) ([]byte, error) {
	id, err := open(dir)
	if err != nil {
		return nil, err
	}
	key, err := id.key()
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode the node's key: %w", err)
	}
	return public, nil
}

func (id *Identity) makeKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the node's key: %w", err)
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return key, pki.WriteSecret(id.path(keyFile), text)
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	text, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return nil, fmt.Errorf("encode the node's key: %w", err)
	}
	return text, nil
}

// keep writes everything, what makes Load succeed last.
func (id *Identity) keep(ca *x509.Certificate, certPEM []byte, key *ecdsa.PrivateKey) error {
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	if err := pki.WriteSecret(id.path(caFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})); err != nil {
		return err
	}
	if err := id.keepCluster(id.Cluster); err != nil {
		return err
	}
	if _, err := id.store.Update(certPEM, keyPEM); err != nil {
		return fmt.Errorf("keep the node's certificate: %w", err)
	}
	if err := pki.WriteSecret(id.path(nodeFile), []byte(id.Node)); err != nil {
		return err
	}
	// It is in the pair now.
	if err := os.Remove(id.path(keyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the key of the request: %w", err)
	}
	return nil
}

func (id *Identity) keepCluster(c Cluster) error {
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("keep what is known of the cluster: %w", err)
	}
	if c.ServerCA != "" {
		if err := pki.WriteSecret(id.path(caFile), []byte(c.ServerCA)); err != nil {
			return err
		}
	}
	if err := pki.WriteSecret(id.path(clientCAFile), []byte(c.ClientCA)); err != nil {
		return err
	}
	if err := pki.WriteSecret(id.path(clusterFile), append(text, '\n')); err != nil {
		return err
	}
	id.Cluster = c
	return nil
}

// valid tells whether the node's certificate can be used at that time.
func (id *Identity) valid(now time.Time) bool {
	c, err := id.Certificate()
	return err == nil && now.Before(c.NotAfter)
}

// ServingCertificate is the one that a kubelet keeps in its folder.
func ServingCertificate(dir string) (*x509.Certificate, error) {
	text, err := os.ReadFile(filepath.Join(dir, servingFile))
	if err != nil {
		return nil, fmt.Errorf("read the kubelet's certificate: %w", err)
	}
	certs, err := certutil.ParseCertsPEM(text)
	if err != nil {
		return nil, fmt.Errorf("read the kubelet's certificate: %w", err)
	}
	return certs[0], nil
}
