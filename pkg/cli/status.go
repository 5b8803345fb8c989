package cli

import (
	"fmt"
	"os"

	"github.com/knarr-dev/knarr/pkg/cluster"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/status"
	"github.com/spf13/cobra"
)

func newStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [flags]",
		Short: "Show the components of the server that runs here",
		Long: "Shows each component of the server that runs on this machine: its state, how\n" +
			"long it took to become ready, since when it is in that state, and its last\n" +
			"error. It answers even while the API server does not.",
		Example: "  # a table to read\n" +
			"  knarr status\n\n" +
			"  # for a program\n" +
			"  knarr status -o json\n\n" +
			"  # until it is interrupted\n" +
			"  knarr status --watch",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	given := bindOptions(cmd, options("config", "data-dir", "run-dir"))
	output := outputFlag(cmd, status.Formats(), "table", "form of the output")
	watch := cmd.Flags().BoolP("watch", "w", false, "show it again at each change")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		// Only the socket's place is needed: mistakes elsewhere must not hide
		// the state of a server that runs.
		cfg, _, err := config.Load(config.Sources{Flags: *given, Environ: os.Environ()})
		if err != nil {
			printError(cmd.ErrOrStderr(), fmt.Errorf("warning: %w", err))
		}
		if *watch {
			return status.Watch(cmd.Context(), cfg.StatusSocket(), cluster.WatchPath, func(r *status.Report) error {
				return status.PrintNext(cmd.OutOrStdout(), r, *output)
			})
		}
		report, err := status.Fetch(cmd.Context(), cfg.StatusSocket())
		if err != nil {
			return err
		}
		return status.Print(cmd.OutOrStdout(), report, *output)
	}
	return cmd
}
