package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/knarr-dev/knarr/pkg/token"
)

// apiServerName is a name in every API server's certificate and, unlike an
// address, in no kubelet's, though the same authority signs both.
const apiServerName = "kubernetes.default.svc"

// handshakeTimeout bounds a server's answer.
const handshakeTimeout = 10 * time.Second

// A permanent error is one that asking again does not mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

func never(format string, args ...any) error { return permanent{fmt.Errorf(format, args...)} }

// IsPermanent tells whether joining again, with nothing changed, is of no use.
func IsPermanent(err error) bool {
	_, ok := errors.AsType[permanent](err)
	return ok
}

// authority learns from a TLS handshake, before anything is sent, which
// authority the server has: the one whose hash the token names. Without a hash
// it is whichever the server shows; the caller has warned of that.
func authority(ctx context.Context, conn net.Conn, t token.Token, now time.Time) (*x509.Certificate, error) {
	var found *x509.Certificate
	var verdict error
	check := func(cs tls.ConnectionState) error {
		found, verdict = choose(cs.PeerCertificates, t, now)
		return verdict
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	// What is verified, and how, is decided by check.
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, VerifyConnection: check, ServerName: apiServerName, MinVersion: tls.VersionTLS12})
	if err := c.HandshakeContext(ctx); err != nil {
		if verdict != nil { // whatever telling the server came to
			return nil, verdict
		}
		return nil, fmt.Errorf("greet server %s: %w", conn.RemoteAddr(), err)
	}
	return found, nil
}

func choose(shown []*x509.Certificate, t token.Token, now time.Time) (*x509.Certificate, error) {
	if len(shown) == 0 {
		return nil, never("the server shows no certificate")
	}
	var ca *x509.Certificate
	for _, c := range shown {
		if t.CAHash == token.HashCA(c.Raw) || t.CAHash == "" && c.IsCA {
			ca = c
		}
	}
	if ca == nil {
		var others []string
		for _, c := range shown {
			if c.IsCA {
				others = append(others, token.HashCA(c.Raw))
			}
		}
		return nil, never("the server's authority is not the one that the token names (sha256:%s; the server shows %q): it is another cluster's server, or its authority was replaced since the token was made (knarr certificate rotate-ca), or somebody stands between; nothing was sent to it. Check --server, and make a token on a server of that cluster: knarr token create", t.CAHash, others)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	// While one authority replaces another, the new one vouches for the old.
	between := x509.NewCertPool()
	for _, c := range shown[1:] {
		between.AddCert(c)
	}
	_, err := shown[0].Verify(x509.VerifyOptions{DNSName: apiServerName, Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		// Not permanent: machines without a battery learn the time later.
		return nil, fmt.Errorf("the server's certificate is valid from %s to %s, and this machine's clock says %s: set the clock that is wrong",
			invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if err != nil {
		return nil, never("the server's certificate: %w; nothing was sent to it", err)
	}
	return ca, nil
}
