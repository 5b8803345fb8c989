package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http/httpproxy"
)

// Proxy is how images are pulled. The zero value uses no proxy.
type Proxy struct {
	// HTTP and HTTPS are the proxies' addresses, as the user wrote them.
	HTTP, HTTPS string
	// No lists names and networks that are reached directly, by commas. It is
	// empty when there is no proxy.
	No string
}

// ProxyVariables are the environment variables that name proxies, in the order
// in which they count.
func ProxyVariables() []string {
	var names []string
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		names = append(names, "CONTAINERD_"+name, name, strings.ToLower(name))
	}
	return names
}

// ProxyEnv reads from an environment which proxy images are pulled through:
// CONTAINERD_HTTP_PROXY before HTTP_PROXY before http_proxy, and so on. The
// cluster's networks, domain and node addresses, and this machine itself, are
// added to what is reached without one. c must be complete.
func ProxyEnv(environ []string, c *Config) (Proxy, error) {
	get := func(name string) (text, from string) {
		for _, from := range []string{"CONTAINERD_" + name, name, strings.ToLower(name)} {
			for _, entry := range slices.Backward(environ) {
				if text, ok := strings.CutPrefix(entry, from+"="); ok && text != "" {
					return text, from
				}
			}
		}
		return "", ""
	}
	var p Proxy
	for i, field := range []*string{&p.HTTP, &p.HTTPS} {
		text, from := get([]string{"HTTP_PROXY", "HTTPS_PROXY"}[i])
		if err := checkProxy(text); err != nil {
			return Proxy{}, &Problem{Where: from, What: fmt.Sprintf("%q", text), Why: err.Error(),
				Fix: "give one such as http://proxy.example.org:3128"}
		}
		*field = text
	}
	if p == (Proxy{}) {
		return p, nil
	}
	own, _ := get("NO_PROXY")
	p.No = strings.Join(unproxied(own, c), ",")
	return p, nil
}

// checkProxy refuses what would otherwise be ignored without a word.
func checkProxy(text string) error {
	if text == "" {
		return nil
	}
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
		return fmt.Errorf("is not a proxy's address")
	}
	return nil
}

func unproxied(own string, c *Config) []string {
	var list []string
	add := func(entry string) {
		if entry = strings.TrimSpace(entry); entry != "" && !slices.Contains(list, entry) {
			list = append(list, entry)
		}
	}
	for entry := range strings.SplitSeq(own, ",") {
		add(entry)
	}
	for _, entry := range []string{"localhost", "127.0.0.0/8", "::1"} {
		add(entry)
	}
	for _, cidr := range []netip.Prefix{c.Network.ClusterCIDR, c.Network.ServiceCIDR} {
		add(cidr.String())
	}
	for _, ip := range append([]netip.Addr{c.API.AdvertiseAddress}, c.Node.IPs...) {
		if ip.IsValid() {
			add(ip.String())
		}
	}
	add(".svc")
	add("." + c.Network.ClusterDomain)
	return list
}

// Environ holds the variables to set for pulls, empty when there is no proxy.
func (p Proxy) Environ() map[string]string {
	env := map[string]string{}
	for name, text := range map[string]string{"HTTP_PROXY": p.HTTP, "HTTPS_PROXY": p.HTTPS, "NO_PROXY": p.No} {
		if text != "" {
			env[name] = text
		}
	}
	return env
}

// Func tells for an address which proxy leads there, nil for none. It never
// looks at the environment, so it suits http.Transport in any goroutine.
func (p Proxy) Func() func(*url.URL) (*url.URL, error) {
	pc := httpproxy.Config{HTTPProxy: p.HTTP, HTTPSProxy: p.HTTPS, NoProxy: p.No}
	return pc.ProxyFunc()
}
