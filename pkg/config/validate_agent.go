package config

import (
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/knarr-dev/knarr/pkg/token"
)

// serverPort is where servers listen unless a URL says otherwise.
const serverPort = "6443"

// servers brings the servers' addresses to the form https://host:port.
func (k *checker) servers() {
	if len(k.c.Servers) == 0 {
		k.add(at("server"), "", "no server to join is named", "give --server https://<address>:6443, or KNARR_URL")
	}
	if p := k.c.LoadBalancerPort; p < 1 || p > 65535 {
		k.add(at("lb-server-port"), strconv.Itoa(p), "is not a port", "give one of 1 to 65535")
	}
	for i, text := range k.c.Servers {
		u, err := url.Parse(text)
		if err == nil && u.Scheme == "https" && u.Hostname() != "" && strings.Trim(u.Path, "/") == "" && u.RawQuery == "" && u.User == nil {
			port := u.Port()
			if port == "" {
				port = serverPort
			}
			k.c.Servers[i] = "https://" + net.JoinHostPort(u.Hostname(), port)
			continue
		}
		k.add(nth("server", i), strconv.Quote(text), "is not a server's address", "give one such as https://192.0.2.1:"+serverPort)
	}
}

// token reads the token's file and checks the token's form. An agent that has
// joined before needs none.
func (k *checker) token(h Host) {
	c := k.c
	if c.TokenFile != "" && c.IsSet("token") {
		k.add(at("token-file", "token"), "the token", "is given twice, by itself and by a file", "leave one of them out")
		return
	}
	if c.TokenFile != "" {
		text, err := h.ReadFile(c.TokenFile)
		if err != nil {
			k.add(at("token-file"), c.TokenFile, "can't be read: "+reason(err), "give the file that holds the token")
			return
		}
		c.Token = strings.TrimSpace(string(text))
	}
	if c.Token == "" {
		return
	}
	if _, err := token.Parse(c.Token); err != nil {
		// The text itself is a secret, be it mangled.
		k.add(at("token", "token-file"), "", err.Error(), "\"knarr token create\" on a server makes one")
	}
}

// ServerAddrs are the servers as host:port. The Config must be complete.
func (c *Config) ServerAddrs() []string {
	var addrs []string
	for _, s := range c.Servers {
		addrs = append(addrs, strings.TrimPrefix(s, "https://"))
	}
	return addrs
}
