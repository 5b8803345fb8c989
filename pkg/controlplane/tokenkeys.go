package controlplane

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"sync"
	"time"

	"gopkg.in/go-jose/go-jose.v2/jwt"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"github.com/knarr-dev/knarr/pkg/pki"
)

// tokenKeys are the keys of service-account tokens, of which upstream knows only
// those that its files held when it started: here the newest signs, and those before
// it are good until their time is over.
type tokenKeys struct {
	pki    func() *pki.PKI
	issuer string
	now    func() time.Time

	mu        sync.Mutex
	listeners []serviceaccount.Listener
	signer    serviceaccount.TokenGenerator
	signs     *ecdsa.PrivateKey // signer's
}

var (
	_ serviceaccount.PublicKeysGetter = (*tokenKeys)(nil)
	_ serviceaccount.TokenGenerator   = (*tokenKeys)(nil)
)

func newTokenKeys(keys func() *pki.PKI, issuer string) *tokenKeys {
	return &tokenKeys{pki: keys, issuer: issuer, now: time.Now}
}

// keysCacheAge is for how long others may keep the published keys, as upstream says
// it for keys in files.
const keysCacheAge = 3600

// AddListener implements serviceaccount.PublicKeysGetter.
func (k *tokenKeys) AddListener(l serviceaccount.Listener) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.listeners = append(k.listeners, l)
}

// GetCacheAgeMaxSeconds implements serviceaccount.PublicKeysGetter.
func (k *tokenKeys) GetCacheAgeMaxSeconds() int { return keysCacheAge }

// GetPublicKeys implements serviceaccount.PublicKeysGetter.
func (k *tokenKeys) GetPublicKeys(ctx context.Context, id string) []serviceaccount.PublicKey {
	p := k.pki()
	all := []any{&p.ServiceAccount.PublicKey}
	for _, f := range p.FormerServiceAccount {
		if k.now().Before(f.Until) {
			all = append(all, f.Public)
		}
	}
	known, err := serviceaccount.StaticPublicKeysGetter(all)
	if err != nil {
		return nil // they are ECDSA keys, which all can be encoded
	}
	return known.GetPublicKeys(ctx, id)
}

// GenerateToken implements serviceaccount.TokenGenerator.
func (k *tokenKeys) GenerateToken(ctx context.Context, claims *jwt.Claims, private any) (string, error) {
	signer, err := k.present()
	if err != nil {
		return "", err
	}
	return signer.GenerateToken(ctx, claims, private)
}

func (k *tokenKeys) present() (serviceaccount.TokenGenerator, error) {
	key := k.pki().ServiceAccount.PrivateKey
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.signs == key {
		return k.signer, nil
	}
	signer, err := serviceaccount.JWTTokenGenerator(k.issuer, key)
	if err != nil {
		return nil, fmt.Errorf("sign by the newest key of service accounts: %w", err)
	}
	k.signer, k.signs = signer, key
	return signer, nil
}

// publish has the published keys follow until ctx ends.
func (k *tokenKeys) publish(ctx context.Context, follow func() (*pki.PKI, <-chan struct{})) {
	for {
		p, other := follow()
		// Nil, which is never, unless a former key ends.
		var over <-chan time.Time
		if next, any := k.firstEnd(p); any {
			over = time.After(next)
		}
		select {
		case <-ctx.Done():
			return
		case <-other:
		case <-over:
		}
		k.mu.Lock()
		listeners := k.listeners
		k.mu.Unlock()
		for _, l := range listeners {
			l.Enqueue()
		}
	}
}

// firstEnd is how long the first of the former keys is still good.
func (k *tokenKeys) firstEnd(p *pki.PKI) (left time.Duration, any bool) {
	for _, f := range p.FormerServiceAccount {
		if d := f.Until.Sub(k.now()); d > 0 && (!any || d < left) {
			left, any = d, true
		}
	}
	return left, any
}

// useTokenKeys has the API server ask for the keys each time, unless the user has
// given keys of his own. It returns what is to be done once the options are complete.
func useTokenKeys(opts *options.ServerRunOptions, keys *tokenKeys) func(*options.CompletedOptions) {
	sa := opts.Authentication.ServiceAccounts
	own := keys.pki().ServiceAccount.Path
	if len(sa.KeyFiles) != 1 || sa.KeyFiles[0] != own || opts.ServiceAccountSigningKeyFile != own {
		return func(*options.CompletedOptions) {}
	}
	sa.KeyFiles, sa.ExternalPublicKeysGetter = nil, keys
	if len(sa.Issuers) > 0 {
		keys.issuer = sa.Issuers[0]
	}
	return func(c *options.CompletedOptions) { c.ServiceAccountIssuer = keys }
}
