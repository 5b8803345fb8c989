package cis

import (
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
)

// strong are the cipher suites that the benchmark allows to API server and
// kubelet alike. Those of TLS 1.3 are not chosen by flags.
var strong = []string{
	"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
	"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
	"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
}

func allStrong(suites []string) bool {
	return len(suites) > 0 && !slices.ContainsFunc(suites, func(s string) bool { return !slices.Contains(strong, s) })
}

func pkiFiles(f Facts) []File              { return f.PKI }
func kubeconfigs(f Facts) []File           { return f.Kubeconfigs }
func adminConf(f Facts) []File             { return f.Admin }
func storeFiles(f Facts) []File            { return f.Store }
func cniFiles(f Facts) []File              { return f.CNI }
func named(part string) func(Facts) []File { return only(kubeconfigs, part) }

func items() []item {
	return slices.Concat(controlPlaneFiles(), apiServerItems(), controllers(), etcd(), configuration(), nodes(), policies())
}

func controlPlaneFiles() []item {
	noPods := fixed(None, "the control plane runs in Knarr's process, not in pods")
	return []item{
		{"1.1.1", "API server pod specification: mode 600", noPods},
		{"1.1.2", "API server pod specification: root:root", noPods},
		{"1.1.3", "controller-manager pod specification: mode 600", noPods},
		{"1.1.4", "controller-manager pod specification: root:root", noPods},
		{"1.1.5", "scheduler pod specification: mode 600", noPods},
		{"1.1.6", "scheduler pod specification: root:root", noPods},
		{"1.1.7", "etcd pod specification: mode 600", noPods},
		{"1.1.8", "etcd pod specification: root:root", noPods},
		{"1.1.9", "CNI files: mode 600", mode(cniFiles, 0o600)},
		{"1.1.10", "CNI files: root:root", ownedByRoot(cniFiles)},
		{"1.1.11", "store's folder: mode 700", mode(storeFiles, 0o700)},
		{"1.1.12", "store's folder: owned by who runs the store", ownedByRoot(storeFiles)},
		{"1.1.13", "administrator's kubeconfig: mode 600", mode(adminConf, 0o600)},
		{"1.1.14", "administrator's kubeconfig: root:root", ownedByRoot(adminConf)},
		{"1.1.15", "scheduler's kubeconfig: mode 600", mode(named("scheduler.kubeconfig"), 0o600)},
		{"1.1.16", "scheduler's kubeconfig: root:root", ownedByRoot(named("scheduler.kubeconfig"))},
		{"1.1.17", "controller-manager's kubeconfig: mode 600", mode(named("controller-manager.kubeconfig"), 0o600)},
		{"1.1.18", "controller-manager's kubeconfig: root:root", ownedByRoot(named("controller-manager.kubeconfig"))},
		{"1.1.19", "PKI folder and files: root:root", ownedByRoot(pkiFiles)},
		{"1.1.20", "certificates: mode 644 or less", mode(only(pkiFiles, ".crt"), 0o644)},
		{"1.1.21", "keys: mode 600", mode(only(pkiFiles, ".key", ".pem"), 0o600)},
	}
}

func apiServerItems() []item {
	const audited = "requests are recorded with --profile cis or --audit=metadata"
	inProcess := fixed(None, "the store is in this process: there is no connection to protect")
	api := func(name string, ok func(string) bool, want string) check { return flag(apiServer, name, ok, want) }
	plugins := "enable-admission-plugins"
	return []item{
		{"1.2.1", "anonymous-auth is false", orProfile(api("anonymous-auth", isValue("false"), ""), "strangers may ask for health and version, and nothing else")},
		{"1.2.2", "token-auth-file is not set", api("token-auth-file", isUnset, "use another way of authentication")},
		{"1.2.3", "DenyServiceExternalIPs is on", orProfile(api(plugins, has("DenyServiceExternalIPs"), ""), "Services may name external addresses without it")},
		{"1.2.4", "kubelet client certificate and key are set", api("kubelet-client-certificate", isSet, "it must be set")},
		{"1.2.5", "kubelet-certificate-authority is set", api("kubelet-certificate-authority", isSet, "it must be set")},
		{"1.2.6", "authorization-mode is not AlwaysAllow", api("authorization-mode", lacks("AlwaysAllow"), "leave it out")},
		{"1.2.7", "authorization-mode has Node", api("authorization-mode", has("Node"), "add Node")},
		{"1.2.8", "authorization-mode has RBAC", api("authorization-mode", has("RBAC"), "add RBAC")},
		{"1.2.9", "EventRateLimit is on", orProfile(api(plugins, has("EventRateLimit"), ""), "workloads may write as many events as priority and fairness allows")},
		{"1.2.10", "AlwaysAdmit is off", api(plugins, lacks("AlwaysAdmit"), "leave it out")},
		{"1.2.11", "AlwaysPullImages is on", fixed(Workloads, "it would keep pods from starting where no registry is reached: --kube-apiserver-arg=enable-admission-plugins=")},
		{"1.2.12", "ServiceAccount is not off", api("disable-admission-plugins", lacks("ServiceAccount"), "leave it out")},
		{"1.2.13", "NamespaceLifecycle is not off", api("disable-admission-plugins", lacks("NamespaceLifecycle"), "leave it out")},
		{"1.2.14", "NodeRestriction is on", api(plugins, has("NodeRestriction"), "add it")},
		{"1.2.15", "profiling is false", api("profiling", isValue("false"), "set it to false")},
		{"1.2.16", "audit-log-path is set", orProfile(api("audit-log-path", isSet, ""), audited)},
		{"1.2.17", "audit-log-maxage is 30 or more", orProfile(api("audit-log-maxage", atLeast(30), ""), audited)},
		{"1.2.18", "audit-log-maxbackup is 10 or more", orProfile(api("audit-log-maxbackup", atLeast(10), ""), audited)},
		{"1.2.19", "audit-log-maxsize is 100 or more", orProfile(api("audit-log-maxsize", atLeast(100), ""), audited)},
		{"1.2.20", "request-timeout is appropriate", api("request-timeout", isSet, "it must be set")},
		{"1.2.21", "service-account-lookup is true", api("service-account-lookup", isValue("true"), "set it to true")},
		{"1.2.22", "service-account-key-file is set", api("service-account-key-file", isSet, "it must be set")},
		{"1.2.23", "etcd certificate and key are set", inProcess},
		{"1.2.24", "tls-cert-file and key are set", api("tls-cert-file", isSet, "it must be set")},
		{"1.2.25", "client-ca-file is set", api("client-ca-file", isSet, "it must be set")},
		{"1.2.26", "etcd-cafile is set", inProcess},
		{"1.2.27", "encryption-provider-config is set", encrypted(func(f Facts) bool { return isSet(f.Flags[apiServer]["encryption-provider-config"]) })},
		{"1.2.28", "Secrets are encrypted by aescbc, kms or secretbox", encrypted(func(f Facts) bool {
			return len(f.EncryptionProviders) > 0 && slices.Contains([]string{"aescbc", "kms", "secretbox"}, f.EncryptionProviders[0])
		})},
		{"1.2.29", "only strong ciphers", func(f Facts) (Status, string) {
			suites := strings.Split(strings.Trim(f.Flags[apiServer]["tls-cipher-suites"], "[]"), ",")
			if allStrong(suites) {
				return Pass, ""
			}
			return Fail, fmt.Sprintf("tls-cipher-suites of %s is %q", apiServer, suites)
		}},
		{"1.2.30", "service-account-extend-token-expiration is false", orProfile(api("service-account-extend-token-expiration", isValue("false"), ""),
			"workloads that do not read their token again would lose access after an hour")},
	}
}

func encrypted(ok func(Facts) bool) check {
	return func(f Facts) (Status, string) {
		if ok(f) {
			return Pass, ""
		}
		return Workloads, "Secrets are written as they are: --kube-apiserver-arg=encryption-provider-config= takes a file"
	}
}

func controllers() []item {
	cm := func(name string, ok func(string) bool, want string) check {
		return flag(controllerManager, name, ok, want)
	}
	closed := func(component string) check {
		return func(f Facts) (Status, string) {
			if f.Flags[component]["secure-port"] == "0" {
				return Pass, "it listens nowhere"
			}
			return flag(component, "bind-address", isValue("127.0.0.1"), "set it to 127.0.0.1")(f)
		}
	}
	return []item{
		{"1.3.1", "terminated-pod-gc-threshold is set", cm("terminated-pod-gc-threshold", atLeast(1), "set it to one or more")},
		{"1.3.2", "profiling is false", cm("profiling", isValue("false"), "set it to false")},
		{"1.3.3", "use-service-account-credentials is true", cm("use-service-account-credentials", isValue("true"), "set it to true")},
		{"1.3.4", "service-account-private-key-file is set", cm("service-account-private-key-file", isSet, "it must be set")},
		{"1.3.5", "root-ca-file is set", cm("root-ca-file", isSet, "it must be set")},
		{"1.3.6", "RotateKubeletServerCertificate is not off", cm("feature-gates", func(v string) bool { return !strings.Contains(v, "RotateKubeletServerCertificate=false") }, "leave it out")},
		{"1.3.7", "bind-address is loopback", closed(controllerManager)},
		{"1.4.1", "scheduler: profiling is false", flag(scheduler, "profiling", isValue("false"), "set it to false")},
		{"1.4.2", "scheduler: bind-address is loopback", closed(scheduler)},
	}
}

func etcd() []item {
	var all []item
	for i, text := range []string{
		"cert-file and key-file", "client-cert-auth", "no auto-tls", "peer-cert-file and peer-key-file", "peer-client-cert-auth", "no peer-auto-tls", "an authority of its own",
	} {
		all = append(all, item{fmt.Sprintf("2.%d", i+1), "etcd: " + text, fixed(None, "the store is in this process and listens nowhere")})
	}
	return all
}

func configuration() []item {
	audit := orProfile(flag(apiServer, "audit-policy-file", isSet, ""), "requests are recorded with --profile cis or --audit=metadata")
	return []item{
		{"3.1.1", "no client certificates for users", fixed(Workloads, "whom you give kubeconfigs is yours to decide; OIDC: --kube-apiserver-arg=authentication-config=")},
		{"3.1.2", "no service-account tokens for users", fixed(Workloads, "whom you give tokens is yours to decide")},
		{"3.1.3", "no bootstrap tokens for users", fixed(Workloads, "\"knarr token list\" shows them; they are for machines")},
		{"3.2.1", "there is an audit policy", audit},
		{"3.2.2", "the audit policy covers key concerns", audit},
	}
}

func nodes() []item {
	noService := fixed(None, "the kubelet is no service of its own")
	noFile := fixed(None, "the kubelet reads no file of its own")
	authorities := func(f Facts) []File { return only(pkiFiles, "client-ca.crt")(f) }
	inTime := func(f Facts) (Status, string) {
		if f.Kubelet == nil {
			return None, "this machine is no node"
		}
		return Pass, "Knarr renews it"
	}
	return []item{
		{"4.1.1", "kubelet service file: mode 600", noService},
		{"4.1.2", "kubelet service file: root:root", noService},
		{"4.1.3", "kube-proxy's kubeconfig: mode 600", fixed(None, "there is none")},
		{"4.1.4", "kube-proxy's kubeconfig: root:root", fixed(None, "there is none")},
		{"4.1.5", "kubelet's kubeconfig: mode 600", mode(named("kubelet.kubeconfig"), 0o600)},
		{"4.1.6", "kubelet's kubeconfig: root:root", ownedByRoot(named("kubelet.kubeconfig"))},
		{"4.1.7", "authority of clients: mode 644 or less", mode(authorities, 0o644)},
		{"4.1.8", "authority of clients: root:root", ownedByRoot(authorities)},
		{"4.1.9", "kubelet's configuration file: mode 600", noFile},
		{"4.1.10", "kubelet's configuration file: root:root", noFile},
		{"4.2.1", "anonymous-auth is false", kubelet("authentication.anonymous.enabled", isJSON(false), "it must be false")},
		{"4.2.2", "authorization-mode is not AlwaysAllow", kubelet("authorization.mode", isJSON("Webhook"), "it must be Webhook")},
		{"4.2.3", "client-ca-file is set", kubelet("authentication.x509.clientCAFile", notEmpty, "it must be set")},
		{"4.2.4", "read-only-port is 0", kubelet("readOnlyPort", func(v any) bool { return v == nil || v == 0.0 }, "set it to 0")},
		{"4.2.5", "streaming-connection-idle-timeout is not 0", kubelet("streamingConnectionIdleTimeout", func(v any) bool { return v != "0s" }, "set it to 5m, for instance")},
		{"4.2.6", "make-iptables-util-chains is true", fixed(None, "there is no iptables: kube-proxy writes nftables rules, and needs none of the kubelet's chains")},
		{"4.2.7", "hostname-override is not set", fixed(None, "Knarr chooses the node's name and signs its certificates for it")},
		{"4.2.8", "event-qps captures events", kubelet("eventRecordQPS", func(v any) bool { n, ok := v.(float64); return v == nil || ok && n >= 0 }, "set it to 0 or more")},
		{"4.2.9", "the kubelet has a serving certificate", func(f Facts) (Status, string) {
			if s, _ := kubelet("serverTLSBootstrap", isJSON(true), "")(f); s == Pass {
				return Pass, ""
			}
			return kubelet("tlsCertFile", notEmpty, "it must be set")(f)
		}},
		{"4.2.10", "client certificates are rotated", inTime},
		{"4.2.11", "serving certificates are rotated", inTime},
		{"4.2.12", "only strong ciphers", kubelet("tlsCipherSuites", func(v any) bool {
			var suites []string
			list, _ := v.([]any)
			for _, s := range list {
				suites = append(suites, fmt.Sprint(s))
			}
			return allStrong(suites)
		}, "choose them among those of the benchmark")},
		{"4.2.13", "pods' processes are limited", orProfile(kubelet("podPidsLimit", func(v any) bool { n, ok := v.(float64); return ok && n > 0 }, ""), "pods may have as many processes as the machine; --kubelet-arg=pod-max-pids= limits them")},
		{"4.2.14", "seccomp-default is true", orProfile(kubelet("seccompDefault", isJSON(true), ""), "pods that choose no seccomp profile have none; --kubelet-arg=seccomp-default=true gives them one")},
		{"4.3.1", "kube-proxy's metrics are on loopback", func(f Facts) (Status, string) {
			if f.ProxyMetrics {
				return Fail, "port 10249 is open to other machines; bind it to 127.0.0.1 with --kube-proxy-arg=metrics-bind-address="
			}
			return Pass, ""
		}},
	}
}

func isJSON(want any) func(any) bool { return func(v any) bool { return v == want } }

func notEmpty(v any) bool { s, _ := v.(string); return s != "" }

func policies() []item {
	all := []item{{"5.1.1", "cluster-admin is only used where required", clusterAdmins}}
	section := func(prefix string, first int, texts ...string) {
		for i, text := range texts {
			all = append(all, item{fmt.Sprintf("%s.%d", prefix, first+i), text, fixed(Workloads, "it depends on what you run and whom you let in")})
		}
	}
	section("5.1", 2, "access to Secrets", "wildcards in roles", "who may create pods", "default service accounts are not used", "tokens are mounted where needed",
		"system:masters is avoided", "bind, impersonate and escalate", "who may create persistent volumes", "proxy of nodes", "approval of certificate requests",
		"access to webhook configurations", "creation of service-account tokens")
	all = append(all, item{"5.2.1", "there is a policy control mechanism", flag(apiServer, "disable-admission-plugins", lacks("PodSecurity"), "leave it out")})
	restricted := orProfile(flag(apiServer, "admission-control-config-file", isSet, ""), "namespaces choose by labels of PodSecurity; with --profile cis all but kube-system are restricted")
	for i, text := range []string{
		"privileged containers", "host's process IDs", "host's IPC", "host's network", "privilege escalation", "root containers", "NET_RAW", "capabilities",
		"Windows HostProcess containers", "HostPath volumes", "host ports",
	} {
		all = append(all, item{fmt.Sprintf("5.2.%d", i+2), "minimize: " + text, restricted})
	}
	section("5.3", 1, "the CNI plugin supports NetworkPolicies", "every namespace has NetworkPolicies")
	section("5.4", 1, "Secrets are used as files", "external storage of Secrets")
	section("5.5", 1, "image provenance")
	section("5.6", 1, "namespaces as boundaries", "seccomp profiles of pods", "security contexts of pods", "the default namespace is not used")
	return all
}

func clusterAdmins(f Facts) (Status, string) {
	for _, b := range f.ClusterAdmins {
		known := b.Name == "cluster-admin" && len(b.Subjects) == 1 && b.Subjects[0].Kind == rbacv1.GroupKind && b.Subjects[0].Name == "system:masters"
		if !known {
			return Workloads, fmt.Sprintf("ClusterRoleBinding %s gives the role cluster-admin away: look whether less would do", b.Name)
		}
	}
	return Pass, ""
}
