package pki

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	clientcmdapi "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"

	"github.com/knarr-dev/knarr/pkg/durable"
)

// Entry is a certificate in a file.
type Entry struct {
	File    string `json:"file" yaml:"file"`
	Subject string `json:"subject" yaml:"subject"`
	Issuer  string `json:"issuer" yaml:"issuer"`
	// Use is authority, server, client or "server, client".
	Use       string    `json:"use" yaml:"use"`
	NotBefore time.Time `json:"notBefore" yaml:"notBefore"`
	NotAfter  time.Time `json:"notAfter" yaml:"notAfter"`
	// RenewAt is when a running server renews it; zero for what it does not.
	RenewAt time.Time `json:"renewAt,omitzero" yaml:"renewAt,omitempty"`
	// DaysLeft are whole days until NotAfter, negative once it is over.
	DaysLeft int `json:"daysLeft" yaml:"daysLeft"`
	// State is valid, due (a running server renews it at once), expired or "not
	// yet valid".
	State string `json:"state" yaml:"state"`
}

// The states of a certificate.
const (
	StateValid    = "valid"
	StateDue      = "due"
	StateExpired  = "expired"
	StateTooEarly = "not yet valid"
)

// Inventory lists every certificate in the folders that there are, sorted by
// file; own may be empty. Files with no certificate are left out; one that is damaged is in the
// error, with what could be read beside it. Leaves in own are those that a
// running server renews.
func Inventory(now time.Time, own string, others ...string) ([]Entry, error) {
	var all []Entry
	var errs []error
	for _, dir := range append([]string{own}, others...) {
		if dir == "" {
			continue
		}
		files, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("list certificates: %w", err))
			continue
		}
		for _, f := range files {
			if ext := filepath.Ext(f.Name()); f.IsDir() || strings.HasPrefix(f.Name(), ".") || ext != ".crt" && ext != ".pem" || strings.HasSuffix(f.Name(), trustSuffix) {
				continue
			}
			path := filepath.Join(dir, f.Name())
			text, err := os.ReadFile(path)
			if err != nil {
				errs = append(errs, fmt.Errorf("list certificates: %w", err))
				continue
			}
			found, err := entries(now, path, text, dir == own)
			all, errs = append(all, found...), append(errs, err)
		}
	}
	return all, errors.Join(errs...)
}

// InKubeconfig lists the client certificates that a kubeconfig file holds. It is
// empty for a file that does not exist.
func InKubeconfig(now time.Time, path string) ([]Entry, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list certificates: %w", err)
	}
	var k clientcmdapi.Config
	if err := yaml.Unmarshal(text, &k); err != nil {
		return nil, fmt.Errorf("list certificates: %s is no kubeconfig: %w", path, err)
	}
	var all []Entry
	for _, user := range k.AuthInfos {
		found, err := entries(now, path, user.AuthInfo.ClientCertificateData, true)
		if err != nil {
			return all, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// entries are the certificates in a file: of a leaf's file the leaf alone, which
// is the first.
func entries(now time.Time, path string, text []byte, own bool) ([]Entry, error) {
	var found []Entry
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return found, nil
		}
		if block.Type != certBlock {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return found, fmt.Errorf("list certificates: %s is damaged: %w", path, err)
		}
		if c.IsCA && len(found) > 0 && found[0].Use != useAuthority {
			continue // behind a leaf; it has a file of its own
		}
		found = append(found, describe(now, path, c, own))
	}
}

const useAuthority = "authority"

func describe(now time.Time, path string, c *x509.Certificate, own bool) Entry {
	e := Entry{
		File: path, Subject: c.Subject.String(), Issuer: c.Issuer.String(), Use: use(c),
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, State: StateValid,
		DaysLeft: int(c.NotAfter.Sub(now).Hours() / 24),
	}
	if own && !c.IsCA {
		e.RenewAt = RenewAt(c)
	}
	switch {
	case now.After(c.NotAfter):
		e.State, e.DaysLeft = StateExpired, e.DaysLeft-1
	case now.Before(c.NotBefore):
		e.State = StateTooEarly
	case !e.RenewAt.IsZero() && !now.Before(e.RenewAt):
		e.State = StateDue
	}
	return e
}

func use(c *x509.Certificate) string {
	if c.IsCA {
		return useAuthority
	}
	var uses []string
	if slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		uses = append(uses, "server")
	}
	if slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		uses = append(uses, "client")
	}
	return strings.Join(uses, ", ")
}

// RemoveLeaves removes what Ensure makes anew: every leaf of the folder, and no
// authority or key of tokens. Nothing may use the folder meanwhile.
func RemoveLeaves(dir string) (removed int, err error) {
	p := new(PKI)
	for _, r := range p.requests(Config{}) {
		err := os.Remove(filepath.Join(dir, r.file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, fmt.Errorf("remove certificate: %w", err)
		}
		if err == nil {
			removed++
		}
	}
	return removed, durable.SyncDir(dir)
}
