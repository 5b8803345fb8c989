package cli

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/yaml"

	"github.com/knarr-dev/knarr/pkg/token"
)

// published is where an API server says it is.
func published(address string) *discoveryv1.EndpointSlice {
	port := int32(6443)
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{address}}},
		Ports:      []discoveryv1.EndpointPort{{Port: &port}},
	}
}

var authorityDER = []byte("an authority")

func accessTo(client *fake.Clientset) *apiAccess {
	return &apiAccess{client: client, source: "test.yaml", ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authorityDER})}
}

func someGrant(t *testing.T) token.Grant {
	t.Helper()
	tok, err := token.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return token.Grant{Token: tok, Usages: token.Usages(), Groups: []string{token.DefaultGroup}, Expires: time.Now().Add(time.Hour).Truncate(time.Second).UTC(), Description: "rack 7"}
}

func TestACreatedTokenIsPrintedWithTheAuthoritysHashAndIsInTheCluster(t *testing.T) {
	client, g := fake.NewClientset(), someGrant(t)
	line, err := createToken(t.Context(), accessTo(client), g, false)
	if err != nil {
		t.Fatal(err)
	}
	got, err := token.Parse(line)
	if err != nil || got.CAHash != token.HashCA(authorityDER) || got.Bootstrap() != g.Token.Bootstrap() {
		t.Errorf("%s, %v", line, err)
	}
	s, err := client.CoreV1().Secrets("kube-system").Get(t.Context(), "bootstrap-token-"+g.Token.ID, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if kept, err := token.Read(s); err != nil || !reflect.DeepEqual(kept, g) {
		t.Errorf("%+v, %v", kept, err)
	}
}

func TestTheJoinCommandNamesTheServersAddressOrThereIsNoToken(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1":   "knarr agent --server https://192.0.2.1:6443 --token knarr.",
		"2001:db8::1": "knarr agent --server https://[2001:db8::1]:6443 --token knarr.",
	} {
		line, err := createToken(t.Context(), accessTo(fake.NewClientset(published(address))), someGrant(t), true)
		if err != nil || !strings.HasPrefix(line, want) {
			t.Errorf("%s, %v", line, err)
		}
	}
	client := fake.NewClientset()
	if line, err := createToken(t.Context(), accessTo(client), someGrant(t), true); err == nil {
		t.Errorf("without an address: %s", line)
	}
	nobody := accessTo(client)
	nobody.ca = nil
	if _, err := createToken(t.Context(), nobody, someGrant(t), false); err == nil || !strings.Contains(err.Error(), "test.yaml") {
		t.Errorf("without an authority: %v", err)
	}
	if list, err := client.CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) != 0 {
		t.Errorf("left behind: %d tokens, %v", len(list.Items), err)
	}
}

func TestTheListShowsTokensAndNoSecretOfThem(t *testing.T) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	client := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "other"}, Type: corev1.SecretTypeOpaque})
	const secret = "s3cr3ts3cr3ts3cr"
	for _, g := range []token.Grant{
		{Token: token.Token{ID: "bbbbbb", Secret: secret}, Usages: []string{"authentication"}, Description: "for\never"},
		{Token: token.Token{ID: "aaaaaa", Secret: secret}, Usages: token.Usages(), Groups: []string{token.DefaultGroup}, Expires: now.Add(90 * time.Minute)},
		{Token: token.Token{ID: "cccccc", Secret: secret}, Expires: now.Add(-time.Second)},
		{Token: token.Token{ID: "dddddd", Secret: secret}},
	} {
		s, err := g.Secret()
		if err != nil {
			t.Fatal(err)
		}
		if g.Token.ID == "dddddd" {
			s.Data["expiration"] = []byte("soon")
		}
		if _, err := client.CoreV1().Secrets("kube-system").Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	tokens, broken, err := listTokens(t.Context(), client)
	if err != nil || broken == nil || !strings.Contains(broken.Error(), "expiry of token dddddd") {
		t.Fatalf("%v, %v", broken, err)
	}
	var table, asJSON, asYAML bytes.Buffer
	for format, w := range map[string]*bytes.Buffer{"table": &table, "json": &asJSON, "yaml": &asYAML} {
		if err := printTokens(w, tokens, now, format); err != nil {
			t.Fatal(err)
		}
	}
	const want = `ID      TTL      EXPIRES               USAGES                  DESCRIPTION
aaaaaa  1h30m0s  2027-01-01T01:30:00Z  authentication,signing
bbbbbb  forever  never                 authentication          for ever
cccccc  expired  2026-12-31T23:59:59Z
`
	var lines []string
	for line := range strings.Lines(table.String()) {
		lines = append(lines, strings.TrimRight(line, " \n")+"\n")
	}
	if got := strings.Join(lines, ""); got != want {
		t.Errorf("table:\n%s", got)
	}
	for _, unmarshal := range []func() ([]listedToken, error){
		func() (l []listedToken, err error) { return l, json.Unmarshal(asJSON.Bytes(), &l) },
		func() (l []listedToken, err error) { return l, yaml.Unmarshal(asYAML.Bytes(), &l) },
	} {
		if got, err := unmarshal(); err != nil || !reflect.DeepEqual(got, tokens) {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if all := table.String() + asJSON.String() + asYAML.String() + broken.Error(); strings.Contains(all, secret) {
		t.Errorf("a secret is in\n%s", all)
	}
	var none bytes.Buffer
	if err := printTokens(&none, []listedToken{}, now, "json"); err != nil || none.String() != "[]\n" {
		t.Errorf("none: %s, %v", none.String(), err)
	}
}

func TestTokensAreDeletedByIDOrAsAWhole(t *testing.T) {
	client := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "bootstrap-token-zzzzzz"}, Type: corev1.SecretTypeOpaque})
	a, b := someGrant(t), someGrant(t)
	for _, g := range []token.Grant{a, b} {
		if _, err := createToken(t.Context(), accessTo(client), g, false); err != nil {
			t.Fatal(err)
		}
	}
	ids, err := tokenIDs([]string{a.Token.ID, b.Token.String(), "zzzzzz", "yyyyyy"})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = deleteTokens(t.Context(), client, &out, ids)
	if err == nil || !strings.Contains(err.Error(), "no token zzzzzz") || !strings.Contains(err.Error(), "no token yyyyyy") {
		t.Errorf("%v", err)
	}
	if want := "token " + a.Token.ID + " deleted\ntoken " + b.Token.ID + " deleted\n"; out.String() != want {
		t.Errorf("%s", out.String())
	}
	if list, err := client.CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) != 1 {
		t.Errorf("%d Secrets are left, %v", len(list.Items), err)
	}
}
