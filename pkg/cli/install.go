package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/knarr-dev/knarr/pkg/service"
)

// installFlags are those of knarr install.
type installFlags struct {
	name, binDir, dataDir, root, init, key string
	servers                                []string
	dryRun, skipStart, skipEnable          bool
}

func newInstall(c Commands) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "install [flags] [-- server|agent [flags]]",
		Short: "Install Knarr on this machine as a service, or change how it is",
		Long: "Copies this executable to where commands are, writes a unit for systemd or\n" +
			"OpenRC, and starts it. What follows -- is what the unit runs: server, the\n" +
			"default, or agent, with flags. KNARR_URL or --server makes an agent. Variables\n" +
			"KNARR_* and those of proxies go into the unit's environment, in a file that\n" +
			"root alone may read.\n\n" +
			"Run again, it changes only what is other than before: a newer executable takes\n" +
			"the place of the old one, and the service starts anew while its pods go on.\n" +
			"What is not given stays. \"knarr uninstall\" takes all of it away.",
		Example: "  # a cluster of this one machine\n" +
			"  sudo ./knarr install\n\n" +
			"  # what that would do\n" +
			"  ./knarr install --dry-run\n\n" +
			"  # with flags for the server\n" +
			"  sudo ./knarr install -- server --tls-san k8s.example.org\n\n" +
			"  # a node of another machine's cluster\n" +
			"  sudo KNARR_TOKEN=knarr.6f… ./knarr install --server https://192.0.2.1:6443",
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	cmd.Flags().SortFlags = false
	var f installFlags
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "print what would be done, and do nothing")
	cmd.Flags().StringVar(&f.name, "name", "", "name of the unit (default knarr)")
	cmd.Flags().StringVar(&f.binDir, "bin-dir", "", "folder of the executable (default "+service.DefaultBinDir+")")
	cmd.Flags().StringVarP(&f.dataDir, "data-dir", "d", "", "folder of all state (default: as configured, or /var/lib/knarr)")
	cmd.Flags().StringSliceVarP(&f.servers, "server", "s", nil, "servers of the cluster to join, which makes an agent")
	cmd.Flags().BoolVar(&f.skipStart, "skip-start", false, "do not start the service")
	cmd.Flags().BoolVar(&f.skipEnable, "skip-enable", false, "do not have the service start at boot")
	cmd.Flags().StringVar(&f.init, "init", "", "init system ("+strings.Join(service.Inits(), ", ")+"; default: the machine's)")
	cmd.Flags().StringVar(&f.key, "release-key", "", "public key that \"knarr upgrade\" trusts, a PEM file")
	cmd.Flags().StringVar(&f.root, "root", "", "folder to install into as if it were /, without starting anything")
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return install(cmd, c, f, args) }
	return cmd
}

func install(cmd *cobra.Command, c Commands, f installFlags, args []string) error {
	m := &service.Machine{Root: f.root}
	if f.init != "" && !slices.Contains(service.Inits(), f.init) {
		return usagef("--init: %q is not known; give one of %s", f.init, strings.Join(service.Inits(), ", "))
	}
	if f.root == "" && !f.dryRun && os.Geteuid() != 0 {
		return errors.New("install: only root can install a service: run it with sudo, or look with --dry-run what it would do")
	}
	o := service.Options{Name: f.name, BinDir: f.binDir, Init: service.Init(f.init), SkipStart: f.skipStart, SkipEnable: f.skipEnable}
	before, err := m.Read()
	if err != nil && !errors.Is(err, service.ErrNotInstalled) {
		return err
	}
	if o.Role, o.Args, err = whatRuns(f, args, os.Environ()); err != nil {
		return err
	}
	o.Env = unitEnvironment(os.Environ(), f.servers)
	if o.Source, err = os.Executable(); err != nil {
		return fmt.Errorf("find this executable: %w", err)
	}
	if f.key != "" {
		if o.Key, err = os.ReadFile(f.key); err != nil {
			return fmt.Errorf("read --release-key: %w", err)
		}
	}
	cfg, err := installedConfig(cmd, c, m, f, o, before)
	if err != nil {
		return err
	}
	o.SetDataDir, o.DataDir, o.RunDir = f.dataDir != "", cfg.DataDir, cfg.RunDir
	plan, err := m.PlanInstall(cmd.Context(), o)
	if err != nil {
		return err
	}
	if before == nil && f.root == "" && c.Check != nil && host.Holder(cfg.DataDir) == 0 {
		report := c.Check(cfg)
		for _, w := range report.Of(host.Warning) {
			printError(cmd.ErrOrStderr(), fmt.Errorf("warning: %s", w.String()))
		}
		if err := report.Err(); err != nil && !f.dryRun {
			return fmt.Errorf("this machine can't run Knarr yet, and nothing was changed:\n%w", err)
		} else if err != nil {
			printError(cmd.ErrOrStderr(), err)
		}
	}
	if m.SELinux() {
		printError(cmd.ErrOrStderr(), errors.New("warning: SELinux is enforced, and Knarr has no policy for it: its pods are not labelled; if something is denied, ausearch -m avc tells what"))
	}
	return applyInstall(cmd, f, plan)
}

func applyInstall(cmd *cobra.Command, f installFlags, plan *service.Plan) error {
	out := cmd.OutOrStdout()
	if len(plan.Steps) == 0 {
		fmt.Fprintf(out, "%s is installed as asked for: no change\n", plan.Record.Name)
		return nil
	}
	fmt.Fprint(out, plan)
	if f.dryRun {
		return nil
	}
	if err := plan.Apply(cmd.Context()); err != nil {
		return err
	}
	r := plan.Record
	switch {
	case r.Init == service.None:
		fmt.Fprintf(out, "installed; there is no init system that Knarr knows: have yours run %s %s\n", r.Executable(), r.Role)
	case f.skipStart || f.root != "":
		fmt.Fprintf(out, "installed as %s\n", r.Name)
	case r.Role == "agent":
		fmt.Fprintf(out, "installed as %s, which is joining: knarr status\n", r.Name)
	default:
		fmt.Fprintf(out, "installed as %s: knarr kubectl get nodes\n", r.Name)
	}
	return nil
}

// whatRuns is the role, empty if nobody says one, and its arguments, nil if none
// are given.
func whatRuns(f installFlags, args, environ []string) (role string, rest []string, err error) {
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		role, args = args[0], args[1:]
		rest = append([]string{}, args...)
		if role != "server" && role != "agent" {
			return "", nil, usagef("unexpected argument %q: after -- comes server or agent, or flags for it", role)
		}
	} else if len(args) > 0 {
		rest = args
	}
	joins := len(f.servers) > 0 || slices.ContainsFunc(environ, func(e string) bool {
		name, value, _ := strings.Cut(e, "=")
		return (name == "KNARR_URL" || name == "KNARR_SERVER") && value != ""
	})
	if joins && role == "server" {
		return "", nil, usagef("a server does not join another yet: leave KNARR_URL and --server out, or say agent")
	}
	if joins {
		role = "agent"
	}
	return role, rest, nil
}

// unitEnvironment are the variables that the unit shall get.
func unitEnvironment(environ, servers []string) []string {
	var vars []string
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		switch strings.ToUpper(name) {
		case "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY":
			vars = append(vars, e)
			continue
		}
		if strings.HasPrefix(name, "KNARR_") && !strings.HasPrefix(name, "KNARR_LAB") && !strings.HasPrefix(name, "KNARR_TEST_") {
			vars = append(vars, e)
		}
	}
	if len(servers) > 0 {
		vars = append(vars, "KNARR_URL="+strings.Join(servers, ","))
	}
	return vars
}

// installedConfig reads the configuration as the unit will, so that a mistake in
// it is told before anything changes.
func installedConfig(cmd *cobra.Command, c Commands, m *service.Machine, f installFlags, o service.Options, before *service.Record) (*config.Config, error) {
	role, args, environ := o.Role, o.Args, o.Env
	if before != nil {
		if role == "" {
			role = before.Role
		}
		if args == nil {
			args = before.Args
		}
		environ = append(m.Environment(before), environ...) // the last one counts
	}
	agent := role == "agent"
	given, err := parseRole(agent, args)
	if err != nil {
		return nil, err
	}
	if f.dataDir != "" {
		given = append(given, config.Given{Name: "data-dir", Value: f.dataDir})
	}
	if f.root != "" {
		// This machine's own configuration has nothing to do with that one's.
		environ = append(environ, "KNARR_CONFIG="+os.DevNull)
		if f.dataDir == "" && before != nil {
			given = append(given, config.Given{Name: "data-dir", Value: before.DataDir})
		}
	}
	cfg, warnings, err := config.Load(config.Sources{Flags: given, Environ: last(environ), Agent: agent})
	for _, w := range warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "knarr: warning:", w)
	}
	if f.root == "" {
		err = errors.Join(err, cfg.Complete(c.Host()))
	}
	if err != nil {
		return nil, &usageError{err}
	}
	return cfg, nil
}

// last leaves out variables that a later one of the same name replaces.
func last(environ []string) []string {
	var vars []string
	for i, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		if !slices.ContainsFunc(environ[i+1:], func(later string) bool { return strings.HasPrefix(later, name+"=") }) {
			vars = append(vars, e)
		}
	}
	return vars
}

// parseRole reads flags as knarr server or knarr agent does.
func parseRole(agent bool, args []string) ([]config.Given, error) {
	name, all := "server", config.Options()
	if agent {
		name, all = "agent", config.AgentOptions()
	}
	cmd := &cobra.Command{Use: name}
	(&cobra.Command{Use: "knarr"}).AddCommand(cmd) // for messages
	given := bindOptions(cmd, all)
	if err := cmd.ParseFlags(args); err != nil {
		return nil, flagError(cmd, err)
	}
	if rest := cmd.Flags().Args(); len(rest) > 0 {
		return nil, usagef("unexpected argument %q of knarr %s", rest[0], name)
	}
	return *given, nil
}

// installation finds what a command that undoes or changes things is about: the
// installation, or else the node that the flags describe.
func installation(m *service.Machine, given []config.Given) (*service.Record, *config.Config, error) {
	r, err := m.Read()
	if err != nil && !errors.Is(err, service.ErrNotInstalled) {
		return nil, nil, err
	}
	agent, environ := false, os.Environ()
	if r != nil {
		agent = r.Role == "agent"
		args, err := parseRole(agent, r.Args)
		if err != nil {
			return nil, nil, fmt.Errorf("read the arguments in %s: %w", service.RecordFile, err)
		}
		// What was typed now counts more.
		given = append(args, given...)
		environ = last(append(m.Environment(r), environ...))
	}
	cfg, _, err := config.Load(config.Sources{Flags: given, Environ: environ, Agent: agent})
	if err != nil && r == nil {
		return nil, nil, &usageError{err}
	}
	if r != nil && err != nil {
		// A mistake in the configuration must not keep a node from being removed.
		cfg.DataDir, cfg.RunDir = r.DataDir, r.RunDir
	}
	return r, cfg, nil
}

// stopProcess ends the Knarr that has the data dir, however it was started.
func stopProcess(ctx context.Context, dataDir string) error {
	pid := host.Holder(dataDir)
	if pid == 0 {
		return nil
	}
	if err := host.End(ctx, pid, stopPatience); err != nil {
		return fmt.Errorf("stop knarr: %w", err)
	}
	return nil
}
