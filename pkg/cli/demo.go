package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/knarr-dev/knarr/pkg/throwaway"
)

// newDemo is what `make run` runs.
func newDemo() *cobra.Command {
	o := throwaway.DemoOptions{}
	cmd := &cobra.Command{
		Use:     "demo",
		Short:   "Show a cluster at work in a lab host",
		Example: "  knarr internal demo --image build/images/test.tar --once",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Exe, err = os.Executable(); err != nil {
				return fmt.Errorf("find own executable: %w", err)
			}
			o.Out = cmd.OutOrStdout()
			return throwaway.Demo(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.Image, "image", "build/images/test.tar", "archive of the image knarr.dev/test:1")
	cmd.Flags().BoolVar(&o.Once, "once", false, "end when the workload has answered")
	return cmd
}
