package config

import (
	"fmt"
	"strings"
)

// Reference is the configuration reference, in Markdown, made from the table
// of options.
func Reference() string {
	var b strings.Builder
	b.WriteString(referenceHead)
	for _, group := range Groups() {
		fmt.Fprintf(&b, "\n## %s\n\n| key | variable | default | meaning |\n|---|---|---|---|\n", group)
		for _, o := range AllOptions() {
			if o.Group == group && !o.Hidden {
				fmt.Fprintf(&b, "| %s | `%s` | %s | %s |\n", o.cell(), o.Env(), o.defaultCell(), o.meaning())
			}
		}
	}
	b.WriteString(referenceTail)
	return b.String()
}

func (o Option) cell() string {
	key := "`" + o.Name + "`"
	if o.Short != "" {
		key += " (flag `-" + o.Short + "`)"
	}
	return key
}

func (o Option) defaultCell() string {
	switch {
	case o.Default != "":
		return "`" + o.Default + "`"
	case o.IsSwitch():
		return "`false`"
	case o.DefaultText != "":
		return o.DefaultText
	}
	return "none"
}

func (o Option) meaning() string {
	text := o.Help
	if len(o.Choices) > 0 {
		text += "; known: `" + strings.Join(o.Choices, "`, `") + "`"
	}
	if o.IsList() {
		text += " (list)"
	}
	switch o.of {
	case serverOnly:
		text += "; servers"
	case agentOnly:
		text += "; agents"
	}
	return text
}

const referenceHead = `# Configuration

<!-- Made from the table in pkg/config/options.go: go test ./pkg/config -run Reference -update -->

` + "`knarr server` and `knarr agent`" + ` are configured by flags, by environment variables and by
files. All three know the same options by the same names; an option that ends with "servers"
or "agents" is for these alone, and the others are for both: the flag ` + "`--data-dir`" + ` is the variable
` + "`KNARR_DATA_DIR`" + ` and, in a file, the key ` + "`data-dir`" + `. Flags beat variables, and
variables beat files. Whoever sets a list sets all of it; an empty value is the default.

Lists are given by commas, as YAML lists, or by repeating the flag. The options that hand
flags to Kubernetes' own components are never split at commas: repeat them, use a YAML
list, or, in a variable, put spaces between.

## Files

First ` + "`/etc/knarr/config.yaml`" + ` is read (or the file that ` + "`--config`" + ` names), then every
` + "`*.yaml`" + ` and ` + "`*.yml`" + ` in the folder of that name with ` + "`.d`" + ` behind it, in the order of
their names. The format is that of k3s. A later file replaces what an earlier one set; a
` + "`+`" + ` behind the key of a list appends to it instead; a key set to nothing has its default
again.

` + "```yaml" + `
# /etc/knarr/config.yaml
cluster-cidr: 10.52.0.0/16
tls-san:
  - k8s.example.org
disable-kube-proxy: false
kubelet-arg:
  - max-pods=250

# /etc/knarr/config.yaml.d/10-site.yaml
tls-san+: 192.0.2.7
write-kubeconfig-mode: 640
` + "```" + `

A key that does not exist, a key that is there twice, and a value of the wrong kind are
errors, which name file and line. Everything is checked before anything on the machine is
changed; all that is wrong is told at once, a line each, and the exit code is 2. A variable
that begins with ` + "`KNARR_`" + ` and is not known is only warned of, and so is an option of
servers in a file that an agent reads. For an agent ` + "`KNARR_URL`" + ` is another name of ` + "`KNARR_SERVER`" + `.
`

const referenceTail = `
## Proxies

Images are pulled through the proxies that ` + "`HTTP_PROXY`" + ` and ` + "`HTTPS_PROXY`" + ` name, except from
what ` + "`NO_PROXY`" + ` lists. ` + "`CONTAINERD_HTTP_PROXY`, `CONTAINERD_HTTPS_PROXY`" + ` and
` + "`CONTAINERD_NO_PROXY`" + ` come first where both are set; lower-case names come last. The
cluster's networks and domain, the node's addresses and this machine itself are added to
` + "`NO_PROXY`" + `. Nothing but pulls uses a proxy.

## Registries

` + "`/etc/knarr/registries.yaml`" + ` (or the file that ` + "`--private-registry`" + ` names) says how images
are pulled, in the format of k3s. Each pull goes by the file as it is then; nothing has to
be restarted. A mistake is told in the log with file, line and key, and what the file said
before stays in force.

` + "```yaml" + `
mirrors:
  docker.io:                       # "*" is every registry without an entry of its own
    endpoint:                      # asked in this order, and then the registry itself
      - https://mirror.example.org:5000
      - https://cache.example.org/hub   # a path takes the place of /v2
    rewrite:                       # other names on mirrors; the first that matches counts
      "^library/(.*)": "hub/$1"
configs:
  mirror.example.org:5000:         # "*" is every host without an entry of its own
    auth:
      username: knarr
      password: secret
    tls:
      ca_file: /etc/knarr/mirror-ca.pem
      cert_file: /etc/knarr/client.pem
      key_file: /etc/knarr/client.key
` + "```" + `

Instead of a user and a password, ` + "`auth`" + ` may have ` + "`auth`" + ` (both in base64) or ` + "`identity_token`" + `;
` + "`tls`" + ` may have ` + "`insecure_skip_verify: true`" + `. A pod's own ` + "`imagePullSecrets`" + ` come first at the
registry that its image names; at a mirror, what ` + "`configs`" + ` has for the mirror.
`
