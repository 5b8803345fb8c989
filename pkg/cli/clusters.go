package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/knarr-dev/knarr/pkg/throwaway"
)

func newDown() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "down [NAME...] [flags]",
		Short: "End clusters of \"knarr up\", and remove all of them",
		Long: "Ends throwaway clusters and removes all there is of them, their contexts too.\n" +
			"Without a name it is the cluster dev, or else the only one there is.",
		Example: "  sudo knarr down\n" +
			"  sudo knarr down --all",
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     completeCluster,
	}
	all := cmd.Flags().Bool("all", false, "end every throwaway cluster")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *all && len(args) > 0 {
			return usagef("give names or --all")
		}
		clusters, err := chosen(args, *all)
		if err != nil {
			return err
		}
		var errs []error
		for _, c := range clusters {
			err := c.Down(cmd.Context())
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "cluster %s is gone\n", c.Name)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	return cmd
}

func chosen(names []string, all bool) ([]*throwaway.Cluster, error) {
	if all {
		return throwaway.List()
	}
	if len(names) == 0 {
		names = []string{""}
	}
	var clusters []*throwaway.Cluster
	for _, name := range names {
		c, err := throwaway.Find(name)
		if err != nil {
			return nil, err
		}
		clusters = append(clusters, c)
	}
	return clusters, nil
}

func newList() *cobra.Command {
	cmd := &cobra.Command{
		Use:                   "list [flags]",
		Short:                 "Show the throwaway clusters of this machine",
		Long:                  "Shows the throwaway clusters of this machine, those of \"knarr run\" too.",
		Example:               "  sudo knarr list",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	output := outputFlag(cmd, []string{"table", "json"}, "table", "form of the output")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		all, err := throwaway.List()
		if err != nil {
			return err
		}
		if *output == "json" {
			e := json.NewEncoder(cmd.OutOrStdout())
			e.SetIndent("", "  ")
			return e.Encode(append([]*throwaway.Cluster{}, all...))
		}
		return printClusters(cmd.OutOrStdout(), all, time.Now())
	}
	return cmd
}

func printClusters(w io.Writer, all []*throwaway.Cluster, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tSTATE\tNODES\tSERVER\tPORTS\tAGE")
	for _, c := range all {
		state := "ready"
		if c.Ready.IsZero() {
			state = "starting"
		}
		var ports []string
		for _, p := range c.Ports {
			ports = append(ports, p.String())
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\n", c.Name, state, len(c.Nodes), c.Server, strings.Join(ports, ","), now.Sub(c.Created).Round(time.Second))
	}
	return t.Flush()
}

func newKubeconfig() *cobra.Command {
	return &cobra.Command{
		Use:   "kubeconfig [NAME]",
		Short: "Print the kubeconfig of a throwaway cluster",
		Long: "Prints the administrator's kubeconfig of a throwaway cluster. Without a name it\n" +
			"is the cluster dev, or else the only one there is.",
		Example:               "  sudo knarr kubeconfig dev > dev.yaml",
		Args:                  oneName,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     completeCluster,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := throwaway.Find(strings.Join(args, ""))
			if err != nil {
				return err
			}
			text, err := c.Kubeconfig()
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
}

func newLoad() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "load IMAGE... [flags]",
		Short: "Bring images into the nodes of a throwaway cluster",
		Long: "Brings images into every node of a throwaway cluster. An image is an archive\n" +
			"(Docker or OCI; tar, tar.gz, tar.zst), a folder with an OCI layout, - for an\n" +
			"archive from stdin, or the name of one that this machine's Docker or containerd\n" +
			"has. A damaged archive changes nothing. What was loaded is kept for the clusters\n" +
			"that come after, in /var/cache/knarr/images.",
		Example: "  sudo knarr load app.tar\n" +
			"  docker save app | sudo knarr load -",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("give an archive or the name of an image")
			}
			return nil
		},
		DisableFlagsInUseLine: true,
	}
	name := nameFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var all []throwaway.Image
		for _, arg := range args {
			i, err := throwaway.ParseImage(arg, cmd.InOrStdin())
			if err != nil {
				return &usageError{err}
			}
			all = append(all, i)
		}
		c, err := throwaway.Find(*name)
		if err != nil {
			return err
		}
		hush(cmd)
		for _, i := range all {
			if err := c.Load(cmd.Context(), i); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

func newSave() *cobra.Command {
	return &cobra.Command{
		Use:   "save [NAME] FILE",
		Short: "Save a throwaway cluster to a file that others begin with",
		Long: "Saves a throwaway cluster, which goes on meanwhile: its objects, the images of its\n" +
			"nodes, its configuration and its manifests. \"knarr up --from FILE\" and \"knarr run\n" +
			"--from FILE\" begin there, as often as you like. Without a NAME it is the cluster\n" +
			"dev, or else the only one there is.\n\n" +
			"The file has the cluster's Secrets in it, so only its owner may read it. It has no\n" +
			"keys of authorities and no tokens: each cluster that begins there gets its own.",
		Example: "  sudo knarr save dev seed.knarr\n" +
			"  sudo knarr run --from seed.knarr -- make e2e",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usagef("give a file to save to, such as: knarr save dev seed.knarr")
			}
			return nil
		},
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			file := args[len(args)-1]
			c, err := throwaway.Find(strings.Join(args[:len(args)-1], ""))
			if err != nil {
				return err
			}
			return c.Save(cmd.Context(), file)
		},
	}
}

func newLogs() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "logs [NODE] [flags]",
		Short: "Print what a node of a throwaway cluster has logged",
		Long: "Prints what the server or agent of a node of a throwaway cluster has logged, the\n" +
			"server's without a NODE. Logs of pods are kubectl's.",
		Example: "  sudo knarr logs\n" +
			"  sudo knarr logs agent-1 --name dev",
		Args:                  oneName,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	name := nameFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := throwaway.Find(*name)
		if err != nil {
			return err
		}
		path, err := c.LogFile(strings.Join(args, ""))
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(cmd.OutOrStdout(), f)
		return err
	}
	return cmd
}

func newShell() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "shell [NODE] [flags] [-- COMMAND [ARGUMENT...]]",
		Short: "Run a shell, or a command, in a node of a throwaway cluster",
		Long: "Runs a shell or a command on a node of a throwaway cluster, among its processes,\n" +
			"mounts and links; on the server without a NODE. It ends with its exit code.",
		Example: "  sudo knarr shell agent-1\n" +
			"  sudo knarr shell -- knarr status",
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	name := nameFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		node, command := args, []string{"sh", "-c", "command -v bash >/dev/null && exec bash; exec sh"}
		if dash := cmd.ArgsLenAtDash(); dash >= 0 && dash < len(args) {
			node, command = args[:dash], args[dash:]
		}
		if err := oneName(cmd, node); err != nil {
			return err
		}
		c, err := throwaway.Find(*name)
		if err != nil {
			return err
		}
		code, err := c.Exec(cmd.Context(), strings.Join(node, ""), command)
		if err == nil && code != 0 {
			return exitCode(code)
		}
		return err
	}
	return cmd
}

func newSweep() *cobra.Command {
	return &cobra.Command{
		Use:   "sweep",
		Short: "Remove what killed throwaway clusters left",
		Long: "Removes cgroups, files and contexts that throwaway clusters left when they were\n" +
			"killed, or by a power cut. The next \"knarr run\" or \"knarr up\" does so as well.\n" +
			"Clusters that live are left alone.",
		Example:               "  sudo knarr sweep",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
		RunE:                  func(*cobra.Command, []string) error { return throwaway.Sweep() },
	}
}

func oneName(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usagef("unexpected argument %q; %q tells what is known", args[1], cmd.CommandPath()+" --help")
	}
	return nil
}

func nameFlag(cmd *cobra.Command) *string {
	name := new(string)
	text(cmd, "name", "name", "cluster that is meant (default: dev, or else the only one)", name)
	_ = cmd.RegisterFlagCompletionFunc("name", completeCluster)
	return name
}

func completeCluster(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	all, err := throwaway.List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, c := range all {
		names = append(names, c.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
