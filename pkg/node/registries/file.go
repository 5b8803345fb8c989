package registries

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"go.yaml.in/yaml/v3"

	"github.com/knarr-dev/knarr/pkg/dial"
)

// anyRegistry is the key for every registry that has no entry of its own.
const anyRegistry = "*"

// file is what a registries file says.
type file struct {
	mirrors map[string]mirror // by registry, as images name it
	configs map[string]access // by host, with its port unless it is the usual one

	// dial connects to registries; nil does so from here.
	dial dial.Func
}

// mirror is where to look for a registry's images before the registry itself.
type mirror struct {
	endpoints []endpoint
	rewrites  []rewrite
}

type endpoint struct {
	scheme string
	host   string // with its port unless it is the usual one
	path   string // above the repositories
}

// rewrite gives images other names on mirrors. The first that matches counts.
type rewrite struct {
	pattern     *regexp.Regexp
	replacement string
}

// access is how to speak to a host.
type access struct {
	username, password, identityToken string

	encrypted bool // there is something about TLS
	caFile    string
	certFile  string
	keyFile   string
	insecure  bool
}

// load reads a registries file. The error joins all that is wrong with it.
func load(path string) (*file, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read registries file: %w", err)
	}
	return parse(path, text)
}

func parse(path string, text []byte) (*file, error) {
	r := &reader{path: path}
	f := &file{mirrors: map[string]mirror{}, configs: map[string]access{}}
	var doc yaml.Node
	if err := yaml.NewDecoder(bytes.NewReader(text)).Decode(&doc); errors.Is(err, io.EOF) {
		return f, nil
	} else if err != nil {
		return nil, r.notYAML(err)
	}
	r.mapping("", doc.Content[0], []string{"mirrors", "configs"}, func(key string, section *yaml.Node) {
		r.mapping(key, section, nil, func(name string, n *yaml.Node) {
			where := key + "." + name
			r.registry(n.Line, key, name)
			if key == "mirrors" {
				f.mirrors[name] = r.mirror(where, n)
				return
			}
			f.configs[name] = r.access(where, n)
		})
	})
	if err := errors.Join(r.problems...); err != nil {
		return nil, err
	}
	return f, nil
}

// registry checks a name that an entry is for.
func (r *reader) registry(line int, section, name string) {
	if name == anyRegistry {
		return
	}
	fix := "give its name alone, with the port unless it is the usual one, such as docker.io or registry.example.org:5000"
	if host, err := url.Parse(name); err == nil && host.Host != "" {
		fix = "write " + host.Host
	}
	if strings.ContainsAny(name, "/ \t") || name == "" {
		r.add(line, section, strconv.Quote(name), "is not a registry", fix)
	}
}

func (r *reader) mirror(where string, n *yaml.Node) mirror {
	var m mirror
	r.mapping(where, n, []string{"endpoint", "rewrite"}, func(key string, val *yaml.Node) {
		where := where + "." + key
		if key == "rewrite" {
			r.mapping(where, val, nil, func(pattern string, to *yaml.Node) {
				m.rewrites = append(m.rewrites, r.rewrite(where, pattern, to))
			})
			return
		}
		for _, item := range r.list(where, val) {
			if e, ok := r.endpoint(where, item); ok {
				m.endpoints = append(m.endpoints, e)
			}
		}
	})
	return m
}

func (r *reader) rewrite(where, pattern string, to *yaml.Node) rewrite {
	exp, err := regexp.Compile(pattern)
	if err != nil {
		r.add(to.Line, where, strconv.Quote(pattern), "is not a regular expression: "+strings.TrimPrefix(err.Error(), "error parsing regexp: "), "")
	}
	return rewrite{pattern: exp, replacement: r.text(where+"."+pattern, to)}
}

// endpoint reads a URL, of which the scheme may be left out.
func (r *reader) endpoint(where string, n *yaml.Node) (endpoint, bool) {
	text := r.text(where, n)
	given := text
	if !strings.Contains(given, "://") {
		given = "//" + given
	}
	u, err := url.Parse(given)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		r.add(n.Line, where, strconv.Quote(text), "is not the address of a registry", "give one such as https://registry.example.org:5000")
		return endpoint{}, false
	}
	if u.Scheme == "" {
		u.Scheme = usualScheme(u.Host)
	}
	if u.Scheme != "https" && u.Scheme != "http" {
		r.add(n.Line, where, strconv.Quote(text), "is of a scheme that registries don't speak", "give https, or http for one without TLS")
		return endpoint{}, false
	}
	path := strings.TrimSuffix(u.Path, "/")
	if path == "" {
		path = "/v2"
	}
	return endpoint{scheme: u.Scheme, host: u.Host, path: path}, true
}

// usualScheme is how a registry is spoken to when nobody says how: one on this
// machine, at a port of its own, seldom has a certificate.
func usualScheme(host string) string {
	if _, port, err := net.SplitHostPort(host); err == nil && port != "443" && docker.IsLocalhost(host) {
		return "http"
	}
	return "https"
}

func (r *reader) access(where string, n *yaml.Node) access {
	var a access
	r.mapping(where, n, []string{"auth", "tls"}, func(key string, val *yaml.Node) {
		where := where + "." + key
		if key == "auth" {
			r.auth(where, val, &a)
			return
		}
		a.encrypted = true
		r.mapping(where, val, []string{"ca_file", "cert_file", "key_file", "insecure_skip_verify"}, func(key string, val *yaml.Node) {
			switch where := where + "." + key; key {
			case "ca_file":
				a.caFile = r.text(where, val)
			case "cert_file":
				a.certFile = r.text(where, val)
			case "key_file":
				a.keyFile = r.text(where, val)
			case "insecure_skip_verify":
				a.insecure = r.boolean(where, val)
			}
		})
		if _, err := a.tls(); err != nil {
			r.add(val.Line, where, "", err.Error(), "")
		}
	})
	return a
}

func (r *reader) auth(where string, n *yaml.Node, a *access) {
	r.mapping(where, n, []string{"username", "password", "auth", "identity_token"}, func(key string, val *yaml.Node) {
		where := where + "." + key
		text := r.text(where, val)
		switch key {
		case "username":
			a.username = text
		case "password":
			a.password = text
		case "identity_token":
			a.identityToken = text
		case "auth":
			if text == "" {
				return
			}
			both, err := base64.StdEncoding.DecodeString(text)
			user, password, ok := strings.Cut(string(both), ":")
			if err != nil || !ok {
				r.add(val.Line, where, "the value", "is not user:password in base64", "give username and password instead")
				return
			}
			a.username, a.password = user, password
		}
	})
	if (a.username == "") != (a.password == "") {
		r.add(n.Line, where, "", "has but one of username and password", "give both")
	}
}
