package membership

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// namespace is where records are: only administrators may write there.
	namespace = metav1.NamespaceSystem
	// recordLabel marks the ConfigMaps that are records.
	recordLabel = "knarr.dev/node-record"
	recordKey   = "node.json"
	// credentialPrefix begins the id of a certificate, as the API server writes it
	// in k8s.io/apiserver/pkg/authentication/request/x509.
	credentialPrefix = "X509SHA256="
	// mostCredentials bounds a record. A node that rotates as it should has two.
	mostCredentials = 16
	// longestName of an object is that of a node too.
	longestName = 253
)

// fingerprint is the SHA-256 of a certificate or of a public key, both as DER.
type fingerprint [sha256.Size]byte

func (f fingerprint) String() string { return hex.EncodeToString(f[:]) }

func parseFingerprint(text string) (f fingerprint, err error) {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != len(f) {
		return f, fmt.Errorf("%q is not a SHA-256", text)
	}
	return fingerprint(raw), nil
}

// record is what the servers remember of a node: who has its name, and by which
// keys he is known. It is made before the node's first certificate is, and goes
// with the Node object.
type record struct {
	// Node is the name.
	Node string `json:"node"`
	// UID is that of the Node object, empty until there is one.
	UID types.UID `json:"uid,omitempty"`
	// Since is when the name was given away, to the second.
	Since time.Time `json:"since"`
	// Credentials are the client certificates, the oldest first.
	Credentials []credential `json:"credentials"`
}

// credential is a client certificate that was granted.
type credential struct {
	// Key is the fingerprint of its public key.
	Key string `json:"key"`
	// ID is that of the certificate: X509SHA256=<its fingerprint>. It is empty
	// until the node has used the certificate.
	ID string `json:"id,omitempty"`
	// NotAfter is when it expires; zero as long as ID is empty.
	NotAfter time.Time `json:"notAfter,omitzero"`
}

// recordName is the name of a node's ConfigMap. A node's name may be as long as
// any object's, which leaves no room for a prefix; what stands for a long one
// can be no other node's, since that would follow the other prefix.
func recordName(node string) string {
	if name := "knarr-node." + node; len(name) <= longestName {
		return name
	}
	return "knarr-node-sha256." + fingerprint(sha256.Sum256([]byte(node))).String()
}

func (r record) configMap() (*corev1.ConfigMap, error) {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: recordName(r.Node), Labels: map[string]string{recordLabel: "true"},
		Annotations: map[string]string{
			"kubernetes.io/description": "Who has the name of this node. Knarr refuses the client certificate of a node that has no such record, or another key. It is made when a machine joins and goes with the Node object.",
		},
	}}
	return cm, r.store(cm)
}

// store writes the record into its ConfigMap.
func (r record) store(cm *corev1.ConfigMap) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode record of node %s: %w", r.Node, err)
	}
	cm.Data = map[string]string{recordKey: string(text)}
	return nil
}

// readRecord returns what the ConfigMap of a node says. One that was damaged is
// an error: nobody is let in by it.
func readRecord(cm *corev1.ConfigMap) (record, error) {
	var r record
	if err := json.Unmarshal([]byte(cm.Data[recordKey]), &r); err != nil {
		return record{}, fmt.Errorf("read %s of ConfigMap %s/%s: %w", recordKey, cm.Namespace, cm.Name, err)
	}
	if recordName(r.Node) != cm.Name {
		return record{}, fmt.Errorf("ConfigMap %s/%s is for node %q, whose record would have another name", cm.Namespace, cm.Name, r.Node)
	}
	for _, c := range r.Credentials {
		_, err := parseFingerprint(c.Key)
		if err == nil && c.ID != "" {
			_, err = parseFingerprint(strings.TrimPrefix(c.ID, credentialPrefix))
		}
		if err != nil {
			return record{}, fmt.Errorf("read credentials in ConfigMap %s/%s: %w", cm.Namespace, cm.Name, err)
		}
	}
	return r, nil
}

func (r record) hasKey(key string) bool {
	return slices.ContainsFunc(r.Credentials, func(c credential) bool { return c.Key == key })
}

func (r record) hasID(id string) bool {
	return id != "" && slices.ContainsFunc(r.Credentials, func(c credential) bool { return c.ID == id })
}

// add returns a record with one credential more. Those that have expired are
// left out, and the oldest where there are too many.
func (r record) add(c credential, now time.Time) record {
	r.Credentials = slices.Clone(r.Credentials)
	switch i := slices.IndexFunc(r.Credentials, func(o credential) bool { return o.Key == c.Key && o.ID == "" }); {
	case c.ID != "" && r.hasID(c.ID), c.ID == "" && r.hasKey(c.Key):
	case c.ID != "" && i >= 0:
		r.Credentials[i] = c
	default:
		r.Credentials = append(r.Credentials, c)
	}
	r.Credentials = slices.DeleteFunc(r.Credentials, func(o credential) bool { return !o.NotAfter.IsZero() && o.NotAfter.Before(now) })
	if over := len(r.Credentials) - mostCredentials; over > 0 {
		r.Credentials = r.Credentials[over:]
	}
	return r
}
