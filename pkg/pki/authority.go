package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

const (
	year              = 365 * 24 * time.Hour
	authorityValidity = 10 * year
	// LeafLifetime is how long a leaf lasts unless Config says otherwise.
	LeafLifetime = year
	// clockSkew is how far another machine's clock may be behind.
	clockSkew = 5 * time.Minute

	certBlock = "CERTIFICATE"
	// Upstream reads service-account keys in this form alone.
	keyBlock = "EC PRIVATE KEY"
)

// Authority signs leaves. It may be one that a user has brought, and then an
// intermediate one.
type Authority struct {
	// CertPath holds the certificate, with those above it behind it if there are
	// any, and may be published; KeyPath is its key.
	CertPath, KeyPath string
	// CertPEM is what CertPath holds.
	CertPEM []byte
	Cert    *x509.Certificate
	// SigningPath holds Cert alone, for upstream's controller that signs requests,
	// which accepts no chain. It is CertPath where there is none.
	SigningPath string
	// TrustPath and TrustPEM are what those who trust the authority have to trust:
	// CertPath and CertPEM, and, while one replaces another, both, the new one first.
	TrustPath string
	TrustPEM  []byte
	// Trusted are the authorities' own certificates among them.
	Trusted []*x509.Certificate

	// above are the certificates that follow Cert in CertPath.
	above []*x509.Certificate
	key   crypto.PrivateKey
}

// Key is a signing key without a certificate.
type Key struct {
	Path string
	*ecdsa.PrivateKey
}

func ensureAuthority(dir *folder, name string, now time.Time) (*Authority, error) {
	return authority(dir, name, &x509.Certificate{Subject: subject("knarr-"+name, ""), MaxPathLenZero: true}, now)
}

// ensureSuccessor is for one that replaces another. It has a name of its own, so
// that no one takes the one for the other, and may vouch for the old one.
func ensureSuccessor(dir *folder, name string, now time.Time) (*Authority, error) {
	return authority(dir, name, &x509.Certificate{Subject: subject("knarr-"+name+"-"+now.UTC().Format("20060102150405"), ""), MaxPathLen: -1}, now)
}

// authority is that in the folder, or one that is made like template.
func authority(dir *folder, name string, template *x509.Certificate, now time.Time) (*Authority, error) {
	certFile, keyFile := name+".crt", name+".key"
	a := &Authority{CertPath: dir.path(certFile), KeyPath: dir.path(keyFile)}
	wayOut := fmt.Sprintf("restore %s and %s from a backup (when both are deleted, a new authority is made, which trusts nothing issued before)", a.CertPath, a.KeyPath)

	certPEM, err := dir.read(certFile)
	if err != nil {
		return nil, err
	}
	keyPEM, err := dir.read(keyFile)
	if err != nil {
		return nil, err
	}
	switch {
	case certPEM != nil && keyPEM == nil:
		return nil, fmt.Errorf("authority %s: its key %s is missing: %s", a.CertPath, a.KeyPath, wayOut)
	case certPEM == nil:
		// A key alone is what a crash between the two files leaves. Its
		// certificate made again vouches for the same leaves.
		if certPEM, keyPEM, err = makeAuthority(dir, name, template, keyPEM, now); err != nil {
			return nil, fmt.Errorf("make authority %s: %w", a.CertPath, err)
		}
	}

	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("authority %s and %s are damaged or don't belong together (%w): %s", a.CertPath, a.KeyPath, err, wayOut)
	}
	a.CertPEM, a.Cert, a.key = certPEM, pair.Leaf, pair.PrivateKey
	for _, der := range pair.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("authority %s: read the certificates above it: %w: %s", a.CertPath, err, wayOut)
		}
		a.above = append(a.above, c)
	}
	if err := a.check(now, wayOut); err != nil {
		return nil, err
	}
	a.SigningPath = a.CertPath
	a.TrustPath, a.TrustPEM, a.Trusted = a.CertPath, a.CertPEM, []*x509.Certificate{a.Cert}
	if len(a.above) > 0 {
		return a, a.writeSigning(dir, name)
	}
	return a, nil
}

// check looks whether each certificate is one of an authority, valid now, and
// signed by the next.
func (a *Authority) check(now time.Time, wayOut string) error {
	child := a.Cert
	for _, c := range append([]*x509.Certificate{a.Cert}, a.above...) {
		if !c.IsCA {
			return fmt.Errorf("%s is not the certificate of an authority (%s): %s", a.CertPath, c.Subject, wayOut)
		}
		if now.Before(c.NotBefore) {
			return fmt.Errorf("authority %s (%s) is valid from %s, but this machine's clock says %s: set the clock", a.CertPath, c.Subject, stamp(c.NotBefore), stamp(now))
		}
		if now.After(c.NotAfter) {
			return fmt.Errorf("authority %s (%s) has expired at %s, and this machine's clock says %s: set the clock if it is wrong, else %s", a.CertPath, c.Subject, stamp(c.NotAfter), stamp(now), wayOut)
		}
		if c != child && child.CheckSignatureFrom(c) != nil {
			return fmt.Errorf("authority %s: %s was not signed by %s, which follows it: put each certificate before the one that signed it", a.CertPath, child.Subject, c.Subject)
		}
		child = c
	}
	return nil
}

// chain is what a leaf shows behind itself, DER.
func (a *Authority) chain() [][]byte {
	all := [][]byte{a.Cert.Raw}
	for _, c := range a.above {
		all = append(all, c.Raw)
	}
	return all
}

func (a *Authority) writeSigning(dir *folder, name string) error {
	file := name + ".signing.crt"
	a.SigningPath = dir.path(file)
	text, err := dir.read(file)
	if err != nil {
		return err
	}
	want := pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: a.Cert.Raw})
	if bytes.Equal(text, want) {
		return nil
	}
	return dir.write(file, want, "made: the first certificate of "+a.CertPath)
}

// makeAuthority writes the key first, unless keyPEM is one already.
func makeAuthority(dir *folder, name string, template *x509.Certificate, keyPEM []byte, now time.Time) (certPEM, _ []byte, err error) {
	why := "made"
	key, err := parseOrMakeKey(keyPEM)
	if err != nil {
		return nil, nil, fmt.Errorf("its key %s is damaged (%w): restore it from a backup, or delete it to have a new authority made", dir.path(name+".key"), err)
	}
	if keyPEM == nil {
		if keyPEM, err = encodeKey(key); err != nil {
			return nil, nil, err
		}
		if err := dir.write(name+".key", keyPEM, why); err != nil {
			return nil, nil, err
		}
	} else {
		why = "made for the key that was there"
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	from, to := validity(now, authorityValidity)
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = from, to
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid, template.IsCA = true, true
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: der})
	return certPEM, keyPEM, dir.write(name+".crt", certPEM, why)
}

func ensureKey(dir *folder, file string) (*Key, error) {
	text, err := dir.read(file)
	if err != nil {
		return nil, err
	}
	key, err := parseOrMakeKey(text)
	if err != nil {
		return nil, fmt.Errorf("key %s is damaged (%w): restore it from a backup (when it is deleted, a new one is made, and every token of before is refused)", dir.path(file), err)
	}
	if text == nil {
		if text, err = encodeKey(key); err != nil {
			return nil, err
		}
		if err := dir.write(file, text, "made"); err != nil {
			return nil, err
		}
	}
	return &Key{Path: dir.path(file), PrivateKey: key}, nil
}

// parseOrMakeKey makes a key when text is nil.
func parseOrMakeKey(text []byte) (*ecdsa.PrivateKey, error) {
	if text == nil {
		return newKey()
	}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, errors.New("no EC private key in it")
		}
		if block.Type == keyBlock {
			return x509.ParseECPrivateKey(block.Bytes)
		}
	}
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), nil
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil // zero is not allowed
}

func subject(name, group string) pkix.Name {
	s := pkix.Name{CommonName: name}
	if group != "" {
		s.Organization = []string{group}
	}
	return s
}

// validity begins a little early for clocks that are behind, less so for a short
// life. A board without a battery may live in 1970 at its first start: what it
// makes then must not have expired when it learns the time.
func validity(now time.Time, length time.Duration) (from, to time.Time) {
	written := time.Date(2026, time.August, 1, 0, 0, 0, 0, time.UTC)
	from, to = now.Add(-min(clockSkew, length/12)), now.Add(length)
	if now.Before(written) {
		to = written.Add(length)
	}
	return from.UTC(), to.UTC()
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
