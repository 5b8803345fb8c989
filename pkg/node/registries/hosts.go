package registries

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// asker tells the credentials that a pull came with, such as those of a pod's
// imagePullSecrets; empty ones if it came with none.
type asker func(host string) (user, secret string, err error)

// mirror is what the file says about a registry's mirrors.
func (f *file) mirror(registry string) mirror {
	if m, ok := f.mirrors[registry]; ok {
		return m
	}
	return f.mirrors[anyRegistry]
}

// lists tells whether there is an entry for a registry's mirrors, which may name
// none.
func (f *file) lists(registry string) bool {
	_, own := f.mirrors[registry]
	_, all := f.mirrors[anyRegistry]
	return own || all
}

// access is what the file says about a host.
func (f *file) access(host string) (access, bool) {
	candidates := []string{host}
	if name, port, err := net.SplitHostPort(host); err != nil {
		candidates = append(candidates, host+":443")
	} else if port == "443" {
		candidates = append(candidates, name)
	}
	if host == "registry-1.docker.io" {
		candidates = append(candidates, "docker.io")
	}
	for _, c := range append(candidates, anyRegistry) {
		if a, ok := f.configs[c]; ok {
			return a, true
		}
	}
	return access{}, false
}

// concerns tells whether pulls from a registry go any other way than without
// the file.
func (f *file) concerns(registry string) bool {
	host, err := docker.DefaultHost(registry)
	if err != nil {
		return false
	}
	_, known := f.access(host)
	return known || len(f.mirror(registry).endpoints) > 0
}

// hosts are the endpoints to ask for a registry's images, in order: its mirrors,
// then the registry itself.
func (f *file) hosts(registry string, pull asker) ([]docker.RegistryHost, error) {
	own, err := f.own(registry)
	if err != nil {
		return nil, err
	}
	m := f.mirror(registry)
	endpoints := slices.Clone(m.endpoints)
	if !slices.ContainsFunc(endpoints, func(e endpoint) bool { return e.host == own.host }) {
		endpoints = append(endpoints, own)
	}
	var hosts []docker.RegistryHost
	for i, e := range endpoints {
		var rewrites []rewrite
		if i < len(m.endpoints) {
			rewrites = m.rewrites
		}
		h, err := f.host(e, rewrites, e.host == own.host, pull)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// own is the registry's own endpoint.
func (f *file) own(registry string) (endpoint, error) {
	host, err := docker.DefaultHost(registry)
	if err != nil {
		return endpoint{}, fmt.Errorf("find registry %s: %w", registry, err)
	}
	scheme := usualScheme(host)
	if a, _ := f.access(host); a.encrypted {
		scheme = "https"
	}
	return endpoint{scheme: scheme, host: host, path: "/v2"}, nil
}

func (f *file) host(e endpoint, rewrites []rewrite, own bool, pull asker) (docker.RegistryHost, error) {
	a, _ := f.access(e.host)
	tlsConfig, err := a.tls()
	if err != nil {
		return docker.RegistryHost{}, fmt.Errorf("configs.%s.tls: %w", e.host, err)
	}
	connect := docker.DefaultHTTPTransport(tlsConfig)
	if f.dial != nil {
		connect.DialContext = f.dial
	}
	var transport http.RoundTripper = connect
	tokens := transport
	if len(rewrites) > 0 {
		tokens = rewriteScopes{next: transport, rewrites: rewrites}
		transport = rewritePaths{next: transport, endpoint: e, rewrites: rewrites}
	}
	creds := func(host string) (string, string, error) { return a.credentials(e.host, host, own, pull) }
	return docker.RegistryHost{
		Client:       &http.Client{Transport: transport},
		Authorizer:   docker.NewDockerAuthorizer(docker.WithAuthClient(&http.Client{Transport: tokens}), docker.WithAuthCreds(creds)),
		Host:         e.host,
		Scheme:       e.scheme,
		Path:         e.path,
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityReferrers,
	}, nil
}

// credentials are those to give an asking host. What a pull came with is meant
// for the registry that the image names, so that there it goes first; a mirror
// gets it only if the file has nothing for the mirror.
func (a access) credentials(configured, asking string, own bool, pull asker) (user, secret string, err error) {
	fromFile := func() bool {
		user, secret = a.username, a.password
		if a.identityToken != "" {
			user, secret = "", a.identityToken
		}
		// A host that the configured one sends us on to is another one.
		return asking == configured && secret != ""
	}
	if !own && fromFile() {
		return user, secret, nil
	}
	user, secret, err = pull(asking)
	if err != nil || secret != "" {
		return user, secret, err
	}
	if fromFile() {
		return user, secret, nil
	}
	return "", "", nil
}

// tls reads the certificates, each time anew: they are replaced before they end.
func (a access) tls() (*tls.Config, error) {
	c := &tls.Config{InsecureSkipVerify: a.insecure}
	if a.caFile != "" {
		pem, err := os.ReadFile(a.caFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		// The host's own authorities stay trusted, as with containerd.
		if c.RootCAs, err = x509.SystemCertPool(); err != nil {
			return nil, fmt.Errorf("read the host's certificate authorities: %w", err)
		}
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: %s has no certificate in PEM", a.caFile)
		}
	}
	if (a.certFile == "") != (a.keyFile == "") {
		return nil, errors.New("has but one of cert_file and key_file; give both")
	}
	if a.certFile != "" {
		pair, err := tls.LoadX509KeyPair(a.certFile, a.keyFile)
		if err != nil {
			return nil, fmt.Errorf("cert_file and key_file: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
