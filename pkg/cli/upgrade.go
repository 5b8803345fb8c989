package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/datastore"
	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/knarr-dev/knarr/pkg/release"
	"github.com/knarr-dev/knarr/pkg/service"
	"github.com/knarr-dev/knarr/pkg/status"
	"github.com/knarr-dev/knarr/pkg/upgrade"
)

// readyPatience is how long a new build may take to be ready.
const readyPatience = 2 * time.Minute

func newUpgrade() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "upgrade --from FILE|FOLDER|URL [flags]",
		Short: "Put another release in the place of the one that runs here",
		Long: "Fetches a release, verifies it by the key that was given at the installation,\n" +
			"backs up the executable and the store, and has Knarr start anew by the new one\n" +
			"in place: pods go on, and the API is away for a second or two. When the new one\n" +
			"is not ready in time, the old one is put back. A server goes first, its agents\n" +
			"after it.\n\n" +
			"--from is a folder of a release's files, one of them, or a URL of either; that\n" +
			"of a folder ends with a slash. \"knarr rollback\" takes an upgrade back.",
		Example: "  # a release's files, from anywhere\n" +
			"  sudo knarr upgrade --from https://releases.example.org/v0.2.0/\n" +
			"  sudo knarr upgrade --from /mnt/usb/knarr-v0.2.0\n\n" +
			"  # a build of one's own\n" +
			"  sudo knarr upgrade --from dist/knarr --skip-signature",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	from := cmd.Flags().String("from", "", "release to take")
	key := cmd.Flags().String("release-key", "", "public key to verify by, a PEM file (default "+service.KeyFile+")")
	skip := cmd.Flags().Bool("skip-signature", false, "trust checksums without a signature, and a file of one's own without any")
	patience := cmd.Flags().Duration("timeout", readyPatience, "how long the new one may take to be ready")
	given := bindOptions(cmd, options("config", "data-dir", "run-dir"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *from == "" {
			return usagef("--from: say where the release is; %q tells more", cmd.CommandPath()+" --help")
		}
		if err := needRoot("upgrade"); err != nil {
			return err
		}
		n, err := upgraded(cmd, *given, *patience)
		if err != nil {
			return err
		}
		source := release.Source{From: *from, SkipSignature: *skip, Arch: runtime.GOARCH}
		if source.Key, err = releaseKey(*key, *skip); err != nil {
			return err
		}
		// On the file system that the executable is on, so that it can be renamed.
		dir, err := os.MkdirTemp(filepath.Dir(n.Exe), ".knarr-upgrade-")
		if err != nil {
			return fmt.Errorf("upgrade: make a folder beside the executable: %w", err)
		}
		defer os.RemoveAll(dir)
		if err := source.Fetch(cmd.Context(), dir); err != nil {
			return fmt.Errorf("upgrade: %w", err)
		}
		b, err := n.Upgrade(cmd.Context(), dir)
		if err != nil {
			return fmt.Errorf("upgrade: %w", err)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s runs, in place of %s; to take it back: knarr rollback\n", b.Next.Knarr, b.Knarr)
		return err
	}
	return cmd
}

func releaseKey(file string, skip bool) ([]byte, error) {
	if skip {
		return nil, nil
	}
	if file == "" {
		file = service.KeyFile
	}
	key, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("upgrade: there is no key to verify the release by (%s): give --release-key, or --skip-signature", file)
	}
	if err != nil {
		return nil, fmt.Errorf("upgrade: read the release's key: %w", err)
	}
	return key, nil
}

func newRollback() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollback [flags]",
		Short: "Take the last upgrade back",
		Long: "Puts the executable that an upgrade replaced back, and has Knarr start by it.\n" +
			"Pods go on. The store is put back as it was at the upgrade only if the old\n" +
			"executable can't read it as it is now, or with --restore-store: what was\n" +
			"written since is then put aside in the backup's folder.",
		Example: "  # what there is to go back to\n" +
			"  sudo knarr rollback --list\n\n" +
			"  sudo knarr rollback",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	list := cmd.Flags().Bool("list", false, "list the backups, and do nothing")
	to := cmd.Flags().String("to", "", "backup to go back to (default: the last)")
	withStore := cmd.Flags().Bool("restore-store", false, "put the store back too, whatever was written since")
	patience := cmd.Flags().Duration("timeout", readyPatience, "how long the old one may take to be ready")
	given := bindOptions(cmd, options("config", "data-dir", "run-dir"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := needRoot("rollback"); err != nil {
			return err
		}
		n, err := upgraded(cmd, *given, *patience)
		if err != nil && !*list {
			return err
		}
		all, err := n.Backups()
		if err != nil {
			return err
		}
		if *list {
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "BACKUP\tVERSION\tKUBERNETES\tUPGRADED TO\tSTORE")
			for _, b := range all {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%t\n", b.ID, b.Knarr, b.Kubernetes, b.Next.Knarr, b.Store)
			}
			return t.Flush()
		}
		for _, b := range all {
			if *to != "" && b.ID != *to {
				continue
			}
			if err := n.Rollback(cmd.Context(), b, *withStore); err != nil {
				return fmt.Errorf("rollback to %s: %w", b.Knarr, err)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s runs again\n", b.Knarr)
			return err
		}
		return errors.New("rollback: there is no such backup: knarr rollback --list tells which there are (knarr upgrade makes one)")
	}
	return cmd
}

// upgraded is the node of this machine.
func upgraded(cmd *cobra.Command, given []config.Given, patience time.Duration) (*upgrade.Node, error) {
	n := &upgrade.Node{CopyStore: datastore.Copy, Patience: patience, Say: func(line string) { fmt.Fprintln(cmd.OutOrStdout(), line) }}
	p := &process{machine: new(service.Machine)}
	var err error
	if p.record, p.cfg, err = installation(p.machine, given); err != nil {
		return n, err
	}
	n.DataDir, n.Process = p.cfg.DataDir, p
	if !p.cfg.Agent {
		n.ServerDir = p.cfg.ServerDir()
	}
	if p.record != nil {
		n.Exe = p.record.Executable()
	} else if pid := host.Holder(p.cfg.DataDir); pid != 0 {
		// Nobody installed it: what runs tells where it lies.
		if n.Exe, err = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil {
			return n, fmt.Errorf("find the executable that runs: %w", err)
		}
	} else if all, err := n.Backups(); err == nil && len(all) > 0 && all[0].Exe != "" {
		n.Exe = all[0].Exe // it was upgraded here, and does not run since
	} else {
		return n, fmt.Errorf("%w, and none runs on %s: start it, or install it with knarr install", service.ErrNotInstalled, p.cfg.DataDir)
	}
	if _, err := os.Stat(n.Exe); err != nil {
		return n, fmt.Errorf("find the executable: %w", err)
	}
	p.exe = n.Exe
	return n, nil
}

// process is the Knarr that runs here, by an init system or by somebody else.
type process struct {
	machine *service.Machine
	record  *service.Record // nil without an installation
	cfg     *config.Config
	exe     string
	pid     int // that was told to start anew
	// awaited is set while somebody is to start it.
	awaited bool
}

var _ upgrade.Process = (*process)(nil)

func (p *process) supervised() bool { return p.record != nil && p.record.Init != service.None }

// Reload implements upgrade.Process.
func (p *process) Reload(context.Context) error {
	p.pid = host.Holder(p.cfg.DataDir)
	if p.pid == 0 {
		return nil
	}
	if err := unix.Kill(p.pid, syscall.SIGHUP); err != nil {
		return fmt.Errorf("tell process %d to start anew: %w", p.pid, err)
	}
	p.awaited = true
	return nil
}

// Await implements upgrade.Process. Nothing runs that could be awaited if
// nothing ran when the upgrade began.
func (p *process) Await(ctx context.Context) error {
	if !p.awaited {
		return nil
	}
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	var last error
	for {
		report, err := status.Fetch(ctx, p.cfg.StatusSocket())
		switch {
		case err != nil:
			last = err
		case report.Ready && p.runsBy(report.PID):
			return nil
		default:
			last = notReady(report)
		}
		if !p.supervised() && unix.Kill(p.pid, 0) != nil {
			return fmt.Errorf("process %d has ended: its log tells why", p.pid)
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return last
		}
	}
}

// runsBy tells whether a process runs by the executable that is there now.
func (p *process) runsBy(pid int) bool {
	theirs, err1 := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	ours, err2 := os.Stat(p.exe)
	return err1 == nil && err2 == nil && os.SameFile(theirs, ours)
}

// notReady names what is not.
func notReady(r *status.Report) error {
	for _, c := range r.Components {
		if c.LastError != "" && c.State != "ready" {
			return fmt.Errorf("%s is not ready: %s", c.Name, c.LastError)
		}
	}
	return errors.New("not all of its parts are ready")
}

// Stop implements upgrade.Process.
func (p *process) Stop(ctx context.Context) error {
	if p.supervised() {
		if err := p.machine.Stop(ctx, p.record); err != nil {
			return err
		}
	}
	if pid := host.Holder(p.cfg.DataDir); pid != 0 {
		p.pid = pid
	}
	if p.pid == 0 {
		return nil
	}
	// What took the place of Knarr may not be in the lock's possession.
	return host.End(ctx, p.pid, stopPatience)
}

// Start implements upgrade.Process.
func (p *process) Start(ctx context.Context) error {
	p.pid, p.awaited = 0, p.supervised()
	if p.supervised() {
		return p.machine.Start(ctx, p.record)
	}
	fmt.Fprintln(os.Stderr, "knarr: there is no init system to start it: start", p.exe, "now")
	return nil
}
