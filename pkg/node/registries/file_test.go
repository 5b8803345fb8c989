package registries

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const example = `
mirrors:
  docker.io:
    endpoint:
      - https://mirror.example.org:5000
      - mirror.example.net/v2
      - localhost:5001/hub/
    rewrite:
      "^library/(.*)$": hub/$1
      "(.*)": rest/$1
  quay.io:
  "*": {endpoint: ["http://any.example.org"]}
configs:
  mirror.example.org:5000:
    auth: {username: anna, password: 12345}
    tls: {insecure_skip_verify: true}
  ghcr.io:
    auth: {identity_token: token}
`

func TestFileInTheFormatOfK3sIsRead(t *testing.T) {
	f, err := parse("/etc/knarr/registries.yaml", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	hub := f.mirror("docker.io")
	want := []endpoint{
		{"https", "mirror.example.org:5000", "/v2"}, {"https", "mirror.example.net", "/v2"}, {"http", "localhost:5001", "/hub"},
	}
	for i, e := range hub.endpoints {
		if e != want[i] {
			t.Errorf("endpoint %d is %v, want %v", i, e, want[i])
		}
	}
	for name, want := range map[string]string{"library/busybox": "hub/busybox", "team/app": "rest/team/app"} {
		if got := rewritten(name, hub.rewrites); got != want {
			t.Errorf("%s is rewritten to %s, want %s", name, got, want)
		}
	}
	if m := f.mirror("quay.io"); len(m.endpoints) != 0 {
		t.Errorf("a registry with an entry of its own has the mirrors of all: %v", m.endpoints)
	}
	if m := f.mirror("elsewhere.example.org"); len(m.endpoints) != 1 || m.endpoints[0].host != "any.example.org" {
		t.Errorf("another registry has the mirrors %v", m.endpoints)
	}
	if a, ok := f.access("mirror.example.org:5000"); !ok || a.username != "anna" || a.password != "12345" || !a.insecure {
		t.Errorf("access is %+v", a)
	}
	if a, ok := f.access("ghcr.io:443"); !ok || a.identityToken != "token" {
		t.Errorf("the usual port makes another host: %+v", a)
	}
	for registry, want := range map[string]bool{"docker.io": true, "quay.io": false, "ghcr.io": true, "other.example.org": true} {
		if got := f.concerns(registry); got != want {
			t.Errorf("the file concerns %s: %t", registry, got)
		}
	}
}

func TestEmptyFileSaysNothing(t *testing.T) {
	for _, text := range []string{"", "# later\n", "mirrors:\nconfigs: {}\n"} {
		f, err := parse("registries.yaml", []byte(text))
		if err != nil || f.concerns("docker.io") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestMistakesNameFileLineAndKey(t *testing.T) {
	folder := t.TempDir()
	noCertificate := filepath.Join(folder, "ca.pem")
	if err := os.WriteFile(noCertificate, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"mirror:\n":              "r.yaml:1: mirror is not a key; did you mean mirrors?",
		"mirrors: [docker.io]\n": "r.yaml:1: mirrors: a list stands where lines of the form \"key: value\" belong",
		"mirrors:\n  docker.io:\n    endpoints: []\n":                 "r.yaml:3: mirrors.docker.io: endpoints is not a key; did you mean endpoint?",
		"mirrors:\n  docker.io:\n    endpoint: https://a\n":           "r.yaml:3: mirrors.docker.io.endpoint: \"https://a\" stands where a list belongs",
		"mirrors:\n  docker.io:\n    endpoint: [\"ftp://a\"]\n":       "r.yaml:3: mirrors.docker.io.endpoint: \"ftp://a\" is of a scheme",
		"mirrors:\n  docker.io:\n    endpoint: [\"https://\"]\n":      "r.yaml:3: mirrors.docker.io.endpoint: \"https://\" is not the address of a registry",
		"mirrors:\n  docker.io:\n    rewrite: {\"(\": a}\n":           "r.yaml:3: mirrors.docker.io.rewrite: \"(\" is not a regular expression: missing closing )",
		"mirrors:\n  https://docker.io: {}\n":                         "r.yaml:2: mirrors: \"https://docker.io\" is not a registry; write docker.io",
		"mirrors:\n  a: {}\n  a: {}\n":                                "r.yaml:3: mirrors: a was already set in line 2",
		"configs:\n  a:\n    auth: {usernam: b}\n":                    "r.yaml:3: configs.a.auth: usernam is not a key; did you mean username?",
		"configs:\n  a:\n    auth: {username: b}\n":                   "r.yaml:3: configs.a.auth: has but one of username and password",
		"configs:\n  a:\n    auth: {auth: \"!\"}\n":                   "r.yaml:3: configs.a.auth.auth: the value is not user:password in base64",
		"configs:\n  a:\n    tls: {insecure_skip_verify: yep}\n":      "r.yaml:3: configs.a.tls.insecure_skip_verify: \"yep\" must be true or false",
		"configs:\n  a:\n    tls: {ca_file: /none/ca.pem}\n":          "r.yaml:3: configs.a.tls: ca_file: open /none/ca.pem: no such file or directory",
		"configs:\n  a:\n    tls: {ca_file: " + noCertificate + "}\n": "has no certificate in PEM",
		"configs:\n  a:\n    tls: {cert_file: a.pem}\n":               "has but one of cert_file and key_file",
		"mirrors:\n\t- a\n":                                           "r.yaml:2: not YAML:",
	} {
		_, err := parse("r.yaml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q gives %v, want %s", text, err, want)
			continue
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%q gives more than a line:\n%v", text, err)
		}
	}
}

func TestPasswordsStayOutOfMessages(t *testing.T) {
	secret := base64.StdEncoding.EncodeToString([]byte("no colon in it"))
	_, err := parse("r.yaml", []byte("configs:\n  a:\n    auth: {auth: "+secret+"}\n"))
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("the message is %v", err)
	}
}
