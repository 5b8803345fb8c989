package membership

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// RecordName is the name of the ConfigMap, in kube-system, that says who has the
// name of a node.
func RecordName(node string) string { return recordName(node) }

// Expect changes a node's record so that whoever has the key is that node, and
// nobody else, once they ask for a certificate with a token. The public key is as
// [x509.ParsePKIXPublicKey] takes it. It is for a copy of a cluster, whose nodes are
// other machines.
func Expect(cm *corev1.ConfigMap, key []byte) error {
	if _, err := x509.ParsePKIXPublicKey(key); err != nil {
		return fmt.Errorf("read the key of a node: %w", err)
	}
	rec, err := readRecord(cm)
	if err != nil {
		return err
	}
	rec.Since = time.Now().UTC().Truncate(time.Second)
	rec.Credentials = []credential{{Key: fingerprint(sha256.Sum256(key)).String()}}
	return rec.store(cm)
}
