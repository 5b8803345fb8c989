package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/cmd/ctr/app"
	"github.com/spf13/cobra"
	helmcmd "helm.sh/helm/v4/pkg/cmd"
	"helm.sh/helm/v4/pkg/kube"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // credential plugins of kubectl
	"k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"

	helmcontroller "github.com/knarr-dev/knarr/pkg/addons/helm"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/knarr-dev/knarr/pkg/version"
)

// Builtin is the command line with everything that is in this binary. It is
// the one place that decides what that is.
func Builtin() *cobra.Command {
	v := version.Get()
	return New(Commands{
		Server:    runServer,
		Agent:     runServer,
		Network:   host.AwaitNetwork,
		Check:     checkMachine,
		Kubectl:   kubectl,
		Ctr:       ctr,
		Crictl:    crictl,
		Helm:      helm,
		Etcd:      etcd,
		APIServer: apiServer,
		Internal:  []*cobra.Command{newKeep(), newUndoLab()},
		Version: Version{
			Knarr: v.Knarr, Commit: v.Commit, Date: v.BuildDate, Kubernetes: v.Kubernetes,
			Parts: []Part{{Name: "containerd", Version: v.Containerd}},
		},
	})
}

// kubectl is upstream's, with the server's own kubeconfig where the user has
// not chosen one.
func kubectl(args []string) error {
	if err := version.Apply(); err != nil {
		return err
	}
	if err := useOwnKubeconfig(); err != nil {
		return err
	}
	var code exitCode
	kubectlutil.BehaviorOnFatal(func(msg string, c int) {
		if msg != "" {
			fmt.Fprintln(os.Stderr, strings.TrimSuffix(msg, "\n"))
		}
		panic(exitCode(c))
	})
	run := func() (err error) {
		// Upstream ends the process from within; only main may do that here.
		defer func() {
			switch p := recover().(type) {
			case nil:
			case exitCode:
				code = p
			default:
				panic(p)
			}
		}()
		argv := append([]string{"kubectl"}, args...)
		os.Args = argv // plugins are looked for by it
		c := cmd.NewDefaultKubectlCommand()
		c.SetArgs(args)
		if err := c.Execute(); err != nil {
			kubectlutil.CheckErr(err)
		}
		return nil
	}
	if err := run(); err != nil {
		return err
	}
	if code != 0 {
		return code
	}
	return nil
}

// useOwnKubeconfig has a tool use the server's where the user has chosen none.
func useOwnKubeconfig() error {
	if os.Getenv("KUBECONFIG") != "" {
		return nil
	}
	path := config.Default().Kubeconfig.Path
	// A file that this user may not read is upstream's to complain about.
	if _, err := os.Stat(path); err == nil {
		if err := os.Setenv("KUBECONFIG", path); err != nil {
			return fmt.Errorf("set KUBECONFIG: %w", err)
		}
	}
	return nil
}

// helm is upstream's, with the server's own kubeconfig where the user has not
// chosen one.
func helm(args []string) error {
	if err := version.Apply(); err != nil {
		return err
	}
	if err := useOwnKubeconfig(); err != nil {
		return err
	}
	kube.ManagedFieldsManager = helmcontroller.FieldManager
	c, err := helmcmd.NewRootCmd(os.Stdout, args, helmcmd.SetupLogging)
	if err != nil {
		return fmt.Errorf("prepare helm: %w", err)
	}
	c.SetArgs(args)
	err = c.Execute()
	if failed := (helmcmd.CommandError{}); errors.As(err, &failed) && failed.ExitCode != 0 {
		return exitCode(failed.ExitCode)
	}
	if err != nil {
		return exitCode(1) // helm has told
	}
	return nil
}

// exitCode ends the process silently.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }
func (e exitCode) ExitCode() int { return int(e) }

// ctr is containerd's own tool, for our socket and Kubernetes' namespace.
func ctr(args []string) error {
	c := config.Default()
	for name, value := range map[string]string{
		"CONTAINERD_ADDRESS":   filepath.Join(c.RunDir, "containerd", "containerd.sock"),
		"CONTAINERD_NAMESPACE": "k8s.io",
	} {
		if os.Getenv(name) != "" {
			continue
		}
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return app.New().Run(append([]string{"ctr"}, args...))
}

// crictl is an executable of its own, since it cannot be linked in.
func crictl(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this executable: %w", err)
	}
	path, err := findCrictl(self, os.Getenv("PATH"))
	if err != nil {
		return err
	}
	tool := exec.Command(path, args...)
	tool.Stdin, tool.Stdout, tool.Stderr = os.Stdin, os.Stdout, os.Stderr
	socket := "unix://" + filepath.Join(config.Default().RunDir, "containerd", "containerd.sock")
	tool.Env = append([]string{"CONTAINER_RUNTIME_ENDPOINT=" + socket, "IMAGE_SERVICE_ENDPOINT=" + socket}, os.Environ()...)
	err = tool.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exitCode(exit.ExitCode())
	}
	if err != nil {
		return fmt.Errorf("run crictl: %w", err)
	}
	return nil
}

// findCrictl looks for knarr-crictl beside Knarr and in PATH, then for the
// machine's own crictl; a link by that name that leads to Knarr is none.
func findCrictl(self, path string) (string, error) {
	me, err := os.Stat(self)
	if err != nil {
		return "", fmt.Errorf("find this executable: %w", err)
	}
	dirs := filepath.SplitList(path)
	candidates := []string{filepath.Join(filepath.Dir(self), crictlFile)}
	for _, name := range []string{crictlFile, "crictl"} {
		for _, dir := range dirs {
			candidates = append(candidates, filepath.Join(dir, name))
		}
	}
	for _, file := range candidates {
		st, err := os.Stat(file)
		if err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0 && !os.SameFile(st, me) {
			return file, nil
		}
	}
	return "", fmt.Errorf("run crictl: it is a file of its own, and neither %s nor PATH has it: put %s of Knarr's release there, or install cri-tools", candidates[0], crictlFile)
}

const crictlFile = "knarr-crictl"
