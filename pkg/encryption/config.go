// Package encryption has Secrets encrypted in the store: it keeps the API server's
// EncryptionConfiguration, and changes it while the server runs.
//
// Keys are of secretbox (XSalsa20 and Poly1305). A file that says something else is
// the user's own, and left alone.
package encryption

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"sigs.k8s.io/yaml"

	"github.com/knarr-dev/knarr/pkg/pki"
)

// Path is the configuration's in a server's folder.
func Path(serverDir string) string { return filepath.Join(serverDir, "encryption-config.yaml") }

// LoadedPath is where a running API server tells the hash of the configuration
// that it works by; see LoadedHash.
func LoadedPath(serverDir string) string { return filepath.Join(serverDir, "run", "encryption-loaded") }

// Config is what the file says.
type Config struct {
	// Enabled has values encrypted, with the first key, when they are written.
	Enabled bool
	// Keys open what is encrypted.
	Keys []Key
}

// Key is one of secretbox.
type Key struct {
	// Name stands before each value that the key encrypted.
	Name   string
	secret string // base64
}

// keySize is secretbox's, in bytes.
const keySize = 32

// NewKey makes a key with a name that no other of the configuration has.
func (c Config) NewKey() (Key, error) {
	secret := make([]byte, keySize)
	if _, err := rand.Read(secret); err != nil {
		return Key{}, fmt.Errorf("make a key for Secrets: %w", err)
	}
	last := 0
	for _, k := range c.Keys {
		n, _ := strconv.Atoi(strings.TrimPrefix(k.Name, "key"))
		last = max(last, n)
	}
	return Key{Name: fmt.Sprintf("key%d", last+1), secret: base64.StdEncoding.EncodeToString(secret)}, nil
}

// resources are what is encrypted.
var resources = []string{"secrets"}

// ErrForeign is told of a configuration that is not of our making.
var ErrForeign = errors.New("it is not one that knarr keeps, which has secrets alone, and the providers secretbox and identity")

// Load reads the file. It fails with ErrForeign if that is the user's own.
func Load(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read encryption configuration: %w", err)
	}
	c, err := parse(text)
	if err != nil {
		return Config{}, fmt.Errorf("read encryption configuration %s: %w", path, err)
	}
	return c, nil
}

func parse(text []byte) (Config, error) {
	var in apiserverv1.EncryptionConfiguration
	if err := yaml.UnmarshalStrict(text, &in); err != nil {
		return Config{}, err
	}
	if in.Kind != "EncryptionConfiguration" || len(in.Resources) != 1 || !slices.Equal(in.Resources[0].Resources, resources) {
		return Config{}, ErrForeign
	}
	var c Config
	for n, p := range in.Resources[0].Providers {
		switch {
		case p.Identity != nil:
		case p.Secretbox != nil && c.Keys == nil && len(p.Secretbox.Keys) > 0:
			c.Enabled = n == 0
			for _, k := range p.Secretbox.Keys {
				if secret, err := base64.StdEncoding.DecodeString(k.Secret); err != nil || len(secret) != keySize {
					return Config{}, fmt.Errorf("key %q is damaged: restore the file from a backup", k.Name)
				}
				c.Keys = append(c.Keys, Key{k.Name, k.Secret})
			}
		default:
			return Config{}, ErrForeign
		}
	}
	return c, nil
}

// encode writes the first provider for what is written from now on; all are for
// reading.
func (c Config) encode() ([]byte, error) {
	identity := apiserverv1.ProviderConfiguration{Identity: &apiserverv1.IdentityConfiguration{}}
	providers := []apiserverv1.ProviderConfiguration{identity}
	if len(c.Keys) > 0 {
		box := &apiserverv1.SecretboxConfiguration{}
		for _, k := range c.Keys {
			box.Keys = append(box.Keys, apiserverv1.Key{Name: k.Name, Secret: k.secret})
		}
		providers = append(providers, apiserverv1.ProviderConfiguration{Secretbox: box})
	}
	if c.Enabled {
		slices.Reverse(providers)
	}
	return yaml.Marshal(apiserverv1.EncryptionConfiguration{
		TypeMeta:  metav1.TypeMeta{APIVersion: apiserverv1.SchemeGroupVersion.String(), Kind: "EncryptionConfiguration"},
		Resources: []apiserverv1.ResourceConfiguration{{Resources: resources, Providers: providers}},
	})
}

// save makes path hold the configuration, in one step, with mode 0600.
func (c Config) save(path string) error {
	text, err := c.encode()
	if err != nil {
		return fmt.Errorf("encode encryption configuration: %w", err)
	}
	if err := pki.WriteSecret(path, text); err != nil {
		return fmt.Errorf("write encryption configuration: %w", err)
	}
	return nil
}

// Ensure makes the configuration of a server that has none: with a key if encrypt
// says so, which is for a new cluster. Without one, values are written as they
// always were, and can be encrypted later with no restart.
func Ensure(path string, encrypt bool) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return fmt.Errorf("find encryption configuration: %w", err)
		}
		return nil
	}
	var c Config
	if encrypt {
		k, err := c.NewKey()
		if err != nil {
			return err
		}
		c = Config{Enabled: true, Keys: []Key{k}}
	}
	return c.save(path)
}

// writesWith is the name of the key that values are encrypted with when they are
// written, or empty.
func (c Config) writesWith() string {
	if !c.Enabled {
		return ""
	}
	return c.Keys[0].Name
}

const (
	encrypted = "k8s:enc:"
	secretbox = encrypted + "secretbox:v1:"
)

// keyOf tells what a stored value is encrypted with: the name of one of our keys, "" for
// none, or the provider's where that is not secretbox.
func keyOf(value []byte) string {
	if !bytes.HasPrefix(value, []byte(encrypted)) {
		return ""
	}
	head := string(value[:min(len(value), 200)])
	if rest, ours := strings.CutPrefix(head, secretbox); ours {
		name, _, _ := strings.Cut(rest, ":")
		return name
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(head, encrypted), ":")
	return "provider " + name
}
