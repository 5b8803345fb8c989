package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiserverconfig "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/knarr-dev/knarr/pkg/cis"
	"github.com/knarr-dev/knarr/pkg/cluster"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/ports"
	"github.com/knarr-dev/knarr/pkg/status"
)

// checkBenchmark judges the server that runs here by the CIS benchmark.
func checkBenchmark(ctx context.Context, w io.Writer, cfg *config.Config, format string) error {
	facts, err := benchmarkFacts(ctx, cfg)
	if err != nil {
		return fmt.Errorf("check by the benchmark %s: %w", cis.Benchmark, err)
	}
	all := cis.Run(facts)
	if err := cis.Print(w, all, format); err != nil {
		return err
	}
	if cis.Failed(all) {
		return exitCode(ExitFailed)
	}
	return nil
}

func benchmarkFacts(ctx context.Context, cfg *config.Config) (cis.Facts, error) {
	var f cis.Facts
	text, err := status.Ask(ctx, cfg.StatusSocket(), http.MethodGet, cluster.FlagsPath)
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(text, &f.Flags); err != nil {
		return f, fmt.Errorf("read the flags of the control plane: %w", err)
	}
	rest, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig.Path)
	if err != nil {
		return f, fmt.Errorf("read kubeconfig %s: %w", cfg.Kubeconfig.Path, err)
	}
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return f, fmt.Errorf("create client: %w", err)
	}
	bindings, err := client.RbacV1().ClusterRoleBindings().List(ctx, metav1.ListOptions{})
	if err != nil {
		return f, fmt.Errorf("list role bindings: %w", err)
	}
	for _, b := range bindings.Items {
		if b.RoleRef.Name == "cluster-admin" {
			f.ClusterAdmins = append(f.ClusterAdmins, b)
		}
	}
	if !cfg.DisableAgent {
		if f.Kubelet, err = kubeletConfiguration(ctx, client, cfg.Node.Name); err != nil {
			return f, err
		}
	}
	for list, paths := range map[*[]cis.File][]string{
		&f.PKI:         {filepath.Join(cfg.ServerDir(), "tls"), filepath.Join(cfg.ServerDir(), "tls", "*")},
		&f.Kubeconfigs: {filepath.Join(cfg.ServerDir(), "run", "*.kubeconfig"), filepath.Join(cfg.AgentDir(), "*.kubeconfig")},
		&f.Admin:       {cfg.Kubeconfig.Path},
		&f.Store:       {filepath.Join(cfg.ServerDir(), "db")},
		&f.CNI:         {"/etc/cni/net.d/*knarr*"},
	} {
		if *list, err = files(paths...); err != nil {
			return f, err
		}
	}
	if f.EncryptionProviders, err = encryptionProviders(f.Flags["kube-apiserver"]["encryption-provider-config"]); err != nil {
		return f, err
	}
	f.ProxyMetrics, err = openToOthers(10249)
	return f, err
}

func kubeletConfiguration(ctx context.Context, client kubernetes.Interface, node string) (map[string]any, error) {
	text, err := client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + node + "/proxy/configz").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the kubelet of node %s for its configuration: %w", node, err)
	}
	var answer map[string]map[string]any
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, fmt.Errorf("read the kubelet's configuration: %w", err)
	}
	return answer["kubeletconfig"], nil
}

// files looks at those that patterns stand for, as far as there are any.
func files(patterns ...string) ([]cis.File, error) {
	var all []cis.File
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("look for %s: %w", pattern, err)
		}
		for _, path := range paths {
			info, err := os.Stat(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue // a temporary one
			}
			if err != nil {
				return nil, fmt.Errorf("look at file: %w", err)
			}
			owner, ok := info.Sys().(*syscall.Stat_t)
			if !ok {
				return nil, fmt.Errorf("look at %s: the system does not tell its owner", path)
			}
			all = append(all, cis.File{Path: path, Mode: info.Mode(), UID: owner.Uid, GID: owner.Gid})
		}
	}
	return all, nil
}

// encryptionProviders are those of Secrets in an EncryptionConfiguration, in
// order. The first is what is written with.
func encryptionProviders(path string) ([]string, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the encryption's configuration: %w", err)
	}
	var c apiserverconfig.EncryptionConfiguration
	if err := yaml.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("read the encryption's configuration %s: %w", path, err)
	}
	var names []string
	for _, r := range c.Resources {
		if !slices.Contains(r.Resources, "secrets") {
			continue
		}
		for _, p := range r.Providers {
			switch {
			case p.KMS != nil:
				names = append(names, "kms")
			case p.Secretbox != nil:
				names = append(names, "secretbox")
			case p.AESCBC != nil:
				names = append(names, "aescbc")
			case p.AESGCM != nil:
				names = append(names, "aesgcm")
			default:
				names = append(names, "identity")
			}
		}
	}
	return names, nil
}

// openToOthers tells whether somebody listens on a TCP port beyond loopback.
func openToOthers(port uint16) (bool, error) {
	for _, file := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile("/proc/net/" + file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return false, fmt.Errorf("read listening sockets: %w", err)
		}
		sockets, err := ports.ParseProc(file, string(text))
		if err != nil {
			return false, err
		}
		for _, s := range sockets {
			if s.Addr.Port() == port && !s.Addr.Addr().Unmap().IsLoopback() {
				return true, nil
			}
		}
	}
	return false, nil
}
