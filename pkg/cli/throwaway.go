package cli

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/logs"
	"github.com/knarr-dev/knarr/pkg/throwaway"
)

func newThrowaway() []*cobra.Command {
	return []*cobra.Command{
		newRun(), newUp(), newDown(), newList(), newKubeconfig(), newLoad(), newSave(), newLogs(), newShell(), newSweep(),
	}
}

// newKeep is the process that a throwaway cluster lives with.
func newKeep() *cobra.Command {
	return &cobra.Command{
		Use:   "keep",
		Short: "Keep a throwaway cluster",
		Args:  noArguments,
		RunE:  func(cmd *cobra.Command, _ []string) error { return throwaway.Keep(cmd.Context()) },
	}
}

// newUndoLab removes as root of a user namespace what a dead cluster left.
func newUndoLab() *cobra.Command {
	return &cobra.Command{
		Use:   "undo-lab FOLDER",
		Short: "Remove what is left of a throwaway cluster without root",
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return throwaway.UndoLab(cmd.Context(), args[0]) },
	}
}

// clusterFlags are those that say what a cluster is made of.
type clusterFlags struct {
	cfg      throwaway.Config
	archives []string
	loads    []string
	ports    []string
	volumes  []string
	config   string
	wait     string
}

func (f *clusterFlags) bind(cmd *cobra.Command) {
	cmd.Flags().SortFlags = false
	text(cmd, "name", "name", "name of the cluster", &f.cfg.Name)
	text(cmd, "from", "file", "file of \"knarr save\" to begin with: its objects, images and nodes", &f.cfg.From)
	cmd.Flags().IntVar(&f.cfg.Nodes, "nodes", 0, "how many nodes; the first is the server (default 1, or as many as were saved)")
	cmd.Flags().BoolVar(&f.cfg.ControlPlaneOnly, "control-plane-only", false, "API server, controller-manager and scheduler without nodes, in one process")
	list(cmd, "image-archive", "file", "archive of images that every node has; may be repeated", &f.archives)
	list(cmd, "load", "image", "image for every node: an archive, a folder with an OCI layout, - for stdin, or the name of one that Docker or containerd has here; may be repeated", &f.loads)
	list(cmd, "port", "[address:]port:nodeport", "port of this machine, on loopback, that leads to one of the server's node; may be repeated", &f.ports)
	list(cmd, "volume", "path:nodepath[:ro]", "file or folder to show in every node; may be repeated", &f.volumes)
	registry := cmd.Flags().VarPF(&valueFlag{"port", f.setRegistry}, "registry", "", "registry at localhost that all throwaway clusters pull from, which keeps its images (default port 5000)")
	registry.NoOptDefVal = strconv.Itoa(throwaway.DefaultRegistryPort)
	text(cmd, "net", "how", "how pods reach the world: none, or nat by connections that this machine makes for them (default none)", &f.cfg.Net)
	text(cmd, "config", "file", "configuration file of the server, as of \"knarr server\"", &f.config)
	text(cmd, "wait", "what", "nodes, or all for every pod too (default nodes)", &f.wait)
	_ = cmd.RegisterFlagCompletionFunc("net", cobra.FixedCompletions([]string{throwaway.NetNone, throwaway.NetNAT}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("wait", cobra.FixedCompletions([]string{"nodes", "all"}, cobra.ShellCompDirectiveNoFileComp))
}

func (f *clusterFlags) setRegistry(port string) error {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("%q is no port: want --registry, or --registry=5001", port)
	}
	f.cfg.RegistryPort = uint16(n)
	return nil
}

// complete reads what was typed. All mistakes are told at once.
func (f *clusterFlags) complete(cmd *cobra.Command) error {
	errs := []error{throwaway.CheckName(f.cfg.Name), throwaway.CheckNet(f.cfg.Net)}
	note := func(err error) { errs = append(errs, err) }
	for _, text := range f.ports {
		p, err := throwaway.ParsePort(text)
		f.cfg.Ports = append(f.cfg.Ports, p)
		note(err)
	}
	for _, text := range f.volumes {
		v, err := throwaway.ParseVolume(text)
		f.cfg.Volumes = append(f.cfg.Volumes, v)
		note(err)
	}
	for _, text := range f.archives {
		if _, err := os.Stat(text); err != nil {
			note(fmt.Errorf("--image-archive: %w", err))
			continue
		}
		f.loads = append(f.loads, text)
	}
	for _, text := range f.loads {
		i, err := throwaway.ParseImage(text, cmd.InOrStdin())
		f.cfg.Images = append(f.cfg.Images, i)
		note(err)
	}
	switch f.wait {
	case "", "nodes":
	case "all":
		f.cfg.AllPods = true
	default:
		note(fmt.Errorf("--wait %s: give nodes or all", f.wait))
	}
	if f.config != "" {
		_, _, err := config.Load(config.Sources{Flags: []config.Given{{Name: "config", Value: f.config}}})
		note(err)
		f.cfg.ServerConfig, err = os.ReadFile(f.config)
		note(err)
	}
	if err := errors.Join(errs...); err != nil {
		return &usageError{err}
	}
	var err error
	if f.cfg.Exe, err = os.Executable(); err != nil {
		return fmt.Errorf("find own executable: %w", err)
	}
	return nil
}

// hush has the libraries that load images say nothing to those who type: what matters
// is returned.
func hush(cmd *cobra.Command) { logs.Setup(cmd.ErrOrStderr(), logs.Options{}) }

func newRun() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run a command with a cluster that is thrown away after it",
		Long: "Starts a cluster in namespaces of its own, runs a command with KUBECONFIG set,\n" +
			"and ends with the command's exit code. Nothing is left then: no process, mount,\n" +
			"link, cgroup or file, also when the command or Knarr itself is killed, but the\n" +
			"images that it was given, which are kept for the next. What the command has left\n" +
			"running ends too. Signals go to the command.\n\n" +
			"Without root the cluster is one of a user namespace, where this machine lets you\n" +
			"have one: docs/throwaway.md says how it does.\n\n" +
			"Images are pulled by way of this machine's network; pods have no way out of the\n" +
			"cluster, unless by --net=nat. A command that does not exist gives exit code 127.",
		Example: "  # tests against a new cluster\n" +
			"  sudo knarr run -- make e2e\n\n" +
			"  # three nodes and an image of your own\n" +
			"  sudo knarr run --nodes 3 --image-archive app.tar -- ./test.sh",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("give a command to run, behind --: knarr run -- kubectl get nodes")
			}
			return nil
		},
		DisableFlagsInUseLine: true,
	}
	f := &clusterFlags{}
	f.bind(cmd)
	cmd.Flags().SetInterspersed(false)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.cfg.Name == "" {
			f.cfg.Name = fmt.Sprintf("run-%d", os.Getpid())
		}
		if err := f.complete(cmd); err != nil {
			return err
		}
		hush(cmd)
		code, err := throwaway.Run(cmd.Context(), f.cfg, args)
		if err != nil {
			return &exitError{err, code}
		}
		if code != 0 {
			return exitCode(code)
		}
		return nil
	}
	return cmd
}

func newUp() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up [flags]",
		Short: "Start a cluster that is thrown away by \"knarr down\"",
		Long: "Starts a cluster in namespaces of its own, and makes its context, knarr-NAME,\n" +
			"the current one of your kubeconfig. Several clusters run side by side. Each is\n" +
			"kept by a process in the background until \"knarr down\" ends it, or a reboot.",
		Example: "  # a server and two agents, with port 80 of the server at localhost:8080\n" +
			"  sudo knarr up --nodes 3 --port 8080:80\n" +
			"  kubectl get nodes\n" +
			"  sudo knarr down",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	f := &clusterFlags{}
	f.bind(cmd)
	text(cmd, "kubeconfig", "file", "kubeconfig to add the context to (default: the one that kubectl would change)", &f.cfg.Kubeconfig)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.cfg.Name == "" {
			f.cfg.Name = throwaway.DefaultName
		}
		if err := f.complete(cmd); err != nil {
			return err
		}
		if f.cfg.Kubeconfig == "" {
			f.cfg.Kubeconfig = throwaway.UserKubeconfig()
		}
		hush(cmd)
		begun := time.Now()
		c, err := throwaway.Start(cmd.Context(), f.cfg, func(node string) {
			fmt.Fprintf(cmd.ErrOrStderr(), "node %s is ready after %.1f s\n", node, time.Since(begun).Seconds())
		})
		if err != nil {
			return err
		}
		if err := c.Detach(); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "cluster %s is ready after %.1f s; the current context is %s\n", c.Name, time.Since(begun).Seconds(), c.Context())
		if c.Registry != "" {
			fmt.Fprintf(cmd.OutOrStdout(), "images pushed to %s are pulled from there\n", c.Registry)
		}
		for _, p := range c.Ports {
			fmt.Fprintf(cmd.OutOrStdout(), "port %d of %s is at %s\n", p.Node, c.Nodes[0].Name, p.Addr)
		}
		return nil
	}
	return cmd
}

// text adds a flag that takes one value, list one that may be repeated.
func text(cmd *cobra.Command, name, arg, help string, to *string) {
	cmd.Flags().Var(&valueFlag{arg, func(v string) error { *to = v; return nil }}, name, help)
}

func list(cmd *cobra.Command, name, arg, help string, to *[]string) {
	cmd.Flags().Var(&valueFlag{arg, func(v string) error { *to = append(*to, v); return nil }}, name, help)
}
