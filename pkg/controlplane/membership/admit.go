package membership

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/pkg/join"
)

const (
	nodePrefix = "system:node:"
	nodesGroup = "system:nodes"

	// startWait bounds how long a request waits for the records at a start. The
	// client tries again.
	startWait = 10 * time.Second
)

// errUnverified is for a certificate that no authority of ours vouches for now.
var errUnverified = errors.New("the certificate is not valid, or of another authority")

// Refused is why a node's certificate is worth nothing although it is valid.
type Refused struct {
	// Node is the name in the certificate.
	Node string
	// Taken tells that a machine of that name is in the cluster, with another key.
	Taken bool
}

// Error implements error.
func (r *Refused) Error() string {
	why := "it was deleted, or has never joined"
	if r.Taken {
		why = "another machine has its name, or it was deleted and has joined anew since this certificate was made"
	}
	return fmt.Sprintf("node %s is not a member of this cluster by this certificate: %s; join anew with a token", r.Node, why)
}

// nodeOf is the name in a node's client certificate, or nothing in another's.
func nodeOf(c *x509.Certificate) string {
	name, ok := strings.CutPrefix(c.Subject.CommonName, nodePrefix)
	if !ok || !slices.Contains(c.Subject.Organization, nodesGroup) {
		return ""
	}
	return name
}

// Admit looks whether the holder of a node's client certificate is a member of
// the cluster. The context that it returns ends when the node leaves. The error
// is *Refused for one that is none, and another for a certificate that is not a
// node's, not valid, or not signed by our authority. It waits for the records
// until ctx ends.
//
// A certificate that was seen before costs a hash and two look-ups.
func (m *Membership) Admit(ctx context.Context, cert *x509.Certificate) (context.Context, error) {
	node := nodeOf(cert)
	if node == "" {
		return nil, fmt.Errorf("%s is not a node's certificate", cert.Subject)
	}
	certs := m.cfg.Certificates()
	// The server's own node needs no record: whoever can read its key can read the
	// authority's.
	if slices.ContainsFunc(certs.Own, cert.Equal) {
		return context.Background(), nil
	}
	select {
	case <-m.synced:
	case <-ctx.Done():
		return nil, fmt.Errorf("look whether node %s is a member: %w", node, ctx.Err())
	}
	roll := m.roll.Load()
	id := fingerprint(sha256.Sum256(cert.Raw))
	member, known := roll.find(node, id)
	if now := time.Now(); known && now.After(cert.NotBefore) && now.Before(cert.NotAfter) {
		return member.in, nil
	}
	// Before this nobody learns who is a member.
	if err := verify(cert, certs.ClientCAs...); err != nil {
		return nil, err
	}
	if member == nil {
		return nil, &Refused{Node: node}
	}
	key := fingerprint(sha256.Sum256(cert.RawSubjectPublicKeyInfo))
	if !known && !roll.hasKey(member, key) {
		return nil, &Refused{Node: node, Taken: true}
	}
	roll.see(member, id, credential{Key: key.String(), ID: credentialPrefix + id.String(), NotAfter: cert.NotAfter.UTC()})
	m.enqueue(node)
	return member.in, nil
}

func verify(cert *x509.Certificate, by ...*x509.Certificate) error {
	roots := x509.NewCertPool()
	for _, c := range by {
		roots.AddCert(c)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return fmt.Errorf("%w: %w", errUnverified, err)
	}
	return nil
}

// Handler lets through what is not asked with a node's certificate, and what is
// asked by members. What others ask with one is refused with a Status that tells
// why, which client-go shows. Watches and streams end when their node leaves, so
// that it learns at once.
//
// It only takes away: who somebody is and what he may do is decided behind it.
func (m *Membership) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || nodeOf(r.TLS.PeerCertificates[0]) == "" {
			next.ServeHTTP(w, r)
			return
		}
		in, err := m.admitSoon(r.Context(), r.TLS.PeerCertificates[0])
		switch {
		case errors.Is(err, errUnverified): // authentication says so
			next.ServeHTTP(w, r)
		case err != nil:
			refuse(w, err)
		case !isLong(r):
			next.ServeHTTP(w, r)
		default:
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			defer context.AfterFunc(in, cancel)()
			next.ServeHTTP(w, r.WithContext(ctx))
		}
	})
}

// admitSoon is Admit with a bound on its wait.
func (m *Membership) admitSoon(ctx context.Context, cert *x509.Certificate) (context.Context, error) {
	select {
	case <-m.synced:
	default:
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, startWait)
		defer cancel()
	}
	return m.Admit(ctx, cert)
}

// isLong tells whether the answer can last longer than a moment.
func isLong(r *http.Request) bool {
	return r.Header.Get("Upgrade") != "" || r.Method == http.MethodConnect ||
		strings.Contains(r.URL.RawQuery, "watch=") || strings.Contains(r.URL.RawQuery, "follow=") || strings.Contains(r.URL.Path, "/watch/")
}

// refuse answers in JSON, which every client of Kubernetes reads errors in.
func refuse(w http.ResponseWriter, err error) {
	status := metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure,
		Message:  err.Error(),
		Code:     http.StatusServiceUnavailable,
		Reason:   metav1.StatusReasonServiceUnavailable,
		Details:  &metav1.StatusDetails{RetryAfterSeconds: 1},
	}
	if no, ok := errors.AsType[*Refused](err); ok {
		status.Code, status.Reason = http.StatusForbidden, metav1.StatusReasonForbidden
		status.Details = &metav1.StatusDetails{
			Name: no.Node, Kind: "nodes",
			Causes: []metav1.StatusCause{{Type: join.CauseRefused, Message: no.Error()}},
		}
	} else {
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache, private")
	w.WriteHeader(int(status.Code))
	_ = json.NewEncoder(w).Encode(status) // it fails only when the client has gone
}
