package pki

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
)

// idleConnTime is how long a connection that nothing uses any more stays open.
const idleConnTime = 90 * time.Second

// Transport reaches the API server with a client certificate that may be
// replaced at any time. Requests that begin after Use are sent with the new one,
// over new connections; those that have begun, watches and streams among them,
// end in their own time over the old. client-go's own rotation would close the
// connections under them.
type Transport struct {
	current atomic.Pointer[http.Transport]
}

var (
	_ http.RoundTripper           = (*Transport)(nil)
	_ utilnet.RoundTripperWrapper = (*Transport)(nil)
)

// NewTransport returns one that trusts servers signed by ca.
func NewTransport(ca *Authority, client *Leaf) (*Transport, error) {
	t := new(Transport)
	return t, t.Use(ca, client)
}

// Use has new requests sent with another certificate.
func (t *Transport) Use(ca *Authority, client *Leaf) error {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca.TrustPEM) {
		return fmt.Errorf("trust authority %s: there is no certificate in it", ca.CertPath)
	}
	next := utilnet.SetTransportDefaults(&http.Transport{
		TLSClientConfig: &tls.Config{
			MinVersion:   tls.VersionTLS12,
			RootCAs:      roots,
			Certificates: []tls.Certificate{client.TLS},
		},
		TLSHandshakeTimeout: 10 * time.Second,
		// The API server is on this machine.
		DisableCompression: true,
		// As many as client-go's transports keep.
		MaxIdleConnsPerHost: 25,
		IdleConnTimeout:     idleConnTime,
	})
	if old := t.current.Swap(next); old != nil {
		old.CloseIdleConnections()
	}
	return nil
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	return t.current.Load().RoundTrip(r)
}

// WrappedRoundTripper implements utilnet.RoundTripperWrapper: streams that leave
// HTTP look for TLS settings there.
func (t *Transport) WrappedRoundTripper() http.RoundTripper { return t.current.Load() }

// CloseIdleConnections is what http.Client looks for.
func (t *Transport) CloseIdleConnections() { t.current.Load().CloseIdleConnections() }

// RESTConfig is how a client in this process reaches the API server at host
// ("https://127.0.0.1:6443"), each time with the newest certificate.
func (t *Transport) RESTConfig(host string) *rest.Config {
	return &rest.Config{Host: host, Transport: t}
}
