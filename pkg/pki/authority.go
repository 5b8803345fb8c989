package pki

import (
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
	leafValidity      = year
	renewBefore       = 90 * 24 * time.Hour
	// clockSkew is how far another machine's clock may be behind.
	clockSkew = 5 * time.Minute

	certBlock = "CERTIFICATE"
	// Upstream reads service-account keys in this form alone.
	keyBlock = "EC PRIVATE KEY"
)

// Authority signs leaves.
type Authority struct {
	// CertPath holds the certificate alone and may be published; KeyPath is for
	// the controller that signs requests.
	CertPath, KeyPath string
	// CertPEM is what CertPath holds.
	CertPEM []byte
	Cert    *x509.Certificate

	key crypto.PrivateKey
}

// Key is a signing key without a certificate.
type Key struct {
	Path string
	*ecdsa.PrivateKey
}

func ensureAuthority(dir *folder, name string, now time.Time) (*Authority, error) {
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
		if certPEM, keyPEM, err = makeAuthority(dir, name, keyPEM, now); err != nil {
			return nil, fmt.Errorf("make authority %s: %w", a.CertPath, err)
		}
	}

	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("authority %s and %s are damaged or don't belong together (%w): %s", a.CertPath, a.KeyPath, err, wayOut)
	}
	a.CertPEM, a.Cert, a.key = certPEM, pair.Leaf, pair.PrivateKey
	if !a.Cert.IsCA {
		return nil, fmt.Errorf("%s is not the certificate of an authority: %s", a.CertPath, wayOut)
	}
	if now.Before(a.Cert.NotBefore) {
		return nil, fmt.Errorf("authority %s is valid from %s, but this machine's clock says %s: set the clock", a.CertPath, stamp(a.Cert.NotBefore), stamp(now))
	}
	if now.After(a.Cert.NotAfter) {
		return nil, fmt.Errorf("authority %s has expired at %s, and this machine's clock says %s: set the clock if it is wrong, else %s", a.CertPath, stamp(a.Cert.NotAfter), stamp(now), wayOut)
	}
	return a, nil
}

// makeAuthority writes the key first, unless keyPEM is one already.
func makeAuthority(dir *folder, name string, keyPEM []byte, now time.Time) (certPEM, _ []byte, err error) {
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
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               subject("knarr-"+name, ""),
		NotBefore:             from,
		NotAfter:              to,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
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

// validity begins a little early for clocks that are behind. A board without a
// battery may live in 1970 at its first start: what it makes then must not have
// expired when it learns the time.
func validity(now time.Time, length time.Duration) (from, to time.Time) {
	written := time.Date(2026, time.August, 1, 0, 0, 0, 0, time.UTC)
	from, to = now.Add(-clockSkew), now.Add(length)
	if now.Before(written) {
		to = written.Add(length)
	}
	return from.UTC(), to.UTC()
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
