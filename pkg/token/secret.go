package token

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cluster-bootstrap/token/api"
	"k8s.io/cluster-bootstrap/token/util"
)

const (
	// Namespace is where the API server looks for tokens.
	Namespace = metav1.NamespaceSystem
	// SecretType is the type of their Secrets.
	SecretType = api.SecretTypeBootstrapToken
	// DefaultGroup is the group that the bearers of Knarr's tokens are in beside
	// system:bootstrappers.
	DefaultGroup = api.BootstrapDefaultGroup + ":knarr:default-node-token"

	// UsageAuthentication lets the bearer talk to the API server, UsageSigning has
	// upstream's bootstrapsigner sign ConfigMap kube-public/cluster-info with it.
	UsageAuthentication = "authentication"
	UsageSigning        = "signing"
)

// Grant is a token as the cluster keeps it.
type Grant struct {
	// Token has no CAHash.
	Token Token
	// Expires is when the token ends; zero for never. Seconds count.
	Expires time.Time
	// Usages are of UsageAuthentication and UsageSigning.
	Usages []string
	// Groups are beside system:bootstrappers, and begin with that and a colon.
	Groups []string
	// Description is for people.
	Description string
}

// SecretName is the name of the Secret that holds a token.
func SecretName(id string) string { return util.BootstrapTokenSecretName(id) }

// Secret is the object that makes the token valid; see
// k8s.io/cluster-bootstrap/token/api. An unknown usage and a group with a wrong
// name are errors.
func (g Grant) Secret() (*corev1.Secret, error) {
	data := map[string][]byte{
		api.BootstrapTokenIDKey:     []byte(g.Token.ID),
		api.BootstrapTokenSecretKey: []byte(g.Token.Secret),
	}
	if g.Description != "" {
		data[api.BootstrapTokenDescriptionKey] = []byte(g.Description)
	}
	if !g.Expires.IsZero() {
		data[api.BootstrapTokenExpirationKey] = []byte(g.Expires.UTC().Format(time.RFC3339))
	}
	for _, u := range g.Usages {
		if !slices.Contains(api.KnownTokenUsages, u) {
			return nil, fmt.Errorf("a token has no usage %q: give %s", u, strings.Join(Usages(), " or "))
		}
		data[api.BootstrapTokenUsagePrefix+u] = []byte("true")
	}
	if len(g.Groups) > 0 {
		for _, group := range g.Groups {
			if err := util.ValidateBootstrapGroupName(group); err != nil {
				return nil, err
			}
		}
		data[api.BootstrapTokenExtraGroupsKey] = []byte(strings.Join(g.Groups, ","))
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: SecretName(g.Token.ID)},
		Type:       SecretType,
		Data:       data,
	}, nil
}

// Usages are those that there are.
func Usages() []string { return []string{UsageAuthentication, UsageSigning} }

// Read returns the token that a Secret holds. An expiry that cannot be read is
// an error, since the API server then refuses the token.
func Read(s *corev1.Secret) (Grant, error) {
	if s.Type != SecretType {
		return Grant{}, fmt.Errorf("Secret %s/%s is of type %s, not of a bootstrap token's", s.Namespace, s.Name, s.Type)
	}
	t, err := Parse(string(s.Data[api.BootstrapTokenIDKey]) + "." + string(s.Data[api.BootstrapTokenSecretKey]))
	if err == nil && s.Name != SecretName(t.ID) {
		err = errors.New("its name is for another token id")
	}
	if err != nil {
		return Grant{}, fmt.Errorf("read token in Secret %s/%s: %w", s.Namespace, s.Name, err)
	}
	g := Grant{Token: t, Description: string(s.Data[api.BootstrapTokenDescriptionKey])}
	if text := string(s.Data[api.BootstrapTokenExpirationKey]); text != "" {
		if g.Expires, err = time.Parse(time.RFC3339, text); err != nil {
			return Grant{}, fmt.Errorf("read expiry of token %s in Secret %s/%s: %w", t.ID, s.Namespace, s.Name, err)
		}
	}
	for _, u := range Usages() {
		if string(s.Data[api.BootstrapTokenUsagePrefix+u]) == "true" {
			g.Usages = append(g.Usages, u)
		}
	}
	if text := string(s.Data[api.BootstrapTokenExtraGroupsKey]); text != "" {
		g.Groups = strings.Split(text, ",")
	}
	return g, nil
}
