package join

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilversion "k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/certificate/csr"

	"github.com/knarr-dev/knarr/pkg/dial"
	"github.com/knarr-dev/knarr/pkg/token"
)

// Config says what to join, and as whom.
type Config struct {
	// Dir is where the identity is kept: <data-dir>/agent/identity.
	Dir string
	// Node is the node's name.
	Node string
	// Token is needed where the machine has not joined yet. Its zero value is none.
	Token token.Token
	// Address is what errors call the servers: 127.0.0.1:6444, or that of --server.
	Address string
	// Dial reaches a server, and Await waits until one can be.
	Dial  dial.Func
	Await func(context.Context) error
	// Version is this program's Kubernetes version.
	Version string
	Log     *slog.Logger
	// Now defaults to time.Now.
	Now func() time.Time
}

const (
	firstPause   = 100 * time.Millisecond
	longestPause = time.Second
	// patience is for how long a server may refuse a token, or say that it may
	// not: one that has just started does not know its tokens and roles yet.
	patience = 15 * time.Second
)

// Join returns the machine's identity. One that has joined before, by that name,
// asks nobody. Else the machine waits for a server, be it for hours, and joins:
// an error is final then, and says what to do.
func Join(ctx context.Context, cfg Config) (*Identity, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	id, err := Load(cfg.Dir)
	if err == nil && id.Node != cfg.Node {
		return nil, never("this machine joined as node %s, and is called %s now: give --node-name %s; or delete that node (kubectl delete node %s), remove %s and join anew with a token", id.Node, cfg.Node, id.Node, id.Node, cfg.Dir)
	}
	if err == nil && id.valid(cfg.Now()) {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	expired := err == nil
	if cfg.Token.ID == "" {
		if expired {
			return nil, never("the certificate by which this node joined has expired while it was off: give a token to renew it (--token-file, KNARR_TOKEN); \"knarr token create\" on a server makes one")
		}
		return nil, never("this machine has not joined yet, and no token is given: give --token-file, --token or KNARR_TOKEN; \"knarr token create\" on a server makes one")
	}
	if cfg.Token.CAHash == "" {
		cfg.Log.Warn("the token does not name the cluster's authority, so that whoever answers at the server's address is believed, and learns the token; give the long form, knarr.<hash>.<id>.<secret>")
	}
	if id == nil {
		if id, err = open(cfg.Dir); err != nil {
			return nil, err
		}
	}
	id.Node = cfg.Node
	return id, cfg.until(ctx, func() error { return cfg.join(ctx, id) })
}

// until tries again what fails for a reason that may pass. Each reason is told
// once.
func (cfg Config) until(ctx context.Context, try func() error) error {
	backoff := wait.Backoff{Duration: firstPause, Factor: 2, Jitter: 0.1, Steps: 10, Cap: longestPause}
	var told string
	var refused time.Time
	for {
		if err := cfg.Await(ctx); err != nil {
			return fmt.Errorf("join as node %s: %w", cfg.Node, err)
		}
		err := try()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("join as node %s: %w", cfg.Node, context.Cause(ctx))
		case IsPermanent(err):
			return fmt.Errorf("join as node %s: %w", cfg.Node, err)
		case !apierrors.IsUnauthorized(err) && !apierrors.IsForbidden(err):
			refused = time.Time{}
		case refused.IsZero():
			refused = cfg.Now()
		case cfg.Now().Sub(refused) > patience:
			return fmt.Errorf("join as node %s: %w", cfg.Node, denied(err))
		}
		if text := err.Error(); text != told {
			cfg.Log.Info("cannot join yet", "node", cfg.Node, "err", err)
			told = text
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("join as node %s: %w", cfg.Node, context.Cause(ctx))
		case <-time.After(backoff.Step()):
		}
	}
}

func denied(err error) error {
	if apierrors.IsUnauthorized(err) {
		return never("the cluster does not know the token: it has expired, was deleted, or is another cluster's; \"knarr token create\" on a server makes one (%w)", err)
	}
	return never("the token may not join nodes: %w; \"knarr token create\" on a server makes one that may", err)
}

// join is one attempt, from a handshake to files that are written.
func (cfg Config) join(ctx context.Context, id *Identity) error {
	conn, err := cfg.Dial(ctx, "tcp", cfg.Address)
	if err != nil {
		return err
	}
	ca, err := authority(ctx, conn, cfg.Token, cfg.Now())
	conn.Close() // it is of no more use either way
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(cfg.byToken(ca))
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	if id.Cluster, err = ReadCluster(ctx, client); err != nil {
		return err
	}
	if err := Skew(cfg.Version, id.Cluster.Version); err != nil {
		return permanent{err}
	}
	key, err := id.key()
	if err != nil {
		return permanent{err}
	}
	request, err := requestPEM(cfg.Node, key)
	if err != nil {
		return permanent{err}
	}
	name, uid, err := csr.RequestCertificateWithContext(ctx, client, request, "", certificatesv1.KubeAPIServerClientKubeletSignerName, nil, usages(), key)
	if err != nil {
		return fmt.Errorf("ask for a certificate: %w", err)
	}
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cert, err := csr.WaitForCertificate(wait, client, name, uid)
	if err != nil {
		return cfg.unsigned(ctx, client, name, err)
	}
	if err := id.keep(ca, cert, key); err != nil {
		return permanent{err}
	}
	cfg.Log.Info("joined the cluster", "node", cfg.Node, "server", id.Cluster.Version)
	return nil
}

// byToken is a client that trusts the authority and shows the token.
func (cfg Config) byToken(ca *x509.Certificate) *rest.Config {
	return &rest.Config{
		Host:        "https://" + cfg.Address,
		Dial:        cfg.Dial,
		BearerToken: cfg.Token.Bootstrap(),
		TLSClientConfig: rest.TLSClientConfig{
			ServerName: apiServerName,
			CAData:     pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}),
		},
		// A server that hangs must not hold the join for ever.
		Timeout: time.Minute,
	}
}

// unsigned tells whether the request was denied, and why.
func (cfg Config) unsigned(ctx context.Context, client kubernetes.Interface, name string, err error) error {
	got, getErr := client.CertificatesV1().CertificateSigningRequests().Get(ctx, name, metav1.GetOptions{})
	if getErr == nil {
		for _, c := range got.Status.Conditions {
			if c.Type == certificatesv1.CertificateDenied || c.Type == certificatesv1.CertificateFailed {
				return never("the cluster denies it: %s", c.Message)
			}
		}
	}
	return fmt.Errorf("wait for a certificate: %w", err)
}

func usages() []certificatesv1.KeyUsage {
	return []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}
}

// subject is that of a node's certificates; see KEP-266 and
// plugin/pkg/auth/authorizer/node upstream.
func subject(node string) pkix.Name {
	return pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}
}

func requestPEM(node string, key any) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject(node)}, key)
	if err != nil {
		return nil, fmt.Errorf("make request for a certificate: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// ReadCluster asks a server what the cluster is like.
func ReadCluster(ctx context.Context, client kubernetes.Interface) (Cluster, error) {
	m, err := client.CoreV1().ConfigMaps(ClusterNamespace).Get(ctx, ClusterName, metav1.GetOptions{})
	if err != nil {
		return Cluster{}, fmt.Errorf("ask what the cluster is like: %w", err)
	}
	return ParseCluster(m.Data)
}

// oldest is how many minor versions an agent may be behind its servers
// (Kubernetes' version skew policy).
const oldest = 3

// Skew checks an agent's Kubernetes version against its servers'.
func Skew(agent, server string) error {
	a, err := utilversion.ParseSemantic(agent)
	if err != nil {
		return fmt.Errorf("compare versions: %w", err)
	}
	s, err := utilversion.ParseSemantic(server)
	if err != nil {
		return fmt.Errorf("compare versions: %w", err)
	}
	switch behind := int(s.Minor()) - int(a.Minor()); {
	case a.Major() != s.Major() || behind < 0:
		return fmt.Errorf("this is Kubernetes %s, and the cluster's servers are %s: a node must not be newer than its servers; upgrade the servers first, or install %d.%d here", agent, server, s.Major(), s.Minor())
	case behind > oldest:
		return fmt.Errorf("this is Kubernetes %s, and the cluster's servers are %s: a node may be %d minor versions older at most; install a newer one here", agent, server, oldest)
	}
	return nil
}

// Change is what has become different in a cluster.
type Change struct {
	// Settings are those that a node is started with.
	Settings bool
	// Authorities are those that it trusts.
	Authorities bool
}

// Refresh asks what the cluster is like now, keeps it, and tells what has changed.
func (id *Identity) Refresh(ctx context.Context, client kubernetes.Interface) (Change, error) {
	c, err := ReadCluster(ctx, client)
	if err != nil {
		return Change{}, err
	}
	if c.ServerCA == "" { // an older server
		c.ServerCA = id.Cluster.ServerCA
	}
	if err := c.check(); err != nil {
		return Change{}, err
	}
	was, err := id.Cluster.Data()
	if err != nil {
		return Change{}, err
	}
	is, err := c.Data()
	if err != nil {
		return Change{}, err
	}
	if was[clusterKey] == is[clusterKey] {
		return Change{}, nil
	}
	change := Change{
		// A server that did not tell it before tells what is known from joining.
		Authorities: id.Cluster.ClientCA != c.ClientCA || id.Cluster.ServerCA != "" && id.Cluster.ServerCA != c.ServerCA || id.Cluster.ServerCA == "" && id.unlike(c.ServerCA),
	}
	same := c
	same.ClientCA, same.ServerCA = id.Cluster.ClientCA, id.Cluster.ServerCA
	if is, err = same.Data(); err != nil {
		return Change{}, err
	}
	change.Settings = was[clusterKey] != is[clusterKey]
	return change, id.keepCluster(c)
}
