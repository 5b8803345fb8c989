package cli

import "github.com/spf13/cobra"

// newTools are the commands that hand everything behind their name to a tool
// which has flags and exit codes of its own.
func newTools(c Commands) []*cobra.Command {
	var cmds []*cobra.Command
	for _, t := range []struct {
		run                  func(args []string) error
		name, short, example string
	}{
		{c.Kubectl, "kubectl", "Talk to the Kubernetes API",
			"  knarr kubectl get pods --all-namespaces\n\n" +
				"  # the same by the name kubectl\n" +
				"  ln -s knarr /usr/local/bin/kubectl"},
		{c.Helm, "helm", "Install, list and remove charts with Helm",
			"  knarr helm list --all-namespaces\n\n" +
				"  # the same by the name helm\n" +
				"  ln -s knarr /usr/local/bin/helm"},
		{c.Ctr, "ctr", "Talk to containerd",
			"  knarr ctr images list"},
		{c.Crictl, "crictl", "Talk to the container runtime as the kubelet does",
			"  knarr crictl ps"},
	} {
		if t.run == nil {
			continue
		}
		cmds = append(cmds, &cobra.Command{
			Use:                   t.name + " [arguments]",
			Short:                 t.short,
			Long:                  t.short + ".\n\"knarr " + t.name + " --help\" shows the tool's own help.",
			Example:               t.example,
			DisableFlagParsing:    true,
			DisableFlagsInUseLine: true,
			RunE:                  func(_ *cobra.Command, args []string) error { return t.run(args) },
		})
	}
	return cmds
}

// forwardCompletion lets kubectl itself complete what follows "knarr kubectl":
// it understands the same request, and knows its own words.
func forwardCompletion(args []string) []string {
	asks := len(args) > 2 && (args[0] == cobra.ShellCompRequestCmd || args[0] == cobra.ShellCompNoDescRequestCmd)
	if !asks || args[1] != "kubectl" {
		return args
	}
	return append([]string{"kubectl", args[0]}, args[2:]...)
}
