package cis

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// good are facts of a server that fails nothing.
func good() Facts {
	return Facts{
		Flags: map[string]map[string]string{
			apiServer: {
				"anonymous-auth": "false", "enable-admission-plugins": "[NodeRestriction,DenyServiceExternalIPs,EventRateLimit]", "authorization-mode": "Node,RBAC",
				"kubelet-client-certificate": "f", "kubelet-certificate-authority": "f", "profiling": "false", "request-timeout": "1m0s", "service-account-lookup": "true",
				"audit-policy-file": "f", "audit-log-path": "f", "audit-log-maxage": "30", "audit-log-maxbackup": "10", "audit-log-maxsize": "100",
				"service-account-key-file": "[f]", "tls-cert-file": "f", "client-ca-file": "f", "encryption-provider-config": "f", "admission-control-config-file": "f",
				"tls-cipher-suites": strings.Join(strong, ","), "service-account-extend-token-expiration": "false", "token-auth-file": "", "disable-admission-plugins": "[]",
			},
			controllerManager: {"terminated-pod-gc-threshold": "12500", "profiling": "false", "use-service-account-credentials": "true",
				"service-account-private-key-file": "f", "root-ca-file": "f", "secure-port": "0"},
			scheduler: {"profiling": "false", "secure-port": "0"},
		},
		Kubelet: map[string]any{
			"authentication": map[string]any{"anonymous": map[string]any{"enabled": false}, "x509": map[string]any{"clientCAFile": "f"}},
			"authorization":  map[string]any{"mode": "Webhook"}, "tlsCertFile": "f", "tlsCipherSuites": []any{strong[0]}, "podPidsLimit": 4096.0, "seccompDefault": true,
		},
		PKI:                 []File{{Path: "tls", Mode: 0o700}, {Path: "tls/client-ca.crt", Mode: 0o600}, {Path: "tls/client-ca.key", Mode: 0o600}},
		Kubeconfigs:         []File{{Path: "run/scheduler.kubeconfig", Mode: 0o600}, {Path: "run/controller-manager.kubeconfig", Mode: 0o600}},
		Admin:               []File{{Path: "kubeconfig.yaml", Mode: 0o600}},
		Store:               []File{{Path: "db", Mode: 0o700}},
		EncryptionProviders: []string{"secretbox", "identity"},
		ClusterAdmins: []rbacv1.ClusterRoleBinding{{ObjectMeta: metav1.ObjectMeta{Name: "cluster-admin"},
			Subjects: []rbacv1.Subject{{Kind: "Group", Name: "system:masters"}}}},
	}
}

func statuses(f Facts) map[string]Status {
	all := map[string]Status{}
	for _, r := range Run(f) {
		all[r.ID] = r.Status
	}
	return all
}

func TestEveryItemOfTheBenchmarkIsThereOnce(t *testing.T) {
	seen := map[string]bool{}
	id := regexp.MustCompile(`^[1-5](\.[0-9]+){1,2}$`)
	for _, r := range Run(good()) {
		if seen[r.ID] || !id.MatchString(r.ID) || r.Text == "" {
			t.Errorf("item %q: %q", r.ID, r.Text)
		}
		seen[r.ID] = true
		if r.Status == Fail || r.Status == Profile || r.Status != Pass && r.Reason == "" {
			t.Errorf("item %s is %s: %q", r.ID, r.Status, r.Reason)
		}
	}
	for section, count := range map[string]int{"1.1.": 21, "1.2.": 30, "1.3.": 7, "1.4.": 2, "2.": 7, "3.1.": 3, "3.2.": 2, "4.1.": 10, "4.2.": 14, "4.3.": 1, "5.1.": 13, "5.2.": 12, "5.3.": 2, "5.4.": 2, "5.5.": 1, "5.6.": 4} {
		n := 0
		for id := range seen {
			if strings.HasPrefix(id, section) {
				n++
			}
		}
		if n != count {
			t.Errorf("section %s has %d items, want %d", section, n, count)
		}
	}
}

func TestWhatIsWrongFails(t *testing.T) {
	for id, spoil := range map[string]func(*Facts){
		"1.1.11": func(f *Facts) { f.Store[0].Mode = 0o755 },
		"1.1.13": func(f *Facts) { f.Admin[0].Mode = 0o644 },
		"1.1.15": func(f *Facts) { f.Kubeconfigs[0].Mode = 0o640 },
		"1.1.18": func(f *Facts) { f.Kubeconfigs[1].GID = 7 },
		"1.1.19": func(f *Facts) { f.PKI[2].UID = 1000 },
		"1.1.21": func(f *Facts) { f.PKI[2].Mode = 0o640 },
		"1.2.2":  func(f *Facts) { f.Flags[apiServer]["token-auth-file"] = "tokens" },
		"1.2.6":  func(f *Facts) { f.Flags[apiServer]["authorization-mode"] = "Node,RBAC,AlwaysAllow" },
		"1.2.14": func(f *Facts) { f.Flags[apiServer]["enable-admission-plugins"] = "[AlwaysPullImages]" },
		"1.2.29": func(f *Facts) { f.Flags[apiServer]["tls-cipher-suites"] += ",TLS_RSA_WITH_RC4_128_SHA" },
		"1.3.6":  func(f *Facts) { f.Flags[controllerManager]["feature-gates"] = "RotateKubeletServerCertificate=false" },
		"1.4.2": func(f *Facts) {
			f.Flags[scheduler] = map[string]string{"secure-port": "10259", "bind-address": "0.0.0.0"}
		},
		"4.2.1": func(f *Facts) {
			f.Kubelet["authentication"] = map[string]any{"anonymous": map[string]any{"enabled": true}}
		},
		"4.2.4": func(f *Facts) { f.Kubelet["readOnlyPort"] = 10255.0 },
		"4.2.9": func(f *Facts) { delete(f.Kubelet, "tlsCertFile") },
		"4.3.1": func(f *Facts) { f.ProxyMetrics = true },
	} {
		f := good()
		spoil(&f)
		if got := statuses(f)[id]; got != Fail {
			t.Errorf("item %s is %s", id, got)
		}
	}
	f := good()
	f.Flags[apiServer]["anonymous-auth"] = "true"
	f.ClusterAdmins = append(f.ClusterAdmins, rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "mine"}})
	if s := statuses(f); s["1.2.1"] != Profile || s["5.1.1"] != Workloads {
		t.Errorf("what a profile mends: %s; what is the user's: %s", s["1.2.1"], s["5.1.1"])
	}
}

func TestResultsArePrinted(t *testing.T) {
	all := Run(good())
	var table, text bytes.Buffer
	if err := Print(&table, all, "table"); err != nil || !strings.Contains(table.String(), "\n1.2.8 ") || !strings.Contains(table.String(), "cis-1.12: ") {
		t.Errorf("%v\n%s", err, &table)
	}
	var back []Result
	if err := Print(&text, all, "json"); err != nil || json.Unmarshal(text.Bytes(), &back) != nil || len(back) != len(all) {
		t.Errorf("%v\n%s", err, &text)
	}
}
