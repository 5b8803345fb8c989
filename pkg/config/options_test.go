package config_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/knarr-dev/knarr/pkg/config"
)

func TestTableOfOptionsIsConsistent(t *testing.T) {
	cfg := config.Default()
	names, shorts := map[string]bool{}, map[string]bool{}
	for _, o := range config.Options() {
		if names[o.Name] || o.Short != "" && shorts[o.Short] {
			t.Errorf("%s: the name or letter is there twice", o.Name)
		}
		names[o.Name], shorts[o.Short] = true, true
		if !slices.Contains(config.Groups(), o.Group) {
			t.Errorf("%s: group %q is not shown", o.Name, o.Group)
		}
		if o.IsSwitch() != (o.Arg == "") {
			t.Errorf("%s: a switch, and only a switch, has no argument", o.Name)
		}
		if o.Help == "" || strings.HasSuffix(o.Help, ".") {
			t.Errorf("%s: help text %q", o.Name, o.Help)
		}
		if o.Default != "" && strings.Join(o.Values(cfg), ",") != o.Default {
			t.Errorf("%s: default %q is read as %q", o.Name, o.Default, o.Values(cfg))
		}
		if len(o.Choices) > 0 && o.Default != "" && !slices.Contains(o.Choices, o.Default) {
			t.Errorf("%s: default %q is not among the choices", o.Name, o.Default)
		}
	}
}

func TestEveryOptionOfTheCommandLineExists(t *testing.T) {
	var names []string
	for _, o := range config.Options() {
		names = append(names, o.Name)
	}
	for _, name := range strings.Fields(`config data-dir node-name node-ip node-label node-taint cluster-cidr service-cidr
		cluster-dns cluster-domain service-node-port-range https-listen-port bind-address advertise-address tls-san
		write-kubeconfig write-kubeconfig-mode write-kubeconfig-group disable disable-helm-controller disable-agent flannel-backend flannel-iface
		disable-kube-proxy pod-manifest-path resolv-conf snapshotter private-registry container-runtime-endpoint kube-apiserver-arg
		kube-controller-manager-arg kube-scheduler-arg kubelet-arg kube-proxy-arg debug timings log-format
		datastore-synchronous datastore-driver workqueue-metrics secrets-encryption backup-schedule backup-retention backup-dir
		backup-passphrase-file backup-recipients-file backup-s3 backup-s3-endpoint backup-s3-bucket backup-s3-folder`) {
		if !slices.Contains(names, name) {
			t.Errorf("no option %s", name)
		}
	}
}

func TestNearestNameIsOneThatWasLikelyMeant(t *testing.T) {
	known := []string{"cluster-cidr", "cluster-dns", "service-cidr", "tls-san", "debug"}
	for typed, want := range map[string]string{
		"cluster-cdir": "cluster-cidr",
		"cluster_dns":  "cluster-dns",
		"TLS-SAN":      "tls-san",
		"tlssan":       "tls-san",
		"debgu":        "debug",
		"x":            "",
		"frobnicate":   "",
		"":             "",
	} {
		if got := config.Nearest(typed, known); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", typed, got, want)
		}
	}
}
