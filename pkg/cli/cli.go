// Package cli is Knarr's command line: it turns flags, environment and files
// into a Config, calls one function, and turns what that returns into a message
// and an exit code. What the functions are is told by the caller, so that the
// commands can be tested without a cluster.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit codes of every command. Tools that are linked in (kubectl, helm, ctr, crictl)
// keep their own.
const (
	ExitOK     = 0
	ExitFailed = 1
	// ExitUsage means that the command line or the configuration is wrong, so
	// that trying again without a change is of no use.
	ExitUsage = 2
	// ExitNotMember means that an agent's node was deleted from its cluster: a
	// service manager should not start it again (RestartPreventExitStatus=3).
	ExitNotMember = 3
)

// Commands are the functions behind the command line. A command whose function
// is nil does not exist.
type Commands struct {
	// Server runs until ctx ends. The Config is complete and checked.
	Server func(ctx context.Context, cfg *config.Config) error
	// Agent does so for an agent's Config.
	Agent func(ctx context.Context, cfg *config.Config) error
	// Network waits until the machine has enough of a network, and calls waiting if
	// it has not yet. Default: nothing is waited for.
	Network func(ctx context.Context, enough func(host.Network) bool, waiting func()) error
	// Check looks whether the machine can run a server of that Config.
	Check func(cfg *config.Config) host.Report
	// Kubectl, Helm, Ctr and Crictl get everything that follows their name. An error
	// with a method ExitCode() int ends the process with that code, silently:
	// the tool has spoken for itself.
	Kubectl, Helm, Ctr, Crictl func(args []string) error
	// Etcd and APIServer are stand-ins for the programs that envtest starts, and
	// get everything that follows their name.
	Etcd      func(ctx context.Context, args []string) error
	APIServer func(args []string) error
	// Version is what "knarr version" tells.
	Version Version
	// Host is the machine that a server's Config is completed for. Default:
	// config.ThisHost.
	Host func() config.Host
	// Internal are commands that Knarr calls itself with. They are not shown.
	Internal []*cobra.Command
}

// New makes the command line of the program "knarr".
func New(c Commands) *cobra.Command {
	if c.Host == nil {
		c.Host = config.ThisHost
	}
	root := &cobra.Command{
		Use:   "knarr",
		Short: "A whole Kubernetes in one process",
		Long: "Knarr is a whole Kubernetes in one file and one process: control plane,\n" +
			"node, network and DNS. It is ready in about two seconds, and pulls no\n" +
			"images to get there.",
		Example: "  # start a cluster of this one machine, and look at it\n" +
			"  sudo knarr server\n" +
			"  sudo knarr kubectl get nodes",
		Version:           c.Version.Knarr,
		Args:              knownCommand,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetVersionTemplate("knarr {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	root.SetHelpFunc(printHelp)
	root.SetUsageFunc(func(cmd *cobra.Command) error { printUsage(cmd.OutOrStderr(), cmd); return nil })
	if c.Server != nil {
		root.AddCommand(newServer(c))
	}
	if c.Agent != nil {
		root.AddCommand(newAgent(c))
	}
	if c.Check != nil {
		root.AddCommand(newCheck(c))
	}
	root.AddCommand(newThrowaway()...)
	root.AddCommand(newInstall(c), newUpgrade(), newRollback(), newUninstall(), newStop(), newStatus(), newTop(), newCertificate(), newSupportBundle(c.Version),
		newStore(), newImage(), newBackup(c), newSecretsEncrypt(), newToken(), newVersion(c.Version), newCompletion())
	root.AddCommand(newTools(c)...)
	root.AddCommand(newStandIns(c)...)
	if len(c.Internal) > 0 {
		internal := &cobra.Command{Use: "internal", Short: "What Knarr calls itself with", Hidden: true}
		internal.AddCommand(c.Internal...)
		root.AddCommand(internal)
	}
	return root
}

// Dispatch returns the arguments that follow the program's name. Where the
// program was called by the name of a tool (a link kubectl -> knarr), the
// arguments are as if "knarr kubectl" had been typed.
func Dispatch(argv []string) []string {
	if len(argv) == 0 {
		return nil
	}
	name := filepath.Base(argv[0])
	if slices.Contains([]string{"kubectl", "helm", "ctr", "crictl", "etcd", "kube-apiserver"}, name) {
		return append([]string{name}, argv[1:]...)
	}
	return argv[1:]
}

// Execute runs a command line and returns its exit code. Errors are printed to
// the command's error stream, a line each, begun with "knarr: ".
func Execute(ctx context.Context, root *cobra.Command, args []string) int {
	// Upstream packages put flags of theirs, such as --version of another type, on
	// the process' own set, which cobra adds to every command while it parses. The
	// commands themselves get the set back: the kubelet reads it.
	upstream := pflag.CommandLine
	pflag.CommandLine = pflag.NewFlagSet("knarr", pflag.ContinueOnError)
	root.PersistentPreRun = func(*cobra.Command, []string) { pflag.CommandLine = upstream }
	root.SetArgs(forwardCompletion(args))
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	if tool, ok := errors.AsType[interface {
		error
		ExitCode() int
	}](err); ok {
		if code := tool.ExitCode(); code >= 0 {
			return code
		}
		return ExitFailed // a signal ended it
	}
	printError(root.ErrOrStderr(), err)
	if exit, ok := errors.AsType[*exitError](err); ok {
		return exit.code
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return ExitUsage
	}
	if _, ok := errors.AsType[*config.Problem](err); ok {
		return ExitUsage
	}
	return ExitFailed
}

func printError(w io.Writer, err error) {
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(w, "knarr:", strings.TrimRight(line, "\n"))
	}
}

// exitError ends the process with a code of its own.
type exitError struct {
	error
	code int
}

func (e *exitError) Unwrap() error { return e.error }

// usageError is a mistake on the command line or in the configuration.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// knownCommand rejects what follows "knarr" and is no command.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	if near := config.Nearest(args[0], names); near != "" {
		return usagef("unknown command %q; did you mean %s?", args[0], near)
	}
	return usagef("unknown command %q; %q lists all", args[0], cmd.CommandPath()+" --help")
}

// noArguments rejects words that are no flags.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usagef("unexpected argument %q; %q tells what is known", args[0], cmd.CommandPath()+" --help")
}
