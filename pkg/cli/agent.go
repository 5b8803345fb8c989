package cli

import (
	"os"
	"strings"
	"unsafe"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/spf13/cobra"
)

// tokenVariable is the environment's name of --token.
const tokenVariable = "KNARR_TOKEN"

func newAgent(c Commands) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent [flags]",
		Short: "Make this machine a node of a cluster",
		Long: "Joins a cluster and runs pods for it, in the foreground, until it is told to\n" +
			"end by SIGINT or SIGTERM. Pods go on without it, and are found again by the\n" +
			"next start. The server may start later, and may be away for any time.\n\n" +
			"A token is needed for the first start only. \"knarr token create\" on a server\n" +
			"makes one; the server's own is in server/node-token of its data dir. Give it\n" +
			"by KNARR_TOKEN or --token-file, so that it stays out of your shell's history.\n\n" +
			"A node that is deleted (kubectl delete node) ends its agent with exit code 3.",
		Example: "  # join, with a token from the server\n" +
			"  sudo KNARR_TOKEN=knarr.6f… knarr agent --server https://192.0.2.1:6443\n\n" +
			"  # the token in a file, further servers, a label\n" +
			"  sudo knarr agent --token-file /root/token \\\n" +
			"    --server https://192.0.2.1:6443,https://192.0.2.2:6443 \\\n" +
			"    --node-label example.org/rack=7",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	cmd.Flags().SortFlags = false
	given := bindOptions(cmd, config.AgentOptions())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return serve(cmd, c, config.Sources{Flags: *given, Environ: os.Environ(), Agent: true}, c.Agent)
	}
	return cmd
}

// Arguments returns this process's arguments, its name first. A token among them
// is overwritten where ps and /proc/PID/cmdline show it to everybody.
func Arguments() []string {
	args := make([]string, len(os.Args))
	for i, a := range os.Args {
		args[i] = strings.Clone(a)
	}
	if len(args) > 1 && (args[1] == "server" || args[1] == "agent") {
		hideToken(os.Args)
	}
	return args
}

// hideToken writes over tokens in the strings themselves.
func hideToken(args []string) {
	for i, a := range args {
		from, is := tokenIn(args, i)
		if !is {
			continue
		}
		// Go's runtime hands out the kernel's own memory, which may be written.
		memory := unsafe.Slice(unsafe.StringData(a), len(a))
		for j := from; j < len(memory); j++ {
			memory[j] = '*'
		}
	}
}

// tokenIn tells whether an argument is or holds a token, and from which byte on.
func tokenIn(args []string, i int) (from int, is bool) {
	if i > 0 && (args[i-1] == "--token" || args[i-1] == "-t") {
		return 0, true
	}
	for _, flag := range []string{"--token=", "-t=", "-t"} {
		if strings.HasPrefix(args[i], flag) && args[i] != flag {
			return len(flag), true
		}
	}
	return 0, false
}

// withoutToken are arguments for this program's next start, which gets the token
// by its environment.
func withoutToken(args []string) []string {
	var rest []string
	for i, a := range args {
		if _, is := tokenIn(args, i); is || a == "--token" || a == "-t" {
			continue
		}
		rest = append(rest, a)
	}
	return rest
}
