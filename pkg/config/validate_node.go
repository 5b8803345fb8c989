package config

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	kubeletapis "k8s.io/kubelet/pkg/apis"
)

func (k *checker) node(h Host) {
	k.nodeName(h)
	for i, ip := range k.c.Node.IPs {
		if !ip.IsGlobalUnicast() {
			k.add(nth("node-ip", i), ip.String(), "is no address that others can reach", "give an address of this machine; \"ip address\" lists them")
		}
	}
	for i, ip := range k.c.Node.ExternalIPs {
		if !ip.IsGlobalUnicast() {
			k.add(nth("node-external-ip", i), ip.String(), "is no address that others can reach", "give the address that leads to this machine from outside")
		}
	}
	if ips := k.c.Node.IPs; len(ips) > 0 && k.c.Network.ClusterCIDR.IsValid() && ips[0].Is4() != k.c.Network.ClusterCIDR.Addr().Is4() {
		k.add(at("node-ip", "cluster-cidr"), ips[0].String(), "is of another address family than cluster-cidr "+k.c.Network.ClusterCIDR.String(), "give an address of that family first")
	}
	for i, label := range k.c.Node.Labels {
		k.label(nth("node-label", i), label)
	}
	for i, taint := range k.c.Node.Taints {
		k.taint(nth("node-taint", i), taint)
	}
	if path := k.c.Node.ResolvConf; path != "" {
		if _, err := h.ReadFile(path); err != nil {
			k.add(at("resolv-conf"), path, "can't be read: "+reason(err), "leave it out, or give a file with \"nameserver\" lines")
		}
	}
	if e := k.c.Node.ContainerRuntimeEndpoint; e != "" && !strings.HasPrefix(e, "unix:///") {
		k.add(at("container-runtime-endpoint"), strconv.Quote(e), "is not a unix socket", "give one such as unix:///run/crio/crio.sock")
	}
}

// reason is an error without the path that the sentence names anyway.
func reason(err error) string {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return path.Err.Error()
	}
	return err.Error()
}

func (k *checker) nodeName(h Host) {
	name, what := k.c.Node.Name, strconv.Quote(k.c.Node.Name)
	if !k.c.IsSet("node-name") && name == strings.ToLower(h.Name) {
		what = fmt.Sprintf("the host name %q", h.Name)
	}
	const rule = "lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit"
	switch {
	case name == "":
		k.add(at("node-name"), "", "the machine has no host name to take", "give --node-name")
	case len(name) > 63:
		k.add(at("node-name"), what, fmt.Sprintf("has %d letters, but Kubernetes allows 63 in the label kubernetes.io/hostname", len(name)), "give a shorter --node-name")
	case len(validation.IsDNS1123Subdomain(name)) > 0:
		fix := "use " + rule
		if better := asName(name); better != "" {
			fix = "give --node-name " + better
		}
		k.add(at("node-name"), what, "can't be a node's name ("+rule+")", fix)
	}
}

// asName turns a text into the node name nearest to it, or "" if nothing is left.
func asName(text string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return '-'
	}, strings.ToLower(text))
	name = strings.Trim(name, "-.")
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		return ""
	}
	return name
}

func (k *checker) label(s spot, label string) {
	key, val, ok := strings.Cut(label, "=")
	if !ok {
		k.add(s, strconv.Quote(label), "is not of the form key=value", "for a label without a value write "+label+"=")
		return
	}
	if errs := validation.IsQualifiedName(key); len(errs) > 0 {
		k.add(s, strconv.Quote(key), "can't be a label's key", "use [example.org/]name of at most 63 letters, digits, '-', '_' and '.'")
		return
	}
	if errs := validation.IsValidLabelValue(val); len(errs) > 0 {
		k.add(s, strconv.Quote(val), "can't be the value of label "+key, "use at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit")
		return
	}
	// A node may not give itself labels that others rely on to trust it; the
	// kubelet would refuse to start, and the API server would refuse the node.
	if belongsToKubernetes(key) && !kubeletapis.IsKubeletLabel(key) {
		k.add(s, strconv.Quote(key), "is a label that a node may not give itself", "set it once the node is up: knarr kubectl label node "+k.c.Node.Name+" "+label)
	}
}

func belongsToKubernetes(key string) bool {
	domain, _, ok := strings.Cut(key, "/")
	if !ok {
		return false
	}
	return slices.ContainsFunc([]string{"kubernetes.io", "k8s.io"}, func(d string) bool {
		return domain == d || strings.HasSuffix(domain, "."+d)
	})
}

func (k *checker) taint(s spot, taint string) {
	effects := []string{"NoSchedule", "PreferNoSchedule", "NoExecute"}
	what := strconv.Quote(taint)
	rest, effect, ok := strings.Cut(taint, ":")
	if !ok {
		k.add(s, what, "is not of the form key=value:effect", "effects are "+alternatives(effects))
		return
	}
	if !slices.Contains(effects, effect) {
		k.add(s, what, "ends with an unknown effect", didYouMean(effect, effects, "give "+alternatives(effects)))
		return
	}
	key, val, _ := strings.Cut(rest, "=")
	if len(validation.IsQualifiedName(key)) > 0 || len(validation.IsValidLabelValue(val)) > 0 {
		k.add(s, what, "has a key or value that Kubernetes does not allow", "use [example.org/]name=value of letters, digits, '-', '_' and '.'")
	}
}
