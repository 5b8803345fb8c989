package e2e

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// token asks for one of the namespace's default ServiceAccount.
func (s *space) token(spec authenticationv1.TokenRequestSpec) string {
	s.t.Helper()
	s.kubectl("wait", "serviceaccount/default", "--for=create", "--timeout=60s")
	r, err := s.Client.CoreV1().ServiceAccounts(s.ns).CreateToken(s.t.Context(), "default", &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Status.Token
}

func (s *space) review(token string, audiences ...string) authenticationv1.TokenReviewStatus {
	s.t.Helper()
	r, err := s.Client.AuthenticationV1().TokenReviews().Create(s.t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences}}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Status
}

func TestTokenIsGoodOnlyForWhomItWasMade(t *testing.T) {
	s := newSpace(t)
	token := s.token(authenticationv1.TokenRequestSpec{Audiences: []string{"harbour"}})
	if r := s.review(token, "harbour"); !r.Authenticated || !slices.Equal(r.Audiences, []string{"harbour"}) {
		t.Errorf("for its own audience: %+v", r)
	}
	if r := s.review(token, "castle"); r.Authenticated {
		t.Errorf("another audience accepts it: %+v", r)
	}
	client := s.clientFor(s.bearer(token), func(*rest.Config) {})
	if _, err := client.Discovery().RESTClient().Get().AbsPath("/api").DoRaw(t.Context()); !apierrors.IsUnauthorized(err) {
		t.Errorf("the API server accepts it: %v", err)
	}
}

func TestTokenTellsWhatItIsBoundToAndEndsWithIt(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Secret("seal"))
	s.client()
	pod := s.running("client")
	bound := func(kind, name string) string {
		return s.token(authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: kind, Name: name}})
	}
	ofPod, ofSecret := bound("Pod", "client"), bound("Secret", "seal")
	r := s.review(ofPod)
	for key, value := range map[string]string{"pod-name": "client", "pod-uid": string(pod.UID), "node-name": pod.Spec.NodeName} {
		if got := r.User.Extra["authentication.kubernetes.io/"+key]; !r.Authenticated || !slices.Equal(got, []string{value}) {
			t.Errorf("the review tells of %s %q, want %q", key, got, value)
		}
	}
	if !s.review(ofSecret).Authenticated {
		t.Error("the token of the Secret is not good")
	}
	s.kubectl("delete", "secret/seal", "pod/client")
	for what, token := range map[string]string{"Secret": ofSecret, "pod": ofPod} {
		s.WaitFor(t, "the token to be void with its "+what, func(context.Context) (bool, error) {
			return !s.review(token).Authenticated, nil
		})
	}
	// A pod of the same name is another pod.
	s.client()
	if s.review(ofPod).Authenticated {
		t.Error("the token is good again with another pod of the name")
	}
}

// Strangers to the cluster, such as a cloud's identity service, verify tokens by
// what the issuer publishes and never ask the API server about one.
func TestTokenIsVerifiedByWhatTheIssuerPublishes(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("client", kube.Grace(0), kube.Mount("id", "/id", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "cloud"}}},
	}})))
	s.running("client")
	token := s.in("client", "cat", "/id/token")

	// Any ServiceAccount may read the documents.
	fetch := func(path string) []byte {
		return []byte(s.in("client", "sh", "-c", `cd /var/run/secrets/kubernetes.io/serviceaccount
SSL_CERT_FILE=$PWD/ca.crt testbox get --header "Authorization: Bearer $(cat token)" https://kubernetes.default.svc`+path))
	}
	var issuer struct {
		Issuer  string   `json:"issuer"`
		KeysURI string   `json:"jwks_uri"`
		Algs    []string `json:"id_token_signing_alg_values_supported"`
	}
	if err := json.Unmarshal(fetch("/.well-known/openid-configuration"), &issuer); err != nil {
		t.Fatal(err)
	}
	want(t, "the issuer", issuer.Issuer, "https://kubernetes.default.svc.cluster.local")
	if !strings.HasSuffix(issuer.KeysURI, "/openid/v1/jwks") {
		t.Errorf("the keys are said to be at %q", issuer.KeysURI)
	}
	claims, err := verify(token, fetch("/openid/v1/jwks"))
	if err != nil {
		t.Fatal(err)
	}
	want(t, "who issued the token", fmt.Sprint(claims["iss"]), issuer.Issuer)
	want(t, "whom it is for", fmt.Sprint(claims["aud"]), "[cloud]")
	want(t, "whose it is", fmt.Sprint(claims["sub"]), "system:serviceaccount:"+s.ns+":default")
	if _, err := verify(token[:len(token)-8]+"AAAAAAAA", fetch("/openid/v1/jwks")); err == nil {
		t.Error("a forged token is verified")
	}
	stranger := s.clientFor(rest.AnonymousClientConfig(s.REST), func(*rest.Config) {})
	if _, err := stranger.Discovery().RESTClient().Get().AbsPath("/openid/v1/jwks").DoRaw(t.Context()); !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) {
		t.Errorf("the keys are open to everybody: %v", err)
	}
}

// verify checks a JSON web token's signature by a set of keys, and returns what
// the token claims.
func verify(token string, keys []byte) (map[string]any, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, errors.New("not three parts")
	}
	var decoded [3][]byte
	for i, p := range parts {
		var err error
		if decoded[i], err = base64.RawURLEncoding.DecodeString(p); err != nil {
			return nil, err
		}
	}
	var header struct{ Alg, Kid string }
	var set struct {
		Keys []struct{ Kid, Kty, N, E, X, Y string }
	}
	var claims map[string]any
	if err := errors.Join(json.Unmarshal(decoded[0], &header), json.Unmarshal(keys, &set), json.Unmarshal(decoded[1], &claims)); err != nil {
		return nil, err
	}
	number := func(s string) *big.Int {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			return new(big.Int)
		}
		return new(big.Int).SetBytes(b)
	}
	point := func(x, y string) []byte {
		p := append([]byte{4}, number(x).FillBytes(make([]byte, 32))...) // 4: not compressed
		return append(p, number(y).FillBytes(make([]byte, 32))...)
	}
	hash, sig := sha256.Sum256([]byte(parts[0]+"."+parts[1])), decoded[2]
	for _, k := range set.Keys {
		if k.Kid != header.Kid {
			continue
		}
		switch k.Kty + " " + header.Alg {
		case "EC ES256":
			public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point(k.X, k.Y))
			if err != nil {
				return nil, err
			}
			if len(sig) != 64 || !ecdsa.Verify(public, hash[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
				return nil, errors.New("the signature is wrong")
			}
			return claims, nil
		case "RSA RS256":
			public := &rsa.PublicKey{N: number(k.N), E: int(number(k.E).Int64())}
			return claims, rsa.VerifyPKCS1v15(public, crypto.SHA256, hash[:], sig)
		}
	}
	return nil, fmt.Errorf("no key %s of the algorithm %s", header.Kid, header.Alg)
}
