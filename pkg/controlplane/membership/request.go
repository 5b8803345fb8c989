package membership

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/cluster-bootstrap/token/api"
)

const (
	clientSigner  = certificatesv1.KubeAPIServerClientKubeletSignerName
	servingSigner = certificatesv1.KubeletServingSignerName

	// reasonApproved and reasonDenied are in the conditions that are ours.
	reasonApproved = "KnarrApproved"
	reasonDenied   = "KnarrDenied"
)

// request is a CertificateSigningRequest of one of the two signers, whose form
// is right.
type request struct {
	*certificatesv1.CertificateSigningRequest
	x509 *x509.CertificateRequest
	// node is the name that the certificate would be for.
	node string
	// key is the fingerprint of the public key, in hex.
	key string
}

// readRequest refuses what no node asks for. The holder of the key has signed
// what it returns.
func readRequest(csr *certificatesv1.CertificateSigningRequest) (request, error) {
	r := request{CertificateSigningRequest: csr}
	var err error
	if r.x509, err = parse(csr); err != nil {
		return r, err
	}
	if err := r.x509.CheckSignature(); err != nil {
		return r, fmt.Errorf("the request is not signed by its own key: %w", err)
	}
	subject := r.x509.Subject
	name, ok := strings.CutPrefix(subject.CommonName, nodePrefix)
	// The signer copies the subject: nothing more may be in it.
	if !ok || len(subject.Names) != 2 || !slices.Equal(subject.Organization, []string{nodesGroup}) {
		return r, fmt.Errorf("the subject is %s: it has to be CN=%s<name>,O=%s", subject, nodePrefix, nodesGroup)
	}
	if faults := validation.NameIsDNSSubdomain(name, false); len(faults) > 0 {
		return r, fmt.Errorf("%q cannot be the name of a node: %s", name, strings.Join(faults, ", "))
	}
	r.node = name
	if len(r.x509.URIs) > 0 || len(r.x509.EmailAddresses) > 0 {
		return r, errors.New("a node has no URIs and no e-mail addresses")
	}
	named := len(r.x509.DNSNames) + len(r.x509.IPAddresses)
	if csr.Spec.SignerName == clientSigner && named > 0 {
		return r, errors.New("a client certificate has no names or addresses beside its subject")
	}
	if csr.Spec.SignerName == servingSigner && named == 0 {
		return r, errors.New("a serving certificate needs a name or an address")
	}
	usage := certificatesv1.UsageClientAuth
	if csr.Spec.SignerName == servingSigner {
		usage = certificatesv1.UsageServerAuth
	}
	if !usagesAre(csr.Spec.Usages, usage) {
		return r, fmt.Errorf("the usages are %q: they have to be %q and %q, and may be %q", csr.Spec.Usages,
			usage, certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment)
	}
	r.key = fingerprint(sha256.Sum256(r.x509.RawSubjectPublicKeyInfo)).String()
	return r, nil
}

func parse(csr *certificatesv1.CertificateSigningRequest) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("the request is not a PEM block CERTIFICATE REQUEST")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the request cannot be read: %w", err)
	}
	return r, nil
}

// claimed is the name of the node that a request says it is for, or nothing. It
// is not checked.
func claimed(csr *certificatesv1.CertificateSigningRequest) string {
	if !isOurs(csr) {
		return ""
	}
	r, err := parse(csr)
	if err != nil {
		return "" // it is denied for that
	}
	name, ok := strings.CutPrefix(r.Subject.CommonName, nodePrefix)
	if !ok {
		return ""
	}
	return name
}

// usagesAre allows what upstream's signer does; see ValidateKubeletClientCSR and
// ValidateKubeletServingCSR in k8s.io/kubernetes/pkg/apis/certificates.
func usagesAre(got []certificatesv1.KeyUsage, main certificatesv1.KeyUsage) bool {
	for _, u := range got {
		if u != main && u != certificatesv1.UsageDigitalSignature && u != certificatesv1.UsageKeyEncipherment {
			return false
		}
	}
	return slices.Contains(got, main) && slices.Contains(got, certificatesv1.UsageDigitalSignature)
}

// byToken tells whether a bearer of a bootstrap token asks.
func (r request) byToken() bool {
	return strings.HasPrefix(r.Spec.Username, api.BootstrapUserPrefix) && slices.Contains(r.Spec.Groups, api.BootstrapDefaultGroup)
}

// byItself tells whether the node that the certificate is for asks.
func (r request) byItself() bool {
	return r.Spec.Username == nodePrefix+r.node && slices.Contains(r.Spec.Groups, nodesGroup)
}

// credentials are the ids of the certificate that the asker showed.
func (r request) credentials() []string { return r.Spec.Extra[user.CredentialIDKey] }

// isOurs tells whether this package decides on a request.
func isOurs(csr *certificatesv1.CertificateSigningRequest) bool {
	return csr.Spec.SignerName == clientSigner || csr.Spec.SignerName == servingSigner
}

// isDecided tells whether somebody has decided already.
func isDecided(csr *certificatesv1.CertificateSigningRequest) bool {
	return len(csr.Status.Certificate) > 0 || slices.ContainsFunc(csr.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool {
		return c.Status == corev1.ConditionTrue &&
			(c.Type == certificatesv1.CertificateApproved || c.Type == certificatesv1.CertificateDenied || c.Type == certificatesv1.CertificateFailed)
	})
}

// isOfFormer tells whether a request is left over once there is no record of the
// node: we have approved it, or the node itself has asked. What bearers of tokens
// were denied stays for them to read.
func isOfFormer(csr *certificatesv1.CertificateSigningRequest, node string) bool {
	return csr.Spec.Username == nodePrefix+node || slices.ContainsFunc(csr.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool {
		return c.Type == certificatesv1.CertificateApproved && c.Reason == reasonApproved
	})
}
