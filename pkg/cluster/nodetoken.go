package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/pkg/token"
)

// nodeTokenLabel marks the Secret of the server's own token.
const nodeTokenLabel = "knarr.dev/node-token"

// nodeToken is the server's own token, which does not expire. It is kept in a
// file for whoever sets up nodes, and as a Secret for the API server.
//
// Whoever deletes the Secret has revoked the token: the next start makes another
// one. So does a start without the file.
type nodeToken struct {
	path string
	// caHash is that of the authority that machines will meet.
	caHash string
	// valid are the hashes that a token may name, caHash among them.
	valid []string
	// given is the user's own (--token), used in place of a random one; or empty.
	given string
	log   *slog.Logger
}

// ensure writes nothing when all is as it was.
func (n nodeToken) ensure(ctx context.Context, client kubernetes.Interface) error {
	old, err := n.read()
	if err != nil {
		return err
	}
	want, err := n.wanted(old)
	if err != nil {
		return err
	}
	valid := false
	if want.ID != "" {
		if valid, err = isGranted(ctx, client, want); err != nil {
			return err
		}
	}
	if !valid {
		if n.given == "" {
			if want, err = token.Generate(); err != nil {
				return err
			}
		}
		if err := grant(ctx, client, want); err != nil {
			return err
		}
		if old.ID != "" {
			n.log.Info("the server has a new token for nodes", "file", n.path, "old", old, "new", want)
		}
	}
	if want.Bootstrap() != old.Bootstrap() {
		// The file comes last: until it is written, each start comes by here.
		if err := revokeOthers(ctx, client, want); err != nil {
			return err
		}
	}
	want.CAHash = n.caHash
	return pki.WriteSecret(n.path, []byte(want.String()+"\n"))
}

// read returns the file's token, or none if there is no file.
func (n nodeToken) read() (token.Token, error) {
	text, err := os.ReadFile(n.path)
	if errors.Is(err, fs.ErrNotExist) {
		return token.Token{}, nil
	}
	var t token.Token
	if err == nil {
		t, err = token.Parse(string(text))
	}
	if err != nil {
		return t, fmt.Errorf("read token of nodes in %s: %w: delete the file and start knarr again, which makes another token", n.path, err)
	}
	return t, nil
}

// wanted is the user's token, or else the file's.
func (n nodeToken) wanted(old token.Token) (token.Token, error) {
	if n.given == "" {
		return old, nil
	}
	t, err := token.Parse(n.given)
	if err != nil {
		return t, fmt.Errorf("--token: %w", err)
	}
	if t.CAHash != "" && t.CAHash != n.caHash && !slices.Contains(n.valid, t.CAHash) {
		return t, fmt.Errorf("--token: it is of another cluster, or of before the authorities were replaced: it names authority sha256:%s, and this server's is sha256:%s; give <id>.<secret> alone, or restore the authority", t.CAHash, n.caHash)
	}
	return t, nil
}

// isGranted tells whether a token is in the cluster, and lets machines join for
// good.
func isGranted(ctx context.Context, client kubernetes.Interface, t token.Token) (bool, error) {
	s, err := client.CoreV1().Secrets(token.Namespace).Get(ctx, token.SecretName(t.ID), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for %s: %w", t.Redacted(), err)
	}
	g, err := token.Read(s)
	if err != nil {
		return false, nil // whatever it is, it is not that token
	}
	return g.Token.Bootstrap() == t.Bootstrap() && g.Expires.IsZero() &&
		slices.Contains(g.Usages, token.UsageAuthentication) && s.Labels[nodeTokenLabel] != "", nil
}

func grant(ctx context.Context, client kubernetes.Interface, t token.Token) error {
	s, err := token.Grant{
		Token:       t,
		Usages:      []string{token.UsageAuthentication},
		Groups:      []string{token.DefaultGroup},
		Description: "the server's own, in server/node-token of its data dir",
	}.Secret()
	if err != nil {
		return fmt.Errorf("grant %s: %w", t.Redacted(), err)
	}
	s.Labels = map[string]string{nodeTokenLabel: "true"}
	secrets := client.CoreV1().Secrets(token.Namespace)
	_, err = secrets.Create(ctx, s, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = secrets.Update(ctx, s, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("grant %s: %w", t.Redacted(), err)
	}
	return nil
}

// revokeOthers deletes tokens that the server had before.
func revokeOthers(ctx context.Context, client kubernetes.Interface, but token.Token) error {
	secrets := client.CoreV1().Secrets(token.Namespace)
	all, err := secrets.List(ctx, metav1.ListOptions{LabelSelector: nodeTokenLabel})
	if err != nil {
		return fmt.Errorf("look for earlier tokens of nodes: %w", err)
	}
	for _, s := range all.Items {
		if s.Type != token.SecretType || s.Name == token.SecretName(but.ID) {
			continue
		}
		if err := secrets.Delete(ctx, s.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("revoke an earlier token of nodes: %w", err)
		}
	}
	return nil
}
