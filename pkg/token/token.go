// Package token is what a machine shows to join a cluster: an ordinary bootstrap
// token of Kubernetes, with the hash of the cluster's authority before it, by
// which the machine knows whom it gives the token to.
package token

import (
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"k8s.io/cluster-bootstrap/token/api"
	"k8s.io/cluster-bootstrap/token/util"
)

// prefix begins the long form, so that a token can be told from other secrets.
const prefix = "knarr"

// Token lets a machine join. Its zero value is no token.
//
// Whatever formats or encodes one (fmt, slog, JSON) gets its id alone: the whole
// of it must be asked for, with String or Bootstrap.
type Token struct {
	// CAHash is the SHA-256, in lower-case hex, of the DER of the authority that
	// signs the API server's certificate; see HashCA. It is empty in the short
	// form, whose holder has to trust whoever answers.
	CAHash string
	// ID is public: six letters of a-z and digits.
	ID string
	// Secret is sixteen of them.
	Secret string
}

var (
	_ fmt.Formatter          = Token{}
	_ slog.LogValuer         = Token{}
	_ encoding.TextMarshaler = Token{}
)

// Generate makes a token at random, without an authority's hash.
func Generate() (Token, error) {
	text, err := util.GenerateBootstrapToken()
	if err != nil {
		return Token{}, fmt.Errorf("make a token: %w", err)
	}
	return Parse(text)
}

// HashCA is the hash of an authority's certificate, given as DER.
func HashCA(certDER []byte) string {
	sum := sha256.Sum256(certDER)
	return hex.EncodeToString(sum[:])
}

// Parse reads both forms, knarr.<hash>.<id>.<secret> and <id>.<secret>, with
// space around them as a file has it. Its errors say what is wrong and show
// nothing of the text.
func Parse(text string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(text), ".")
	var t Token
	switch {
	case len(parts) == 1 && parts[0] == "":
		return Token{}, errors.New("the token is empty")
	case parts[0] == prefix && len(parts) == 4:
		t.CAHash, t.ID, t.Secret = parts[1], parts[2], parts[3]
		if !isHash(t.CAHash) {
			return Token{}, fmt.Errorf("the token's second part is not the hash of an authority: %d digits of 0-9 and a-f", 2*sha256.Size)
		}
	case parts[0] != prefix && len(parts) == 2:
		t.ID, t.Secret = parts[0], parts[1]
	default:
		return Token{}, fmt.Errorf("the token has %d parts with dots between them: it has to be %s.<hash>.<id>.<secret>, or <id>.<secret>", len(parts), prefix)
	}
	if !IsID(t.ID) {
		return Token{}, fmt.Errorf("the token's id is not %d letters of a-z and digits", api.BootstrapTokenIDBytes)
	}
	if !util.IsValidBootstrapToken(t.Bootstrap()) {
		return Token{}, fmt.Errorf("the token's secret is not %d letters of a-z and digits", api.BootstrapTokenSecretBytes)
	}
	return t, nil
}

// IsID tells whether text can be the id of a token.
func IsID(text string) bool { return util.IsValidBootstrapTokenID(text) }

func isHash(text string) bool {
	raw, err := hex.DecodeString(text)
	return err == nil && len(raw) == sha256.Size && text == strings.ToLower(text)
}

// String is the whole token, in the short form if it has no hash. It must not
// come into logs, errors or the arguments of a process.
func (t Token) String() string {
	if t.CAHash == "" {
		return t.Bootstrap()
	}
	return prefix + "." + t.CAHash + "." + t.Bootstrap()
}

// Bootstrap is what Kubernetes knows: <id>.<secret>, the bearer token.
func (t Token) Bootstrap() string { return util.TokenFromIDAndSecret(t.ID, t.Secret) }

// Redacted may be shown.
func (t Token) Redacted() string { return "token " + t.ID }

// Format implements fmt.Formatter, for all verbs alike.
func (t Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.Redacted()) }

// LogValue implements slog.LogValuer.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.Redacted()) }

// MarshalText implements encoding.TextMarshaler: Redacted, lest a struct that
// holds a token carries it into a file or a log.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.Redacted()), nil }
