package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/spf13/cobra"
)

func newServer(c Commands) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "server [flags]",
		Short: "Run a control plane, and this machine as a node of it",
		Long: "Runs a whole Kubernetes in this process, in the foreground, until it is told\n" +
			"to end by SIGINT or SIGTERM. Pods go on without it, and are found again by\n" +
			"the next start.\n\n" +
			"Each flag is also a variable (--data-dir: KNARR_DATA_DIR) and a key of the\n" +
			"configuration file (data-dir: /srv/knarr). Flags beat variables, which beat\n" +
			"files. Lists may be given by commas or by repeating the flag.",
		Example: "  # a cluster of this one machine\n" +
			"  knarr server\n\n" +
			"  # other address ranges, and a second name for the API server\n" +
			"  knarr server --cluster-cidr 10.52.0.0/16 --service-cidr 10.53.0.0/16 \\\n" +
			"    --tls-san k8s.example.org\n\n" +
			"  # further flags for Kubernetes' own components\n" +
			"  knarr server --kubelet-arg max-pods=250 --kube-scheduler-arg v=2",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	cmd.Flags().SortFlags = false
	given := bindOptions(cmd, config.Options())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return serve(cmd, c, config.Sources{Flags: *given, Environ: os.Environ()}, c.Server)
	}
	return cmd
}

// serve reads the configuration and runs a server or an agent of it.
func serve(cmd *cobra.Command, c Commands, src config.Sources, run func(context.Context, *config.Config) error) error {
	cfg, warnings, err := config.Load(src)
	for _, w := range warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "knarr: warning:", w)
	}
	if err == nil {
		err = awaitAddress(cmd, c, cfg)
		if ctx := cmd.Context(); ctx.Err() != nil {
			return nil // told to end
		}
	}
	// What could be read is checked even if something could not, so that
	// all mistakes are told at once.
	if err := errors.Join(err, cfg.Complete(c.Host())); err != nil {
		return &usageError{err}
	}
	return run(cmd.Context(), cfg)
}
