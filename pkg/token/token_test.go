package token

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	hash   = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	secret = "s3cr3ts3cr3ts3cr"
)

func TestBothFormsOfATokenAreReadAndWritten(t *testing.T) {
	for text, want := range map[string]Token{
		"knarr." + hash + ".abc123." + secret: {hash, "abc123", secret},
		"abc123." + secret:                    {"", "abc123", secret},
		"knarr1." + secret:                    {"", "knarr1", secret},
	} {
		got, err := Parse("  " + text + "\n")
		if err != nil || got != want || got.String() != text || got.Bootstrap() != want.ID+"."+secret {
			t.Errorf("%s: %+v, %q, %v", text, got.ID, got.String(), err)
		}
	}
}

func TestErrorsOfATokenSayWhatIsWrongAndShowNothingOfIt(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "empty",
		" \n":                               "empty",
		secret:                              "1 parts",
		"knarr." + secret:                   "2 parts",
		"knarr." + hash + "." + secret:      "3 parts",
		"a.b.c.d." + secret:                 "5 parts",
		"kn." + hash + ".abc123." + secret:  "4 parts",
		"knarr.abc123." + secret + ".x":     "hash of an authority",
		"knarr." + hash[1:] + ".abc123.s":   "hash of an authority",
		"knarr." + hash + "00.abc123.s":     "hash of an authority",
		"knarr.A" + hash[1:] + ".abc123.s":  "hash of an authority",
		"knarr.x" + hash[1:] + ".abc123.s":  "hash of an authority",
		"ABC123." + secret:                  "id is not 6",
		secret + ".abc123":                  "id is not 6",
		"abc123." + secret[1:]:              "secret is not 16",
		"abc123." + secret + "x":            "secret is not 16",
		"abc123." + strings.ToUpper(secret): "secret is not 16",
		"abc123. " + secret:                 "secret is not 16",
		"knarr." + hash + ".abc123." + "ü" + secret[2:]: "secret is not 16",
	} {
		got, err := Parse(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
			continue
		}
		if got != (Token{}) {
			t.Errorf("%q: a token beside the error", text)
		}
		for part := range strings.SplitSeq(text, ".") {
			if len(part) > 3 && part != prefix && strings.Contains(err.Error(), part) {
				t.Errorf("the error shows %q: %v", part, err)
			}
		}
	}
}

func TestNoFormattingShowsTheSecretOfAToken(t *testing.T) {
	tok := Token{hash, "abc123", secret}
	var logged bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&logged, nil), slog.NewJSONHandler(&logged, nil)} {
		slog.New(h).Info("join", "with", tok, "also", &tok, "grant", Grant{Token: tok})
	}
	said := logged.String() + errors.Join(fmt.Errorf("join with %v", tok)).Error()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		said += fmt.Sprintf(verb, tok) + fmt.Sprintf(verb, &tok) + fmt.Sprintf(verb, []Token{tok})
	}
	if strings.Contains(said, secret) || strings.Contains(said, fmt.Sprintf("%x", secret)) {
		t.Errorf("the secret is in %s", said)
	}
	if !strings.Contains(said, "token abc123") {
		t.Errorf("the id is not in %s", said)
	}
}

func TestGeneratedTokensAreValidAndDiffer(t *testing.T) {
	seen := map[Token]bool{}
	for range 100 {
		tok, err := Generate()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Parse(tok.String()); err != nil || again != tok || tok.CAHash != "" || seen[tok] {
			t.Fatalf("%v, %v", again.ID, err)
		}
		seen[tok] = true
	}
}

func TestHashOfAnAuthorityIsThatOfItsDER(t *testing.T) {
	// printf abc | sha256sum
	if got := HashCA([]byte("abc")); got != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Errorf("%s", got)
	}
}

func TestASecretHoldsTheWholeGrant(t *testing.T) {
	in := Grant{
		Token: Token{ID: "abc123", Secret: secret}, Expires: time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC),
		Usages: Usages(), Groups: []string{DefaultGroup, "system:bootstrappers:edge"}, Description: "rack 7",
	}
	for _, g := range []Grant{in, {Token: in.Token}} {
		s, err := g.Secret()
		if err != nil {
			t.Fatal(err)
		}
		if s.Namespace != "kube-system" || s.Name != "bootstrap-token-abc123" || s.Type != "bootstrap.kubernetes.io/token" {
			t.Errorf("%s/%s of type %s", s.Namespace, s.Name, s.Type)
		}
		out, err := Read(s)
		if err != nil || !reflect.DeepEqual(out, g) {
			t.Errorf("%+v, %v", out, err)
		}
	}
	if _, err := (Grant{Token: in.Token, Usages: []string{"admin"}}).Secret(); err == nil {
		t.Error("an unknown usage is taken")
	}
	if _, err := (Grant{Token: in.Token, Groups: []string{"system:masters"}}).Secret(); err == nil {
		t.Error("a group of others is taken")
	}
}

func TestASecretThatTheAPIServerWouldRefuseIsAnError(t *testing.T) {
	for name, spoil := range map[string]func(*corev1.Secret){
		"type":   func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque },
		"name":   func(s *corev1.Secret) { s.Name = "bootstrap-token-abc124" },
		"secret": func(s *corev1.Secret) { s.Data["token-secret"] = []byte(secret[1:]) },
		"expiry": func(s *corev1.Secret) { s.Data["expiration"] = []byte("tomorrow") },
	} {
		s, err := Grant{Token: Token{ID: "abc123", Secret: secret}}.Secret()
		if err != nil {
			t.Fatal(err)
		}
		spoil(s)
		if _, err := Read(s); err == nil || strings.Contains(err.Error(), secret[1:]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"", ".", "abc123." + secret, "knarr." + hash + ".abc123." + secret, "knarr....", "\x00." + secret} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := Parse(text)
		if err != nil {
			if tok != (Token{}) {
				t.Errorf("%q: a token beside the error", text)
			}
			return
		}
		if tok.String() != strings.TrimSpace(text) {
			t.Errorf("%q is written as %q", text, tok.String())
		}
		if again, err := Parse(tok.String()); err != nil || again != tok {
			t.Errorf("%q does not survive: %v", text, err)
		}
	})
}
