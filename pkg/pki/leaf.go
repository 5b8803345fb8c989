package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Leaf is a certificate and its key.
type Leaf struct {
	// Path holds both.
	Path string
	// CertPEM and KeyPEM are the two parts of the file. Behind the API server's
	// certificate CertPEM has that of its authority.
	CertPEM, KeyPEM []byte
	// TLS is ready to be used in a tls.Config; TLS.Leaf is the certificate.
	TLS tls.Certificate
}

// request is what a leaf has to be.
type request struct {
	leaf    **Leaf
	file    string
	by      *Authority
	subject pkix.Name
	usage   x509.ExtKeyUsage
	names   names
	// chained puts the authority's certificates behind the leaf's: who knows only
	// the authority's hash, or only who stands above it, finds it in the handshake.
	chained bool
	// behind follow them.
	behind [][]byte
	// life is how long the leaf lasts. anew has it renewed whatever it is like.
	life time.Duration
	anew bool
}

// RenewAt is when a certificate is due to be renewed: when two thirds of its
// life are over.
func RenewAt(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3 * 2)
}

// names are the subject's alternative names.
type names struct {
	dns []string
	ips []netip.Addr
}

func (n *names) add(dns ...string) { n.dns = append(n.dns, dns...) }

func (n *names) addIP(ips ...netip.Addr) {
	for _, ip := range ips {
		if ip.IsValid() {
			n.ips = append(n.ips, ip.Unmap().WithZone(""))
		}
	}
}

// unique keeps each name once, in order.
func (n names) unique() names {
	var u names
	for _, d := range n.dns {
		if d != "" && !slices.Contains(u.dns, d) {
			u.dns = append(u.dns, d)
		}
	}
	for _, ip := range n.ips {
		if !slices.Contains(u.ips, ip) {
			u.ips = append(u.ips, ip)
		}
	}
	return u
}

func apiServerNames(cfg Config) names {
	var n names
	n.add("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc."+cfg.ClusterDomain, "localhost", cfg.NodeName)
	n.addIP(netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback(), cfg.ServiceIP)
	n.addIP(cfg.NodeIPs...)
	for _, name := range cfg.Names {
		if ip, err := netip.ParseAddr(name); err == nil {
			n.addIP(ip)
			continue
		}
		n.add(name)
	}
	return n.unique()
}

func kubeletNames(cfg Config) names {
	var n names
	n.add(cfg.NodeName)
	n.addIP(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	n.addIP(cfg.NodeIPs...)
	return n.unique()
}

func ensureLeaf(dir *folder, r request, now time.Time) (*Leaf, error) {
	text, err := dir.read(r.file)
	if err != nil {
		return nil, err
	}
	why := "made"
	if text != nil {
		l, err := parseLeaf(dir.path(r.file), text)
		if err != nil {
			return nil, fmt.Errorf("%s is damaged (%w): restore it from a backup, or delete it and start knarr again, which makes a new one", dir.path(r.file), err)
		}
		reason := r.mismatch(l.TLS.Leaf, now)
		if reason == "" && r.complete(l) {
			return l, nil
		}
		if reason == "" {
			// The certificate and its key do as they are.
			return writeLeaf(dir, r.file, r.join(l.TLS.Leaf.Raw, l.KeyPEM), "completed: it lacked the certificate of "+r.by.CertPath)
		}
		why = "renewed: " + reason
	}
	if text, err = r.sign(now); err != nil {
		return nil, fmt.Errorf("make certificate %s: %w", dir.path(r.file), err)
	}
	return writeLeaf(dir, r.file, text, why)
}

func writeLeaf(dir *folder, file string, text []byte, why string) (*Leaf, error) {
	if err := dir.write(file, text, why); err != nil {
		return nil, err
	}
	return parseLeaf(dir.path(file), text)
}

// complete tells whether the file has the authority's certificate, if it should.
func (r request) complete(l *Leaf) bool {
	return !r.chained || slices.EqualFunc(l.TLS.Certificate[1:], r.chain(), bytes.Equal)
}

// chain is what the leaf shows behind itself, DER, if it is chained.
func (r request) chain() [][]byte { return append(r.by.chain(), r.behind...) }

// join is the content of a file with that certificate and key.
func (r request) join(certDER, keyPEM []byte) []byte {
	text := pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: certDER})
	if r.chained {
		for _, der := range r.chain() {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: der})...)
		}
	}
	return append(text, keyPEM...)
}

func parseLeaf(path string, text []byte) (*Leaf, error) {
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, err
	}
	l := &Leaf{Path: path, TLS: pair}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return l, nil
		}
		if block.Type == certBlock {
			l.CertPEM = append(l.CertPEM, pem.EncodeToMemory(block)...)
			continue
		}
		l.KeyPEM = append(l.KeyPEM, pem.EncodeToMemory(block)...)
	}
}

// mismatch tells why the certificate does not do, or nothing when it does.
// Names and addresses beyond those asked for do no harm.
func (r request) mismatch(c *x509.Certificate, now time.Time) string {
	if !bytes.Equal(c.RawIssuer, r.by.Cert.RawSubject) || c.CheckSignatureFrom(r.by.Cert) != nil {
		return "it was signed by another authority than " + r.by.CertPath
	}
	if c.Subject.CommonName != r.subject.CommonName || !slices.Equal(c.Subject.Organization, r.subject.Organization) {
		return fmt.Sprintf("it is for %s, not for %s", c.Subject, r.subject)
	}
	if !slices.Contains(c.ExtKeyUsage, r.usage) {
		return "it is for another usage"
	}
	if now.Before(c.NotBefore) {
		return "it is not valid before " + stamp(c.NotBefore)
	}
	if r.anew {
		return "it was asked for"
	}
	if r.due(c, now) {
		return "it expires at " + stamp(c.NotAfter)
	}
	if _, to := validity(now, r.life); c.NotAfter.After(to.Add(clockSkew)) {
		return "it would last until " + stamp(c.NotAfter)
	}
	for _, name := range r.names.dns {
		if !slices.Contains(c.DNSNames, name) {
			return "it lacks the name " + name
		}
	}
	for _, ip := range r.names.ips {
		if !slices.ContainsFunc(c.IPAddresses, net.IP(ip.AsSlice()).Equal) {
			return "it lacks the address " + ip.String()
		}
	}
	return ""
}

// due tells whether the certificate's time has come. One that ends with its
// authority can't be made to last longer.
func (r request) due(c *x509.Certificate, now time.Time) bool {
	return r.canLast(c) && !now.Before(RenewAt(c))
}

func (r request) canLast(c *x509.Certificate) bool { return c.NotAfter.Before(r.by.Cert.NotAfter) }

// sign makes a new pair and returns the file that holds it.
func (r request) sign(now time.Time) ([]byte, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	from, to := validity(now, r.life)
	if to.After(r.by.Cert.NotAfter) {
		to = r.by.Cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               r.subject,
		NotBefore:             from,
		NotAfter:              to,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{r.usage},
		BasicConstraintsValid: true,
		DNSNames:              r.names.dns,
	}
	for _, ip := range r.names.ips {
		template.IPAddresses = append(template.IPAddresses, ip.AsSlice())
	}
	der, err := x509.CreateCertificate(rand.Reader, template, r.by.Cert, key.Public(), r.by.key)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return r.join(der, keyPEM), nil
}
