package config_test

import (
	"maps"
	"net/url"
	"slices"
	"testing"

	"github.com/knarr-dev/knarr/pkg/config"
)

func complete(t *testing.T, flags ...string) *config.Config {
	t.Helper()
	cfg, err := load(t, flags...)
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Complete(host("box", nil)); err != nil {
		t.Fatal(err)
	}
	return cfg
}

const added = "localhost,127.0.0.0/8,::1,10.42.0.0/16,10.43.0.0/16,192.0.2.10,.svc,.cluster.local"

func TestPullsUseTheProxyOfTheEnvironment(t *testing.T) {
	for name, c := range map[string]struct {
		environ []string
		want    map[string]string
	}{
		"none":             {[]string{"NO_PROXY=example.org", "HTTP_PROXY="}, map[string]string{}},
		"usual":            {[]string{"HTTPS_PROXY=http://p:3128", "NO_PROXY=example.org, localhost"}, map[string]string{"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "example.org," + added}},
		"lower case":       {[]string{"http_proxy=p:3128", "no_proxy=example.org"}, map[string]string{"HTTP_PROXY": "p:3128", "NO_PROXY": "example.org," + added}},
		"upper case first": {[]string{"http_proxy=lower:1", "HTTP_PROXY=upper:1"}, map[string]string{"HTTP_PROXY": "upper:1", "NO_PROXY": added}},
		"containerd's win": {
			[]string{"HTTP_PROXY=a:1", "HTTPS_PROXY=b:1", "NO_PROXY=c", "CONTAINERD_HTTPS_PROXY=d:1", "CONTAINERD_NO_PROXY=e"},
			map[string]string{"HTTP_PROXY": "a:1", "HTTPS_PROXY": "d:1", "NO_PROXY": "e," + added},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := config.ProxyEnv(c.environ, complete(t))
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Environ(); !maps.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestClusterIsReachedWithoutAProxy(t *testing.T) {
	p, err := config.ProxyEnv([]string{"HTTP_PROXY=http://p:3128", "HTTPS_PROXY=http://p:3128", "NO_PROXY=quay.example.org"},
		complete(t, "cluster-domain=k.example.net", "node-ip=192.0.2.20,2001:db8::20"))
	if err != nil {
		t.Fatal(err)
	}
	proxied := p.Func()
	for address, want := range map[string]bool{
		"https://registry.example.org/v2/":          true,
		"http://192.0.2.99/":                        true,
		"https://quay.example.org/v2/":              false,
		"https://127.0.0.1:6443/":                   false,
		"https://localhost:6443/":                   false,
		"https://10.43.0.1/":                        false,
		"http://10.42.7.8:8080/":                    false,
		"https://192.0.2.20:10250/":                 false,
		"https://[2001:db8::20]:10250/":             false,
		"https://a.b.svc/":                          false,
		"http://registry.default.svc.k.example.net": false,
	} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		via, err := proxied(u)
		if err != nil || (via != nil) != want {
			t.Errorf("%s: proxy %v, err %v; a proxy was wanted: %v", address, via, err, want)
		}
	}
}

func TestProxyThatIsNoAddressIsRefused(t *testing.T) {
	_, err := config.ProxyEnv([]string{"CONTAINERD_HTTP_PROXY=ftp://p"}, complete(t))
	want := `CONTAINERD_HTTP_PROXY: "ftp://p" is not a proxy's address; give one such as http://proxy.example.org:3128`
	if got := lines(err); !slices.Equal(got, []string{want}) {
		t.Errorf("got %q", got)
	}
}
