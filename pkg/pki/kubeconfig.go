package pki

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"
)

// RESTConfig is how the holder of a client certificate reaches the API server
// at host ("https://127.0.0.1:6443"). Nothing in it refers to a file. For a
// loopback host no proxy of the environment is used; for others NO_PROXY rules.
func (p *PKI) RESTConfig(client *Leaf, host string) *rest.Config {
	return &rest.Config{
		Host: host,
		TLSClientConfig: rest.TLSClientConfig{
			CAData:   p.ServerCA.TrustPEM,
			CertData: client.CertPEM,
			KeyData:  client.KeyPEM,
		},
	}
}

// Kubeconfig is what a kubeconfig file of one cluster and one user says.
type Kubeconfig struct {
	// Host is the API server's address: https://host:port.
	Host string
	// CA, Cert and Key are PEM; they are embedded.
	CA, Cert, Key []byte
}

// Kubeconfig is that of the holder of a client certificate.
func (p *PKI) Kubeconfig(client *Leaf, host string) Kubeconfig {
	return Kubeconfig{Host: host, CA: p.ServerCA.TrustPEM, Cert: client.CertPEM, Key: client.KeyPEM}
}

// YAML returns the file's content.
func (k Kubeconfig) YAML() ([]byte, error) {
	const name = "knarr"
	text, err := yaml.Marshal(clientcmdapi.Config{
		Kind:           "Config",
		APIVersion:     "v1",
		CurrentContext: name,
		Clusters: []clientcmdapi.NamedCluster{{Name: name, Cluster: clientcmdapi.Cluster{
			Server: k.Host, CertificateAuthorityData: k.CA,
		}}},
		AuthInfos: []clientcmdapi.NamedAuthInfo{{Name: name, AuthInfo: clientcmdapi.AuthInfo{
			ClientCertificateData: k.Cert, ClientKeyData: k.Key,
		}}},
		Contexts: []clientcmdapi.NamedContext{{Name: name, Context: clientcmdapi.Context{
			Cluster: name, AuthInfo: name,
		}}},
	})
	if err != nil {
		return nil, fmt.Errorf("write kubeconfig as YAML: %w", err)
	}
	return text, nil
}

// WriteKubeconfig makes path hold k, with the given permission bits and group
// (-1 leaves the group alone). Missing folders are made, mode 0755. The file is
// replaced in one step, and only when something in it would change.
func WriteKubeconfig(path string, k Kubeconfig, mode fs.FileMode, gid int) error {
	text, err := k.YAML()
	if err != nil {
		return err
	}
	if holds(path, text, mode, gid) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the folder of the kubeconfig: %w", err)
	}
	return replaceFile(path, text, mode, gid)
}

// WriteSecret makes path hold text, readable by its owner alone, in a folder that
// exists. The file is replaced in one step, and only when something in it would
// change.
func WriteSecret(path string, text []byte) error {
	const mode = 0o600
	if holds(path, text, mode, -1) {
		return nil
	}
	return replaceFile(path, text, mode, -1)
}

func holds(path string, text []byte, mode fs.FileMode, gid int) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != mode {
		return false
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); gid >= 0 && (!ok || int(owner.Gid) != gid) {
		return false
	}
	old, err := os.ReadFile(path)
	return err == nil && bytes.Equal(old, text)
}
