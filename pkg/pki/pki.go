// Package pki keeps the certificates of a server: one authority each for
// serving, for clients and for the front proxy, so that a certificate made for
// one purpose is worth nothing for another; the key that signs service-account
// tokens; and a leaf for each part that serves or asks.
//
// An authority is a .crt and a .key file, because upstream publishes the files
// it is given as authorities, whole, in ConfigMaps. A leaf is one .pem file that
// holds certificate and key, so that no crash can leave two halves of different
// pairs; it is passed to upstream as certificate file and as key file alike.
package pki

import (
	"crypto/x509"
	"errors"
	"net/netip"
	"sync"
	"time"
)

// Config says where the certificates are and what they are for.
type Config struct {
	// Dir is <data-dir>/server/tls. It is made when missing, mode 0700.
	Dir string
	// NodeName and NodeIPs are the server's own node.
	NodeName string
	NodeIPs  []netip.Addr
	// Names are further names and addresses of the API server (--tls-san).
	Names []string
	// ServiceIP is the first address of the Service network. Each of a dual-stack
	// cluster's further ones goes into Names.
	ServiceIP netip.Addr
	// ClusterDomain defaults to cluster.local.
	ClusterDomain string
	// LeafLifetime is how long a new leaf lasts. Default: LeafLifetime. Leaves
	// that would last longer are renewed.
	LeafLifetime time.Duration
	// RenewAll renews every leaf, however long it would last.
	RenewAll bool
	// Now defaults to time.Now.
	Now func() time.Time
}

// PKI is all that Ensure found or made. It is not changed afterwards.
type PKI struct {
	// ServerCA signs what the API server and the kubelets serve with.
	ServerCA *Authority
	// ClientCA signs what clients of the API server and the kubelets show.
	ClientCA *Authority
	// RequestHeaderCA signs the front proxy's client certificate alone: its
	// holder may claim to be anybody.
	RequestHeaderCA *Authority
	// Leaving are the authorities that these are about to replace; nil unless a
	// rotation has begun.
	Leaving *Leaving
	// Retired are the hashes, SHA-256 in hex, of authorities that were replaced.
	Retired []string
	// ServiceAccount signs service-account tokens.
	ServiceAccount *Key
	// FormerServiceAccount are keys that signed them before, whose tokens are still
	// good.
	FormerServiceAccount []FormerKey

	// APIServer and KubeletServing are server certificates. The API server's comes
	// with that of ServerCA behind it, so that a machine which knows no more than
	// the authority's hash can find it in the TLS handshake.
	APIServer, KubeletServing *Leaf

	// Admin (system:admin) and Knarr (system:knarr-controller), the controllers
	// of this process, are members of system:masters.
	Admin, Knarr *Leaf
	// APIServerToKubelet (kube-apiserver-kubelet-client, system:masters) is what
	// the API server shows to kubelets.
	APIServerToKubelet *Leaf
	// ControllerManager, Scheduler and KubeProxy bear their upstream names.
	ControllerManager, Scheduler, KubeProxy *Leaf
	// Kubelet is system:node:<name> of group system:nodes.
	Kubelet *Leaf
	// DNS is system:knarr-dns.
	DNS *Leaf
	// FrontProxy (system:auth-proxy) is what the aggregation layer shows to
	// extension API servers.
	FrontProxy *Leaf

	// RenewAt is when Ensure would renew the first of the leaves. It is zero if
	// all of them end with their authorities.
	RenewAt time.Time
	// Changes tells which files were made or renewed, and why: one line each.
	Changes []string
}

// Leaving are authorities that others are about to replace. They still sign what
// everybody has to be able to verify: the API server's three certificates.
type Leaving struct {
	ServerCA, ClientCA, RequestHeaderCA *Authority
	// behind is what the API server shows behind its certificate and ServerCA: the
	// new authority, and how it vouches for the old.
	behind [][]byte
}

// Ensure loads what is in the folder, makes what is missing, and renews each
// leaf that has lived two thirds of its life, would last longer than a new one,
// was not signed by the present authority, is for another subject, or lacks a
// name or an address.
//
// An authority's two files may be put there before the first call, with the
// certificates above it behind its own; the key may then be of any kind.
//
// A file that is damaged, and an authority that is not valid at this time, is an
// error that names the file and the way out; no file is changed then, except that
// a rotation of authorities that was told to end is ended.
// Only one process at a time may call Ensure for a folder.
func Ensure(cfg Config) (*PKI, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.ClusterDomain == "" {
		cfg.ClusterDomain = "cluster.local"
	}
	if cfg.LeafLifetime == 0 {
		cfg.LeafLifetime = LeafLifetime
	}
	dir, err := openFolder(cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.discard()
	now, p := cfg.Now(), &PKI{}
	rotating, err := rotation(cfg.Dir)
	if err != nil {
		return nil, err
	}
	p.Retired = readRetired(cfg.Dir)

	err = inParallel(
		func() (err error) { p.ServerCA, err = ensureAuthority(dir, "server-ca", now); return },
		func() (err error) { p.ClientCA, err = ensureAuthority(dir, "client-ca", now); return },
		func() (err error) { p.RequestHeaderCA, err = ensureAuthority(dir, "request-header-ca", now); return },
		func() (err error) { p.ServiceAccount, err = ensureKey(dir, serviceAccountFile); return },
		func() (err error) { p.FormerServiceAccount, err = readFormer(dir); return },
	)
	if err != nil {
		return nil, err
	}
	if rotating != nil {
		if err := p.succeed(dir, now); err != nil {
			return nil, err
		}
	}
	p.FormerServiceAccount = stillGood(p.FormerServiceAccount, p.ServiceAccount, now)
	var work []func() error
	requests := p.requests(cfg)
	for _, r := range requests {
		r.life, r.anew = cfg.LeafLifetime, cfg.RenewAll
		work = append(work, func() (err error) { *r.leaf, err = ensureLeaf(dir, r, now); return })
	}
	if err := inParallel(work...); err != nil {
		return nil, err
	}
	if err := dir.commit(); err != nil {
		return nil, err
	}
	for _, r := range requests {
		c := (*r.leaf).TLS.Leaf
		if at := RenewAt(c); r.canLast(c) && (p.RenewAt.IsZero() || at.Before(p.RenewAt)) {
			p.RenewAt = at
		}
	}
	p.Changes = dir.changes
	return p, nil
}

// requests is the list of all leaves.
func (p *PKI) requests(cfg Config) []request {
	const masters, nodes = "system:masters", "system:nodes"
	node := "system:node:" + cfg.NodeName
	server := func(leaf **Leaf, file, name, group string, san names, chained bool) request {
		return request{leaf: leaf, file: file, by: p.ServerCA, subject: subject(name, group), usage: x509.ExtKeyUsageServerAuth, names: san, chained: chained}
	}
	client := func(leaf **Leaf, file, name, group string) request {
		return request{leaf: leaf, file: file, by: p.ClientCA, subject: subject(name, group), usage: x509.ExtKeyUsageClientAuth}
	}
	all := []request{
		server(&p.APIServer, "apiserver.pem", "kube-apiserver", "", apiServerNames(cfg), true),
		server(&p.KubeletServing, "kubelet-serving.pem", node, nodes, kubeletNames(cfg), false),
		client(&p.Admin, "admin.pem", "system:admin", masters),
		client(&p.Knarr, "knarr.pem", "system:knarr-controller", masters),
		client(&p.APIServerToKubelet, "apiserver-kubelet-client.pem", "kube-apiserver-kubelet-client", masters),
		client(&p.ControllerManager, "controller-manager.pem", "system:kube-controller-manager", ""),
		client(&p.Scheduler, "scheduler.pem", "system:kube-scheduler", ""),
		client(&p.KubeProxy, "kube-proxy.pem", "system:kube-proxy", ""),
		client(&p.Kubelet, "kubelet.pem", node, nodes),
		client(&p.DNS, "dns.pem", "system:knarr-dns", ""),
		{leaf: &p.FrontProxy, file: "front-proxy.pem", by: p.RequestHeaderCA, subject: subject("system:auth-proxy", ""), usage: x509.ExtKeyUsageClientAuth},
	}
	if old := p.Leaving; old != nil {
		for i := range all {
			switch r := &all[i]; r.leaf {
			case &p.APIServer:
				r.by, r.behind = old.ServerCA, old.behind
			case &p.APIServerToKubelet:
				r.by = old.ClientCA
			case &p.FrontProxy:
				r.by = old.RequestHeaderCA
			}
		}
	}
	return all
}

func inParallel(work ...func() error) error {
	errs := make([]error, len(work))
	var wg sync.WaitGroup
	for i, f := range work {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}
