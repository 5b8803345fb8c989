package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	componentcli "k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"

	"github.com/knarr-dev/knarr/pkg/assets"
	"github.com/knarr-dev/knarr/pkg/logs"
	"github.com/knarr-dev/knarr/pkg/version"
)

// newStandIns are the programs that envtest starts, and the command that makes a
// folder of them. They are called by their own names only, so that no list shows
// them.
func newStandIns(c Commands) []*cobra.Command {
	if c.Etcd == nil || c.APIServer == nil {
		return nil
	}
	standIn := func(name string, run func(ctx context.Context, args []string) error) *cobra.Command {
		return &cobra.Command{
			Use: name, Short: "Stand in for " + name, Hidden: true, DisableFlagParsing: true,
			RunE: func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), args) },
		}
	}
	return []*cobra.Command{
		newAssets(),
		standIn("etcd", c.Etcd),
		standIn("kube-apiserver", func(_ context.Context, args []string) error { return c.APIServer(args) }),
	}
}

func newAssets() *cobra.Command {
	return &cobra.Command{
		Use:   "assets folder",
		Short: "Make a folder of test binaries for envtest",
		Long: "Makes a folder of links to Knarr that is for KUBEBUILDER_ASSETS: envtest, of\n" +
			"controller-runtime, finds kube-apiserver, etcd and kubectl there. Its name is\n" +
			"printed. Nothing is downloaded.",
		Example: "  # the tests of an unchanged kubebuilder project\n" +
			"  KUBEBUILDER_ASSETS=$(knarr assets bin/knarr) go test ./...",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("name one folder for the links, such as: knarr assets bin/knarr")
			}
			return nil
		},
		DisableFlagsInUseLine: true,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			exe, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this executable: %w", err)
			}
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return fmt.Errorf("find folder %s: %w", args[0], err)
			}
			if err := assets.Link(dir, exe); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), dir)
			return nil
		},
	}
}

// etcd serves our store under the name of etcd.
func etcd(ctx context.Context, args []string) error {
	logs.Setup(os.Stderr, logs.Options{})
	return assets.Etcd(ctx, args, os.Stdout)
}

// apiServer is upstream's kube-apiserver, in a process that is nothing else.
func apiServer(args []string) error {
	if err := version.Apply(); err != nil {
		return err
	}
	c := app.NewAPIServerCommand()
	// Watches that are open would hold a stop for half a minute, longer than envtest
	// waits. Whoever sets the flag is right.
	c.SetArgs(append([]string{"--shutdown-send-retry-after=true"}, args...))
	if code := componentcli.Run(c); code != 0 {
		return exitCode(code)
	}
	return nil
}
