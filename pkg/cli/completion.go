package cli

import (
	"io"
	"strings"

	"github.com/spf13/cobra"
)

func newCompletion() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion " + strings.Join(shells, "|"),
		Short: "Print a script that completes commands in your shell",
		Example: "  # bash, for this session\n" +
			"  source <(knarr completion bash)\n\n" +
			"  # zsh, for good\n" +
			"  knarr completion zsh > \"${fpath[1]}/_knarr\"\n\n" +
			"  # fish, for good\n" +
			"  knarr completion fish > ~/.config/fish/completions/knarr.fish",
		DisableFlagsInUseLine: true,
		ValidArgs:             shells,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("which shell? give one of %s", strings.Join(shells, ", "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root, w := cmd.Root(), cmd.OutOrStdout()
			generate := map[string]func(io.Writer) error{
				"bash":       func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
				"zsh":        root.GenZshCompletion,
				"fish":       func(w io.Writer) error { return root.GenFishCompletion(w, true) },
				"powershell": root.GenPowerShellCompletionWithDesc,
			}[args[0]]
			if generate == nil {
				return usagef("unknown shell %q; give one of %s", args[0], strings.Join(shells, ", "))
			}
			return generate(w)
		},
	}
}
