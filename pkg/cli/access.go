package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/knarr-dev/knarr/pkg/config"
)

// apiTimeout bounds each request of a command.
const apiTimeout = 15 * time.Second

// apiAccess is a way to the API server.
type apiAccess struct {
	client kubernetes.Interface
	// ca are the authorities, PEM, that vouch for the server.
	ca []byte
	// source is the kubeconfig that tells all this, for errors.
	source string
}

// apiFlags gives cmd the flags that tell how to reach the API server, and a
// function that does: by --kubeconfig, else KUBECONFIG, as kubectl does, else
// the file that the server on this machine writes.
func apiFlags(cmd *cobra.Command) func() (*apiAccess, error) {
	return apiFlagsBeside(cmd, new([]config.Given))
}

// apiFlagsBeside is apiFlags for a command with options of its own, of which what was
// typed is in given.
func apiFlagsBeside(cmd *cobra.Command, given *[]config.Given) func() (*apiAccess, error) {
	bindOptionsTo(cmd, given, options("config"))
	path := ""
	cmd.Flags().VarP(&valueFlag{"file", func(text string) error { path = text; return nil }}, "kubeconfig", "",
		"kubeconfig to talk to the server with (default: KUBECONFIG, else the one that the server writes)")
	_ = cmd.RegisterFlagCompletionFunc("kubeconfig", cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault))
	return func() (*apiAccess, error) {
		rules := clientcmd.NewDefaultClientConfigLoadingRules()
		rules.ExplicitPath = path
		source := path
		if path == "" && os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "" {
			cfg, err := loadFlags(*given)
			if err != nil {
				return nil, err
			}
			source, rules.ExplicitPath = cfg.Kubeconfig.Path, cfg.Kubeconfig.Path
		}
		if source == "" {
			source = os.Getenv(clientcmd.RecommendedConfigPathEnvVar)
		}
		cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{}).ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("read kubeconfig %s: %w%s", source, err, hint(err))
		}
		cfg.Timeout = apiTimeout
		// The file may name a file in its turn.
		if err := rest.LoadTLSFiles(cfg); err != nil {
			return nil, fmt.Errorf("read what kubeconfig %s names: %w", source, err)
		}
		client, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			return nil, fmt.Errorf("use kubeconfig %s: %w", source, err)
		}
		return &apiAccess{client: client, ca: cfg.CAData, source: source}, nil
	}
}

// loadFlags reads the configuration of this machine, with those flags.
func loadFlags(given []config.Given) (*config.Config, error) {
	cfg, _, err := config.Load(config.Sources{Flags: given, Environ: os.Environ()})
	return cfg, err
}

func hint(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return ": run this as root, or give --kubeconfig"
	case errors.Is(err, fs.ErrNotExist), clientcmd.IsEmptyConfig(err):
		return ": start the server, or give --kubeconfig"
	}
	return ""
}

// valueFlag is a flag whose value has a name in help texts.
type valueFlag struct {
	name string
	set  func(text string) error
}

// Set implements pflag.Value.
func (f *valueFlag) Set(text string) error { return f.set(text) }

// String implements pflag.Value.
func (f *valueFlag) String() string { return "" }

// Type implements pflag.Value.
func (f *valueFlag) Type() string { return f.name }
