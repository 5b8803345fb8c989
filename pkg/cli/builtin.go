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
	_ "k8s.io/client-go/plugin/pkg/client/auth" // credential plugins of kubectl
	"k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"

	"github.com/knarr-dev/knarr/pkg/bundle"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/version"
)

// Builtin is the command line with everything that is in this binary. It is
// the one place that decides what that is.
func Builtin() *cobra.Command {
	v := version.Get()
	return New(Commands{
		Server:   runServer,
		Check:    checkMachine,
		Kubectl:  kubectl,
		Ctr:      ctr,
		Crictl:   crictl,
		Internal: []*cobra.Command{newDemo()},
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
	if os.Getenv("KUBECONFIG") == "" {
		path := config.Default().Kubeconfig.Path
		// A file that this user may not read is upstream's to complain about.
		if _, err := os.Stat(path); err == nil {
			if err := os.Setenv("KUBECONFIG", path); err != nil {
				return fmt.Errorf("set KUBECONFIG: %w", err)
			}
		}
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

// crictl is an executable of the bundle, since it cannot be linked in.
func crictl(args []string) error {
	c := config.Default()
	if dir := os.Getenv("KNARR_DATA_DIR"); dir != "" {
		c.DataDir = dir
	}
	archive, err := bundle.Embedded()
	if err != nil {
		return err
	}
	u, err := archive.Unpack(filepath.Join(c.DataDir, "bundle"))
	if err != nil {
		return err
	}
	path, err := u.Path("bin/crictl")
	if err != nil {
		return err
	}
	tool := exec.Command(path, args...)
	tool.Stdin, tool.Stdout, tool.Stderr = os.Stdin, os.Stdout, os.Stderr
	socket := "unix://" + filepath.Join(c.RunDir, "containerd", "containerd.sock")
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
