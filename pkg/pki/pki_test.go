package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/keyutil"
)

func testConfig(t *testing.T) Config {
	return Config{
		Dir:           filepath.Join(t.TempDir(), "server", "tls"),
		NodeName:      "edge-1",
		NodeIPs:       []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")},
		Names:         []string{"api.example.org", "198.51.100.4"},
		ServiceIP:     netip.MustParseAddr("10.43.0.1"),
		ClusterDomain: "cluster.test",
	}
}

func ensure(t *testing.T, cfg Config) *PKI {
	t.Helper()
	p, err := Ensure(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// contents maps each file's name to what it holds.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(text)
	}
	return files
}

func pool(a *Authority) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.Cert)
	return p
}

func TestServingCertificatesBearEveryNameAndAddress(t *testing.T) {
	p := ensure(t, testConfig(t))
	for leaf, hosts := range map[*Leaf][]string{
		p.APIServer: {
			"edge-1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.test",
			"api.example.org", "127.0.0.1", "::1", "10.43.0.1", "192.0.2.7", "2001:db8::7", "198.51.100.4",
		},
		p.KubeletServing: {"edge-1", "127.0.0.1", "192.0.2.7", "2001:db8::7"},
	} {
		for _, host := range hosts {
			_, err := leaf.TLS.Leaf.Verify(x509.VerifyOptions{
				DNSName: host, Roots: pool(p.ServerCA), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			})
			if err != nil {
				t.Errorf("%s for %s: %v", leaf.Path, host, err)
			}
		}
	}
}

func TestEachLeafServesItsOnePurpose(t *testing.T) {
	p := ensure(t, testConfig(t))
	client, server := x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth
	authorities := []*Authority{p.ServerCA, p.ClientCA, p.RequestHeaderCA}
	for _, c := range []struct {
		leaf  *Leaf
		by    *Authority
		usage x509.ExtKeyUsage
		name  string
	}{
		{p.APIServer, p.ServerCA, server, "CN=kube-apiserver"},
		{p.KubeletServing, p.ServerCA, server, "CN=system:node:edge-1,O=system:nodes"},
		{p.Admin, p.ClientCA, client, "CN=system:admin,O=system:masters"},
		{p.Knarr, p.ClientCA, client, "CN=system:knarr-controller,O=system:masters"},
		{p.APIServerToKubelet, p.ClientCA, client, "CN=kube-apiserver-kubelet-client,O=system:masters"},
		{p.ControllerManager, p.ClientCA, client, "CN=system:kube-controller-manager"},
		{p.Scheduler, p.ClientCA, client, "CN=system:kube-scheduler"},
		{p.KubeProxy, p.ClientCA, client, "CN=system:kube-proxy"},
		{p.Kubelet, p.ClientCA, client, "CN=system:node:edge-1,O=system:nodes"},
		{p.DNS, p.ClientCA, client, "CN=system:knarr-dns"},
		{p.FrontProxy, p.RequestHeaderCA, client, "CN=system:auth-proxy"},
	} {
		cert := c.leaf.TLS.Leaf
		if cert.Subject.String() != c.name || cert.KeyUsage != x509.KeyUsageDigitalSignature || cert.IsCA {
			t.Errorf("%s: %s, key usage %b, authority %v", c.leaf.Path, cert.Subject, cert.KeyUsage, cert.IsCA)
		}
		for _, a := range authorities {
			for _, usage := range []x509.ExtKeyUsage{client, server} {
				_, err := cert.Verify(x509.VerifyOptions{Roots: pool(a), KeyUsages: []x509.ExtKeyUsage{usage}})
				if want := a == c.by && usage == c.usage; (err == nil) != want {
					t.Errorf("%s by %s for usage %v: %v", c.leaf.Path, a.CertPath, usage, err)
				}
			}
		}
	}
}

func TestFilesAreOpenToTheirOwnerOnlyAndCertificateFilesHoldNoAuthoritysKey(t *testing.T) {
	cfg := testConfig(t)
	p := ensure(t, cfg)
	if info, err := os.Stat(cfg.Dir); err != nil || info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("folder: %v, %v", info.Mode(), err)
	}
	widen := filepath.Join(cfg.Dir, "admin.pem")
	if err := errors.Join(os.Chmod(widen, 0o644), os.Chmod(cfg.Dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	ensure(t, cfg)
	for file := range contents(t, cfg.Dir) {
		if info, err := os.Stat(filepath.Join(cfg.Dir, file)); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}
	for _, a := range []*Authority{p.ServerCA, p.ClientCA, p.RequestHeaderCA} {
		text, err := os.ReadFile(a.CertPath)
		if err != nil || bytes.Contains(text, []byte("PRIVATE")) || !bytes.Equal(text, a.CertPEM) {
			t.Errorf("%s: %v\n%s", a.CertPath, err, text)
		}
	}
}

func TestSecondStartKeepsEverything(t *testing.T) {
	cfg := testConfig(t)
	if first := ensure(t, cfg); len(first.Changes) != 18 {
		t.Errorf("%d changes: %q", len(first.Changes), first.Changes)
	}
	before := contents(t, cfg.Dir)
	cfg.Names = cfg.Names[:1] // one name fewer is no reason either
	if second := ensure(t, cfg); len(second.Changes) != 0 {
		t.Errorf("changes: %q", second.Changes)
	}
	for file, text := range contents(t, cfg.Dir) {
		if before[file] != text {
			t.Errorf("%s changed", file)
		}
	}
}

func TestLeavesAreRenewedBeforeTheyExpire(t *testing.T) {
	cfg := testConfig(t)
	made := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	at := func(d time.Duration) *PKI {
		cfg.Now = func() time.Time { return made.Add(d) }
		return ensure(t, cfg)
	}
	at(0)
	p := at(243 * day)
	if len(p.Changes) != 0 {
		t.Errorf("before two thirds: %q", p.Changes)
	}
	if due := p.RenewAt.Sub(made); due < 243*day || due > 244*day {
		t.Errorf("due after %s", due)
	}
	p = at(244 * day)
	if len(p.Changes) != 11 || !strings.Contains(p.Changes[0], "renewed: it expires at 2028-01-01T00:00:00Z") {
		t.Errorf("after two thirds: %q", p.Changes)
	}
	if end := p.Admin.TLS.Leaf.NotAfter; !end.Equal(made.Add((244 + 365) * day)) {
		t.Errorf("admin ends at %v", end)
	}

	// In its authority's last year a leaf ends with it, and is left in peace then.
	p = at(3600 * day)
	if end := p.Admin.TLS.Leaf.NotAfter; !end.Equal(p.ClientCA.Cert.NotAfter) {
		t.Errorf("admin ends at %v, its authority at %v", end, p.ClientCA.Cert.NotAfter)
	}
	if p = at(3601 * day); len(p.Changes) != 0 || !p.RenewAt.IsZero() {
		t.Errorf("in the authority's last year: %q, due at %v", p.Changes, p.RenewAt)
	}
}

func TestLeafIsRenewedForANewNameAddressOrNode(t *testing.T) {
	cfg := testConfig(t)
	ensure(t, cfg)
	cfg.Names = append(cfg.Names, "new.example.org")
	if p := ensure(t, cfg); !slices.Equal(p.Changes, []string{"apiserver.pem renewed: it lacks the name new.example.org"}) {
		t.Errorf("new name: %q", p.Changes)
	}
	cfg.NodeIPs = append(cfg.NodeIPs, netip.MustParseAddr("192.0.2.9"))
	p := ensure(t, cfg)
	slices.Sort(p.Changes)
	if !slices.Equal(p.Changes, []string{
		"apiserver.pem renewed: it lacks the address 192.0.2.9", "kubelet-serving.pem renewed: it lacks the address 192.0.2.9",
	}) {
		t.Errorf("new address: %q", p.Changes)
	}
	cfg.NodeName = "edge-2"
	if p := ensure(t, cfg); len(p.Changes) != 3 || p.Kubelet.TLS.Leaf.Subject.CommonName != "system:node:edge-2" {
		t.Errorf("new node: %q", p.Changes)
	}
}

func TestLeavesOfAReplacedAuthorityAreRenewed(t *testing.T) {
	cfg := testConfig(t)
	p := ensure(t, cfg)
	if err := errors.Join(os.Remove(p.RequestHeaderCA.CertPath), os.Remove(p.RequestHeaderCA.KeyPath)); err != nil {
		t.Fatal(err)
	}
	p = ensure(t, cfg)
	if len(p.Changes) != 3 || !strings.Contains(p.Changes[2], "front-proxy.pem renewed: it was signed by another authority") {
		t.Errorf("changes: %q", p.Changes)
	}
	if _, err := p.FrontProxy.TLS.Leaf.Verify(x509.VerifyOptions{Roots: pool(p.RequestHeaderCA), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
}

func TestDamagedFileIsNamedAndKept(t *testing.T) {
	cfg := testConfig(t)
	ensure(t, cfg)
	whole := contents(t, cfg.Dir)
	truncate := func(s string) string { return s[:len(s)/2] }
	for file, damage := range map[string]func(string) string{
		"server-ca.crt":         truncate,
		"server-ca.key":         truncate,
		"client-ca.key":         func(string) string { return whole["server-ca.key"] },
		"request-header-ca.crt": func(string) string { return whole["admin.pem"] },
		"service-account.key":   func(string) string { return "" },
		"apiserver.pem":         truncate,
		"kubelet.pem":           func(s string) string { return s[:strings.Index(s, "-----BEGIN EC")] + whole["client-ca.key"] },
		"scheduler.pem":         func(string) string { return "" },
	} {
		path, damaged := filepath.Join(cfg.Dir, file), damage(whole[file])
		if err := os.WriteFile(path, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Ensure(cfg)
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "restore") {
			t.Errorf("%s: %v", file, err)
		}
		if now := contents(t, cfg.Dir)[file]; now != damaged {
			t.Errorf("%s was overwritten", file)
		}
		if err := os.WriteFile(path, []byte(whole[file]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if p := ensure(t, cfg); len(p.Changes) != 0 {
		t.Errorf("after all was mended: %q", p.Changes)
	}
}

func TestAuthorityWithoutItsKeyIsAnError(t *testing.T) {
	cfg := testConfig(t)
	p := ensure(t, cfg)
	if err := os.Remove(p.ClientCA.KeyPath); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(cfg); err == nil || !strings.Contains(err.Error(), p.ClientCA.KeyPath+" is missing") {
		t.Errorf("Ensure: %v", err)
	}
}

func TestCrashBetweenAnyTwoFilesLeavesTheRestInUse(t *testing.T) {
	cfg := testConfig(t)
	order := ensure(t, cfg).Changes // the order in which they came into place
	whole := contents(t, cfg.Dir)
	for n := range order {
		crashed := testConfig(t)
		if err := os.MkdirAll(crashed.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, change := range order[:n] {
			file, _, _ := strings.Cut(change, " ")
			if err := os.WriteFile(filepath.Join(crashed.Dir, file), []byte(whole[file]), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		file, _, _ := strings.Cut(order[n], " ")
		if err := os.WriteFile(filepath.Join(crashed.Dir, ".123.new"), []byte(whole[file][:20]), 0o600); err != nil {
			t.Fatal(err)
		}
		if p := ensure(t, crashed); len(p.Changes) != len(order)-n {
			t.Errorf("after %d of %d files: %q", n, len(order), p.Changes)
		}
		after := contents(t, crashed.Dir)
		if len(after) != len(whole) {
			t.Errorf("after %d files: %d files", n, len(after))
		}
		for _, change := range order[:n] {
			if file, _, _ := strings.Cut(change, " "); after[file] != whole[file] {
				t.Errorf("after %d files: %s changed", n, file)
			}
		}
	}
}

func TestCertificateMadeAgainForAnAuthoritysKeyVouchesForItsLeaves(t *testing.T) {
	cfg := testConfig(t)
	p := ensure(t, cfg)
	if err := os.Remove(p.ServerCA.CertPath); err != nil {
		t.Fatal(err)
	}
	before := p.APIServer
	p = ensure(t, cfg)
	if !slices.Equal(p.Changes, []string{
		"server-ca.crt made for the key that was there",
		"apiserver.pem completed: it lacked the certificate of " + p.ServerCA.CertPath,
	}) {
		t.Errorf("changes: %q", p.Changes)
	}
	if !p.APIServer.TLS.Leaf.Equal(before.TLS.Leaf) {
		t.Error("the API server's own certificate changed")
	}
}

// TestAuthorityIsFoundInTheHandshakeByItsHash: what an agent does that knows
// nothing else.
func TestAuthorityIsFoundInTheHandshakeByItsHash(t *testing.T) {
	p := ensure(t, testConfig(t))
	want := sha256.Sum256(p.ServerCA.Cert.Raw)
	shown := handshake(t, p.APIServer)
	i := slices.IndexFunc(shown, func(c *x509.Certificate) bool { return sha256.Sum256(c.Raw) == want })
	if i < 0 {
		t.Fatalf("no certificate of %d has the authority's hash", len(shown))
	}
	found := x509.NewCertPool()
	found.AddCert(shown[i])
	if _, err := shown[0].Verify(x509.VerifyOptions{DNSName: "edge-1", Roots: found}); err != nil {
		t.Error(err)
	}
	if shown := handshake(t, p.KubeletServing); len(shown) != 1 {
		t.Errorf("a kubelet shows %d certificates", len(shown))
	}
}

// handshake is what a client is shown that trusts nobody yet.
func handshake(t *testing.T, leaf *Leaf) []*x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(leaf.Path, leaf.Path)
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	go func() { _ = tls.Server(there, &tls.Config{Certificates: []tls.Certificate{pair}}).Handshake() }()
	c := tls.Client(here, &tls.Config{InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState().PeerCertificates
}

// TestFileOfAnEarlierVersionIsCompleted: it had no authority in it. Certificate
// and key stay, so that nobody who has them pinned is disturbed.
func TestFileOfAnEarlierVersionIsCompleted(t *testing.T) {
	cfg := testConfig(t)
	p := ensure(t, cfg)
	whole := contents(t, cfg.Dir)["apiserver.pem"]
	authority := string(p.ServerCA.CertPEM)
	for name, earlier := range map[string]string{
		"no authority":       strings.Replace(whole, authority, "", 1),
		"another's":          strings.Replace(whole, authority, string(p.ClientCA.CertPEM), 1),
		"one more behind it": strings.Replace(whole, authority, authority+string(p.ClientCA.CertPEM), 1),
	} {
		if earlier == whole {
			t.Fatalf("the authority is not in the file:\n%s", whole)
		}
		if err := os.WriteFile(p.APIServer.Path, []byte(earlier), 0o600); err != nil {
			t.Fatal(err)
		}
		p := ensure(t, cfg)
		if len(p.Changes) != 1 || !strings.HasPrefix(p.Changes[0], "apiserver.pem completed: ") {
			t.Errorf("%s: changes: %q", name, p.Changes)
		}
		if got := contents(t, cfg.Dir)["apiserver.pem"]; got != whole {
			t.Errorf("%s: the file is\n%s", name, got)
		}
		if p := ensure(t, cfg); len(p.Changes) != 0 {
			t.Errorf("%s: changes at the next start: %q", name, p.Changes)
		}
	}
}

func TestWrongClockIsNamed(t *testing.T) {
	cfg := testConfig(t)
	p := ensure(t, cfg)
	cfg.Now = func() time.Time { return p.ServerCA.Cert.NotBefore.Add(-time.Second) }
	if _, err := Ensure(cfg); err == nil || !strings.Contains(err.Error(), "set the clock") {
		t.Errorf("before: %v", err)
	}
	cfg.Now = func() time.Time { return p.ServerCA.Cert.NotAfter.Add(time.Second) }
	if _, err := Ensure(cfg); err == nil || !strings.Contains(err.Error(), "has expired") {
		t.Errorf("after: %v", err)
	}
}

func TestClockWithoutABatteryMakesCertificatesThatLast(t *testing.T) {
	cfg := testConfig(t)
	cfg.Now = func() time.Time { return time.Unix(0, 0) }
	ensure(t, cfg)
	cfg.Now = func() time.Time { return time.Date(2034, 1, 1, 0, 0, 0, 0, time.UTC) }
	ensure(t, cfg)
}

func TestServiceAccountKeyIsReadByUpstream(t *testing.T) {
	p := ensure(t, testConfig(t))
	if _, err := keyutil.PrivateKeyFromFile(p.ServiceAccount.Path); err != nil {
		t.Error(err)
	}
	public, err := keyutil.PublicKeysFromFile(p.ServiceAccount.Path)
	if err != nil || len(public) != 1 || !p.ServiceAccount.PublicKey.Equal(public[0].(*ecdsa.PublicKey)) {
		t.Errorf("%v, %v", public, err)
	}
}

// TestOneFileIsCertificateAndKeyForUpstream: client and server read the same
// paths for both flags and reach each other.
func TestOneFileIsCertificateAndKeyForUpstream(t *testing.T) {
	p := ensure(t, testConfig(t))
	serving, err := tls.LoadX509KeyPair(p.APIServer.Path, p.APIServer.Path)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{serving}, ClientCAs: pool(p.ClientCA), ClientAuth: tls.RequireAndVerifyClientCert,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	result := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			_, err = io.WriteString(c, "hello")
		}
		result <- err
	}()
	client, err := rest.TLSConfigFor(p.RESTConfig(p.Admin, "https://"+l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.DialWithDialer(new(net.Dialer), "tcp", l.Addr().String(), client)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if text, err := io.ReadAll(c); err != nil || string(text) != "hello" {
		t.Errorf("%q, %v", text, err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestKubeconfigIsReadByUpstreamAndRewrittenOnlyWhenItChanges(t *testing.T) {
	p := ensure(t, testConfig(t))
	path := filepath.Join(t.TempDir(), "etc", "kubeconfig.yaml")
	const host = "https://127.0.0.1:6443"
	stat := func() os.FileInfo {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	write := func(host string, mode fs.FileMode) {
		if err := WriteKubeconfig(path, p.Kubeconfig(p.Admin, host), mode, os.Getgid()); err != nil {
			t.Fatal(err)
		}
	}
	write(host, 0o600)
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	want := p.RESTConfig(p.Admin, host)
	if cfg.Host != host || !bytes.Equal(cfg.CAData, want.CAData) || !bytes.Equal(cfg.CertData, want.CertData) || !bytes.Equal(cfg.KeyData, want.KeyData) {
		t.Errorf("kubeconfig: %+v", cfg)
	}

	first := stat()
	write(host, 0o600)
	if !os.SameFile(first, stat()) {
		t.Error("an unchanged kubeconfig was rewritten")
	}
	write(host, 0o640)
	if stat().Mode() != 0o640 {
		t.Errorf("mode: %v", stat().Mode())
	}
	write("https://192.0.2.7:6443", 0o640)
	if cfg, err := clientcmd.BuildConfigFromFlags("", path); err != nil || cfg.Host != "https://192.0.2.7:6443" {
		t.Errorf("%+v, %v", cfg, err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), tempPattern)); err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func BenchmarkEnsureFromNothing(b *testing.B) {
	for b.Loop() {
		dir, err := os.MkdirTemp("", "pki")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Ensure(Config{Dir: dir, NodeName: "n"}); err != nil {
			b.Fatal(err)
		}
		os.RemoveAll(dir)
	}
}

func BenchmarkEnsureWhenAllIsThere(b *testing.B) {
	cfg := Config{Dir: b.TempDir(), NodeName: "n"}
	for b.Loop() {
		if _, err := Ensure(cfg); err != nil {
			b.Fatal(err)
		}
	}
}
