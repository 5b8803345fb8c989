package registries

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// mirrorServer answers for one manifest of one repository, to those who have a
// token for it or its password.
type mirrorServer struct {
	*httptest.Server
	repository string
	tokens     bool
}

func newMirror(t *testing.T, repository string, tokens bool) *mirrorServer {
	t.Helper()
	m := &mirrorServer{repository: repository, tokens: tokens}
	m.Server = httptest.NewTLSServer(m)
	m.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	t.Cleanup(m.Close)
	return m
}

func (m *mirrorServer) host() string { return strings.TrimPrefix(m.URL, "https://") }

func (m *mirrorServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	scope := "repository:" + m.repository + ":pull"
	if r.URL.Path == "/token" {
		if r.Method == http.MethodPost {
			user, password = r.FormValue("username"), r.FormValue("password")
		}
		asked := append(r.URL.Query()["scope"], strings.Fields(r.PostFormValue("scope"))...)
		if user != "anna" || password != "right" || len(asked) != 1 || asked[0] != scope {
			http.Error(w, fmt.Sprintf("no token for %v", asked), http.StatusForbidden)
			return
		}
		fmt.Fprint(w, `{"token": "good", "access_token": "good"}`)
		return
	}
	if m.tokens && r.Header.Get("Authorization") != "Bearer good" {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test",scope=%q`, m.URL, scope))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if !m.tokens && (user != "anna" || password != "right") {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.URL.Path != "/v2/"+m.repository+"/manifests/1" {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	w.Header().Set("Content-Length", "2")
	w.Header().Set("Docker-Content-Digest", "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a")
}

// resolve asks for an image as a pull would.
func resolve(t *testing.T, text, image string, pull asker) error {
	t.Helper()
	f, err := parse("registries.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: func(name string) ([]docker.RegistryHost, error) { return f.hosts(name, pull) },
	})
	_, _, err = resolver.Resolve(t.Context(), image)
	return err
}

func nobody(string) (string, string, error) { return "", "", nil }

func with(user, password string) asker {
	return func(string) (string, string, error) { return user, password, nil }
}

func TestMirrorIsAskedByItsOwnNamesAndCredentials(t *testing.T) {
	for _, tokens := range []bool{false, true} {
		m := newMirror(t, "copies/app", tokens)
		const mirrors = "mirrors: {apps.invalid: {endpoint: [\"https://%s\"], rewrite: {\"^team/(.*)\": \"copies/$1\"}}}\n"
		text := fmt.Sprintf(mirrors+"configs: {%q: {auth: {username: anna, password: right}, tls: {insecure_skip_verify: true}}}\n", m.host(), m.host())
		if err := resolve(t, text, "apps.invalid/team/app:1", nobody); err != nil {
			t.Errorf("with tokens %t: %v", tokens, err)
		}
		// What the pull came with is for the registry, not for its mirror.
		if err := resolve(t, text, "apps.invalid/team/app:1", with("anna", "wrong")); err != nil {
			t.Errorf("with tokens %t and credentials of the pull: %v", tokens, err)
		}
		wrong := strings.Replace(text, "right", "wrong", 1)
		if err := resolve(t, wrong, "apps.invalid/team/app:1", nobody); err == nil {
			t.Errorf("with tokens %t a wrong password was taken", tokens)
		}
	}
}

func TestPullsOwnCredentialsComeFirstAtTheRegistryItself(t *testing.T) {
	m := newMirror(t, "app", true)
	text := fmt.Sprintf("configs: {%q: {auth: {username: anna, password: wrong}, tls: {insecure_skip_verify: true}}}\n", m.host())
	if err := resolve(t, text, m.host()+"/app:1", with("anna", "right")); err != nil {
		t.Error(err)
	}
	if err := resolve(t, text, m.host()+"/app:1", nobody); err == nil {
		t.Error("the file's wrong password was taken")
	}
}

func TestAuthorityOfTheFileIsTrusted(t *testing.T) {
	m := newMirror(t, "app", false)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	auth := "auth: {username: anna, password: right}"
	if err := resolve(t, fmt.Sprintf("configs: {%q: {%s, tls: {ca_file: %s}}}\n", m.host(), auth, ca), m.host()+"/app:1", nobody); err != nil {
		t.Error(err)
	}
	err := resolve(t, fmt.Sprintf("configs: {%q: {%s, tls: {}}}\n", m.host(), auth), m.host()+"/app:1", nobody)
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown authority is trusted: %v", err)
	}
}

func TestRegistryItselfIsAskedWhenItsMirrorsFail(t *testing.T) {
	m, gone := newMirror(t, "app", false), newMirror(t, "app", false)
	gone.Close()
	text := fmt.Sprintf("mirrors: {%q: {endpoint: [\"https://%s\"], rewrite: {\"app\": other}}}\nconfigs: {%q: {auth: {username: anna, password: right}, tls: {insecure_skip_verify: true}}}\n",
		m.host(), gone.host(), m.host())
	if err := resolve(t, text, m.host()+"/app:1", nobody); err != nil {
		t.Error(err)
	}
}

func TestTokensAreAskedForByRewrittenNamesOnly(t *testing.T) {
	f, err := parse("registries.yaml", []byte("mirrors: {a: {endpoint: [b], rewrite: {\"^team/(.*)\": \"copies/$1\"}}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	next := func(r *http.Request) (*http.Response, error) {
		if err := r.ParseForm(); err != nil {
			return nil, err
		}
		asked = append(asked, strings.Join(r.Form["scope"], "|"))
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
	}
	client := http.Client{Transport: rewriteScopes{next: roundTripper(next), rewrites: f.mirrors["a"].rewrites}}
	scopes := url.Values{"scope": {"repository:copies/app:pull", "repository:team/app:pull"}}
	if _, err := client.Get("https://b/token?" + scopes.Encode()); err != nil {
		t.Fatal(err)
	}
	if _, err := client.PostForm("https://b/token", url.Values{"scope": {strings.Join(scopes["scope"], " ")}}); err != nil {
		t.Fatal(err)
	}
	if strings.Join(asked, ", ") != "repository:copies/app:pull, repository:copies/app:pull" {
		t.Errorf("asked for %v", asked)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// helper is the credentials that containerd's CRI service gives a source.
type helper struct{ user, secret string }

func (h helper) GetCredentials(_ context.Context, _, host string) (registry.Credentials, error) {
	if h.user == "" {
		return registry.Credentials{}, errors.New("unreadable")
	}
	return registry.Credentials{Host: host, Username: h.user, Secret: h.secret}, nil
}

func TestPullGoesByTheFileAsItIsThen(t *testing.T) {
	m := newMirror(t, "app", true)
	path := filepath.Join(t.TempDir(), "registries.yaml")
	var log bytes.Buffer
	r := New(path, slog.New(slog.NewTextHandler(&log, nil)))
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pull := func() error {
		t.Helper()
		source, err := registry.NewOCIRegistry(t.Context(), m.host()+"/app:1", registry.WithCredentials(helper{"anna", "right"}))
		if err != nil {
			t.Fatal(err)
		}
		redirected, err := r.Redirect(t.Context(), source)
		if err != nil {
			return err
		}
		_, _, err = redirected.(interface {
			Resolve(context.Context) (string, ocispec.Descriptor, error)
		}).Resolve(t.Context())
		return err
	}
	if err := pull(); err != nil { // containerd trusts any certificate of this machine itself
		t.Errorf("without a file: %v", err)
	}
	write("configs: {" + m.host() + ": {tls: nothing}}\n")
	if err := pull(); err == nil || !strings.Contains(err.Error(), path+":1: configs.") {
		t.Errorf("with a mistake, and nothing before: %v", err)
	}
	write(fmt.Sprintf("configs: {%q: {tls: {insecure_skip_verify: true}}}\n", m.host()))
	if err := pull(); err != nil {
		t.Errorf("with the pull's own credentials: %v", err)
	}
	write("mirors:\n")
	if err := pull(); err != nil {
		t.Errorf("with a mistake that leaves what was before: %v", err)
	}
	if said := log.String(); strings.Count(said, "level=ERROR") != 2 || !strings.Contains(said, "did you mean mirrors?") {
		t.Errorf("the log says\n%s", said)
	}
}
