package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/knarr-dev/knarr/pkg/token"
)

func TestNothingSecretIsLeft(t *testing.T) {
	join, err := token.Generate()
	if err != nil {
		t.Fatal(err)
	}
	join.CAHash = strings.Repeat("0a", 32)
	const known = "hunter-2-of-the-user"
	s := NewScrubber(known, join.String())
	for text, secret := range map[string]string{
		"the password is " + known + ", it seems":                                     known,
		"data: " + base64.StdEncoding.EncodeToString([]byte(known)):                   base64.StdEncoding.EncodeToString([]byte(known)),
		"joining with knarr." + strings.Repeat("ab", 32) + ".abc123.0123456789abcdef": "0123456789abcdef",
		"knarr agent --token abc123.0123456789abcdef":                                 "0123456789abcdef",
		"Authorization: Bearer abcdefghijklmnop":                                      "abcdefghijklmnop",
		"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl":                       "c2lnbmF0dXJl",
		"https://user:pass-word@registry.example.org/v2":                              "pass-word",
		"-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----":      "MHcCAQEE",
		"-----BEGIN PRIVATE KEY-----\nMHcCAQEE cut off":                               "MHcCAQEE",
		"  password: s3cr3t-words":                                                    "s3cr3t-words",
		`{"token":"s3cr3t-words"}`:                                                    "s3cr3t-words",
		"KNARR_TOKEN=s3cr3t-words":                                                    "s3cr3t-words",
		"--datastore-passphrase=s3cr3t-words":                                         "s3cr3t-words",
		"client-key-data: czNjcjN0":                                                   "czNjcjN0",
		"auth: dXNlcjpwYXNz":                                                          "dXNlcjpwYXNz",
	} {
		got := s.Scrub(text)
		if strings.Contains(got, secret) || !strings.Contains(got, Hidden) {
			t.Errorf("%q became %q", text, got)
		}
	}
	for _, text := range []string{
		"token-file: /etc/knarr/token", "apiserver ready after 1.2s", "service-account-key-file=/var/lib/knarr/server/tls/service-account.key",
		"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", "automountServiceAccountToken: false",
	} {
		if got := s.Scrub(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func FuzzScrub(f *testing.F) {
	f.Add("KNARR_TOKEN=x")
	f.Add("-----BEGIN PRIVATE KEY-----")
	s := NewScrubber("a-known-secret")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(s.Scrub(text+"a-known-secret"), "a-known-secret") {
			t.Errorf("left in %q", text)
		}
	})
}

func TestABundleTellsWhatCouldNotBeHad(t *testing.T) {
	var b bytes.Buffer
	err := Write(t.Context(), &b, "bundle", NewScrubber("the-secret"), []Step{
		Text("a.txt", func() (string, error) { return "with the-secret", nil }),
		Text("b/c.txt", func() (string, error) { return "half", errors.New("it broke") }),
		Program("none.txt", "there-is-no-such-program"),
		Text("long.txt", func() (string, error) { return strings.Repeat("x", stepSize) + "the end", nil }),
	})
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(text)
	}
	if files["bundle/a.txt"] != "with "+Hidden || files["bundle/b/c.txt"] != "half\n[it broke]\n" || !strings.Contains(files["bundle/none.txt"], "executable file not found") {
		t.Errorf("files: %q", files)
	}
	if l := files["bundle/long.txt"]; len(l) > stepSize+10 || !strings.HasSuffix(l, "the end") {
		t.Errorf("a long text is kept with %d bytes", len(l))
	}
}
