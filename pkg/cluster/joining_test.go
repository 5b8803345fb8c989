package cluster

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/join"
	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/pkg/token"
)

const (
	someHash  = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	otherHash = "f123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

// server is one start after the other on the same store and data dir.
type server struct {
	*testing.T
	*fake.Clientset
	t      nodeToken
	logged bytes.Buffer
}

func newServer(t *testing.T) *server {
	s := &server{T: t, Clientset: fake.NewClientset()}
	s.t = nodeToken{path: filepath.Join(t.TempDir(), "node-token"), caHash: someHash, log: slog.New(slog.NewTextHandler(&s.logged, nil))}
	return s
}

// starts ensures the token, and returns the file's and what was written.
func (s *server) starts() (token.Token, []string) {
	s.Helper()
	s.ClearActions()
	if err := s.t.ensure(s.Context(), s.Clientset); err != nil {
		s.Fatal(err)
	}
	text, err := os.ReadFile(s.t.path)
	if err != nil {
		s.Fatal(err)
	}
	t, err := token.Parse(string(text))
	if err != nil {
		s.Fatal(err)
	}
	if info, err := os.Stat(s.t.path); err != nil || info.Mode() != 0o600 {
		s.Errorf("%v, %v", info.Mode(), err)
	}
	return t, writes(s.Clientset)
}

func writes(c *fake.Clientset) (all []string) {
	for _, a := range c.Actions() {
		if v := a.GetVerb(); v != "get" && v != "list" && v != "watch" {
			all = append(all, v+" "+a.GetResource().Resource)
		}
	}
	return all
}

// valid are the tokens that the API server takes.
func (s *server) valid() map[string]token.Grant {
	s.Helper()
	list, err := s.CoreV1().Secrets("kube-system").List(s.Context(), metav1.ListOptions{})
	if err != nil {
		s.Fatal(err)
	}
	all := map[string]token.Grant{}
	for _, secret := range list.Items {
		g, err := token.Read(&secret)
		if err != nil {
			s.Fatal(err)
		}
		all[g.Token.Bootstrap()] = g
	}
	return all
}

func TestTheServersTokenIsKeptOverRestartsWhichWriteNothing(t *testing.T) {
	s := newServer(t)
	first, written := s.starts()
	if len(written) != 1 || first.CAHash != someHash {
		t.Errorf("%q", written)
	}
	g, ok := s.valid()[first.Bootstrap()]
	if !ok || !g.Expires.IsZero() || !reflect.DeepEqual(g.Usages, []string{"authentication"}) || !reflect.DeepEqual(g.Groups, []string{token.DefaultGroup}) {
		t.Errorf("%+v", g)
	}
	before, err := os.Stat(s.t.path)
	if err != nil {
		t.Fatal(err)
	}
	again, written := s.starts()
	if again != first || len(written) != 0 || len(s.Actions()) != 1 {
		t.Errorf("%v, %q, %d requests", again, written, len(s.Actions()))
	}
	if after, err := os.Stat(s.t.path); err != nil || !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Error("the file was written")
	}
	// Another authority is another hash, and the same token.
	s.t.caHash = otherHash
	if third, written := s.starts(); third.CAHash != otherHash || third.Bootstrap() != first.Bootstrap() || len(written) != 0 {
		t.Errorf("%v, %q", third, written)
	}
}

func TestARevokedTokenOfTheServersStaysRevoked(t *testing.T) {
	s := newServer(t)
	first, _ := s.starts()
	if err := s.CoreV1().Secrets("kube-system").Delete(t.Context(), token.SecretName(first.ID), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	second, _ := s.starts()
	if all := s.valid(); second.Bootstrap() == first.Bootstrap() || len(all) != 1 || all[second.Bootstrap()].Token.ID == "" {
		t.Errorf("%d tokens", len(all))
	}
	// So does the one whose file is deleted.
	if err := os.Remove(s.t.path); err != nil {
		t.Fatal(err)
	}
	third, _ := s.starts()
	if all := s.valid(); third.Bootstrap() == second.Bootstrap() || len(all) != 1 || all[third.Bootstrap()].Token.ID == "" {
		t.Errorf("%d tokens", len(all))
	}
}

func TestTheUsersTokenTakesThePlaceOfTheServersOwn(t *testing.T) {
	s := newServer(t)
	s.starts()
	// A token of a day, made by a user, is none of the server's.
	other, err := token.Grant{Token: token.Token{ID: "zzzzzz", Secret: "0123456789abcdef"}}.Secret()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Tracker().Add(other); err != nil {
		t.Fatal(err)
	}
	for _, given := range []string{"abc123.s3cr3ts3cr3ts3cr", "knarr." + someHash + ".abc124.s3cr3ts3cr3ts3cr", "abc124.an0therS3cr3ts3c"[:7] + "an0thers3cr3ts3c"} {
		s.t.given = given
		got, _ := s.starts()
		if got.CAHash != someHash || !strings.HasSuffix(given, got.Bootstrap()) {
			t.Errorf("the file has %v", got)
		}
		if all := s.valid(); len(all) != 2 || all[got.Bootstrap()].Token.ID == "" {
			t.Errorf("%d tokens", len(all))
		}
		if _, written := s.starts(); len(written) != 0 {
			t.Errorf("the next start: %q", written)
		}
	}
	// It stays when it is given no more.
	before, _ := s.starts()
	s.t.given = ""
	if got, written := s.starts(); got != before || len(written) != 0 {
		t.Errorf("%v, %q", got, written)
	}
}

func TestAStartThatWasCutShortLeavesNoTokenThatNobodyKnows(t *testing.T) {
	for name, cut := range map[string]func(s *server){
		"before the first file": func(s *server) {
			s.starts()
			if err := os.Remove(s.t.path); err != nil {
				t.Fatal(err)
			}
		},
		"before the file of a given one": func(s *server) {
			s.starts()
			old, err := os.ReadFile(s.t.path)
			if err != nil {
				t.Fatal(err)
			}
			s.t.given = "abc123.s3cr3ts3cr3ts3cr"
			if err := grant(s.Context(), s.Clientset, token.Token{ID: "abc123", Secret: "s3cr3ts3cr3ts3cr"}); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.t.path, old, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		s := newServer(t)
		cut(s)
		got, _ := s.starts()
		if all := s.valid(); len(all) != 1 || all[got.Bootstrap()].Token.ID == "" {
			t.Errorf("%s: %d tokens", name, len(all))
		}
	}
}

func TestMistakesWithTheServersTokenAreToldWithoutIt(t *testing.T) {
	const secret = "s3cr3ts3cr3ts3cr"
	for name, c := range map[string]struct {
		do   func(s *server)
		want string
	}{
		"a word":          {func(s *server) { s.t.given = secret }, "--token: the token has 1 parts"},
		"another cluster": {func(s *server) { s.t.given = "knarr." + otherHash + ".abc123." + secret }, "it is of another cluster"},
		"a damaged file": {func(s *server) {
			if err := os.WriteFile(s.t.path, []byte("abc123."+secret[1:]), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "delete the file"},
	} {
		s := newServer(t)
		c.do(s)
		err := s.t.ensure(t.Context(), s.Clientset)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), secret[1:]) {
			t.Errorf("%s: %v", name, err)
		}
		if got := writes(s.Clientset); len(got) != 0 {
			t.Errorf("%s: %q", name, got)
		}
	}
	s := newServer(t)
	s.starts()
	s.t.given = "abc123." + secret
	s.starts()
	if said := s.logged.String(); strings.Contains(said, secret) || !strings.Contains(said, "abc123") {
		t.Errorf("logged: %s", said)
	}
}

func TestNodesAreToldOfTheClusterOnceAndAgainWhenItChanges(t *testing.T) {
	p, err := pki.Ensure(pki.Config{Dir: filepath.Join(t.TempDir(), "tls"), NodeName: "n"})
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.Network.ClusterDNS = netip.MustParseAddr("10.43.0.10")
	cfg.Network.NodeMask = 25
	cfg.Disable = []string{"dns"}
	client := fake.NewClientset()
	want := clusterInfo(cfg, p)
	tell := func() []string {
		client.ClearActions()
		if err := publishCluster(t.Context(), client, want); err != nil {
			t.Fatal(err)
		}
		got := writes(client)
		if read := readCluster(t, t.Context(), client); !reflect.DeepEqual(read, want) {
			t.Errorf("%+v", read)
		}
		return got
	}
	if got := tell(); len(got) != 1 {
		t.Errorf("the first start: %q", got)
	}
	if want.NodeMask != 25 || want.ClientCA != string(p.ClientCA.CertPEM) || want.Version == "" {
		t.Errorf("%+v", want)
	}
	if got := tell(); len(got) != 0 {
		t.Errorf("a restart: %q", got)
	}
	want.Version = "v1.37.0"
	if got := tell(); len(got) != 1 {
		t.Errorf("another version: %q", got)
	}
}

func readCluster(t *testing.T, ctx context.Context, client kubernetes.Interface) join.Cluster {
	t.Helper()
	cm, err := client.CoreV1().ConfigMaps(join.ClusterNamespace).Get(ctx, join.ClusterName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := join.ParseCluster(cm.Data)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
