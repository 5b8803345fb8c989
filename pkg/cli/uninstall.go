package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/knarr-dev/knarr/pkg/service"
)

// stopPatience is how long Knarr gets to stop in order.
const stopPatience = 3 * time.Minute

// defaultGrace is what a pod gets that asks for nothing else.
const defaultGrace = 30 * time.Second

func newStop() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stop [flags]",
		Short: "Stop Knarr on this machine, with --pods its pods too",
		Long: "Stops the service, or the process that has the data dir. Pods go on without it,\n" +
			"unless --pods is given: then containers are told to end by SIGTERM, killed after\n" +
			"the grace, and what they held of the machine is taken away: mounts, links,\n" +
			"rules, control groups. Hooks (preStop) are not run. The next start brings the\n" +
			"pods back, as after a boot.",
		Example: "  # before work on the machine\n" +
			"  sudo knarr stop --pods\n" +
			"  sudo systemctl start knarr",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	given := bindOptions(cmd, options("config", "data-dir", "run-dir"))
	pods := cmd.Flags().Bool("pods", false, "stop all pods too")
	grace := cmd.Flags().Duration("grace", defaultGrace, "how long containers get to end by themselves")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := needRoot("stop"); err != nil {
			return err
		}
		m := new(service.Machine)
		r, cfg, err := installation(m, *given)
		if err != nil {
			return err
		}
		if r != nil {
			if err := m.Stop(cmd.Context(), r); err != nil {
				printError(cmd.ErrOrStderr(), fmt.Errorf("warning: %w", err))
			}
		}
		if err := stopProcess(cmd.Context(), cfg.DataDir); err != nil {
			return err
		}
		if !*pods {
			return nil
		}
		lock, err := host.TakeLock(cfg.DataDir)
		if err != nil {
			return err
		}
		defer lock.Close()
		count, err := stopPods(cmd.Context(), cfg, *grace)
		if err == nil {
			fmt.Fprintf(cmd.OutOrStdout(), "%d containers stopped\n", count)
		}
		return err
	}
	return cmd
}

// stopPods ends all pods and takes away what they held. The caller has the data
// dir's lock.
func stopPods(ctx context.Context, cfg *config.Config, grace time.Duration) (int, error) {
	ledger, err := host.OpenLedger(cfg.DataDir)
	if err != nil {
		return 0, err
	}
	pods := host.Pods{DataDir: cfg.DataDir, RunDir: cfg.RunDir, KubeletDir: kubeletDir(cfg), Grace: grace}
	for _, c := range ledger.Changes() {
		if c.Kind == host.KindCgroup {
			pods.Cgroups = append(pods.Cgroups, c.Name)
		}
	}
	count, err := pods.Stop(ctx)
	if err != nil {
		return count, err
	}
	stopSlice(ctx)
	return count, errors.Join(pods.Clean(), ledger.Undo(host.KindMount, host.KindLink, host.KindRoute, host.KindRoutes, host.KindTable, host.KindAddress, host.KindCgroup))
}

func newUninstall() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "uninstall [flags]",
		Short: "Take Knarr off this machine, with all that it made here",
		Long: "Stops Knarr and all pods, and leaves the machine as it was: mounts, links,\n" +
			"routes, rules, control groups and kernel parameters are put back, and the data\n" +
			"dir, the service and the executable are removed. The cluster's objects, images\n" +
			"and local volumes are gone then, unless --keep-data is given. What was there\n" +
			"before Knarr, or was changed by others since, stays. Without an installation\n" +
			"it undoes what a Knarr that was run by hand has made.\n\n" +
			"On a machine that is a node of another's cluster, delete the node there, too:\n" +
			"kubectl delete node NAME.",
		Example: "  # what would be removed\n" +
			"  sudo knarr uninstall --dry-run\n\n" +
			"  # keep the store, images and configuration for another installation\n" +
			"  sudo knarr uninstall --keep-data",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	given := bindOptions(cmd, options("config", "data-dir", "run-dir"))
	keep := cmd.Flags().Bool("keep-data", false, "leave the data dir and the configuration")
	dryRun := cmd.Flags().Bool("dry-run", false, "print what would be done, and do nothing")
	grace := cmd.Flags().Duration("grace", 10*time.Second, "how long containers get to end by themselves")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m := new(service.Machine)
		r, cfg, err := installation(m, *given)
		if err != nil {
			return err
		}
		u := &uninstaller{machine: m, record: r, cfg: cfg, keep: *keep, grace: *grace}
		if *dryRun {
			return u.tell(cmd)
		}
		if err := needRoot("uninstall"); err != nil {
			return err
		}
		return u.run(cmd)
	}
	return cmd
}

func needRoot(what string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s: only root can do it: run it with sudo", what)
	}
	return nil
}

// uninstaller removes one node.
type uninstaller struct {
	machine *service.Machine
	record  *service.Record // nil if there is no installation
	cfg     *config.Config
	keep    bool
	grace   time.Duration
}

func (u *uninstaller) plans() (stop, rest *service.Plan) {
	if u.record == nil {
		return new(service.Plan), new(service.Plan)
	}
	return u.machine.PlanRemove(u.record, u.keep)
}

// tell prints what run does.
func (u *uninstaller) tell(cmd *cobra.Command) error {
	out := cmd.OutOrStdout()
	stop, rest := u.plans()
	fmt.Fprint(out, stop)
	if pid := host.Holder(u.cfg.DataDir); pid != 0 {
		fmt.Fprintf(out, "end process %d\n", pid)
	}
	fmt.Fprintln(out, "stop all pods")
	ledger, err := host.OpenLedger(u.cfg.DataDir)
	if err != nil {
		return err
	}
	for _, c := range ledger.Changes() {
		text := fmt.Sprintf("undo %s %s", c.Kind, c.Name)
		if c.Kind == host.KindSysctl {
			text += fmt.Sprintf(" (%s back to %s)", c.New, c.Old)
		}
		fmt.Fprintln(out, text)
	}
	if !u.keep {
		fmt.Fprintf(out, "remove %s with all that is in it\n", u.cfg.DataDir)
	}
	fmt.Fprint(out, rest)
	return nil
}

func (u *uninstaller) run(cmd *cobra.Command) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	stop, rest := u.plans()
	for _, s := range stop.Steps {
		one := service.Plan{Steps: []service.Step{s}}
		if err := one.Apply(ctx); err != nil { // a broken unit must not stay for ever
			printError(cmd.ErrOrStderr(), fmt.Errorf("warning: %w", err))
		}
	}
	if err := stopProcess(ctx, u.cfg.DataDir); err != nil {
		return err
	}
	if u.record == nil {
		if _, err := os.Stat(u.cfg.DataDir); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("nothing to uninstall: there is neither an installation (%s) nor the data dir %s", service.RecordFile, u.cfg.DataDir)
		}
	}
	lock, err := host.TakeLock(u.cfg.DataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	count, err := stopPods(ctx, u.cfg, u.grace)
	if err != nil {
		return fmt.Errorf("stop pods (nothing was removed yet; try again): %w", err)
	}
	fmt.Fprintf(out, "%d containers stopped\n", count)
	ledger, err := host.OpenLedger(u.cfg.DataDir)
	if err != nil {
		return err
	}
	changes := len(ledger.Changes())
	if err := ledger.Undo(); err != nil {
		return fmt.Errorf("put the machine back as it was (what is left is still on record; try again): %w", err)
	}
	fmt.Fprintf(out, "%d changes of the machine undone\n", changes)
	if !u.keep {
		if err := host.RemoveTree(u.cfg.DataDir); err != nil {
			return fmt.Errorf("remove data dir: %w", err)
		}
		fmt.Fprintf(out, "%s removed\n", u.cfg.DataDir)
	} else {
		// They have no meaning without their processes.
		if err := os.RemoveAll(filepath.Join(u.cfg.DataDir, "bundle")); err != nil {
			return fmt.Errorf("remove unpacked programs: %w", err)
		}
		fmt.Fprintf(out, "%s kept\n", u.cfg.DataDir)
	}
	fmt.Fprint(out, rest)
	return rest.Apply(ctx)
}
