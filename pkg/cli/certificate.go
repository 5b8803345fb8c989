package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/knarr-dev/knarr/pkg/cluster"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/pkg/status"
)

func newCertificate() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "certificate",
		Aliases: []string{"certificates"},
		Short:   "Look at this machine's certificates, and renew them",
		Long: "Shows the certificates that Knarr has on this machine, and renews those that it\n" +
			"makes itself. A running server renews each of them by itself when two thirds of\n" +
			"its life are over, with no restart and no connection lost.",
		Example: "  # what there is, and how long it lasts\n" +
			"  sudo knarr certificate check\n\n" +
			"  # renew everything now, for instance after a key may have been seen\n" +
			"  sudo knarr certificate rotate",
		Args:                  knownCommand,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		DisableFlagsInUseLine: true,
	}
	cmd.AddCommand(newCertificateCheck(), newCertificateRotate(), newCertificateRotateCA(), newCertificateRotateKey())
	return cmd
}

func newCertificateCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [flags]",
		Short: "List the certificates of this machine, and when they end",
		Long: "Lists every certificate in the data dir and in the administrator's kubeconfig:\n" +
			"whose it is, what it is for, when it ends, how many days are left, and whether\n" +
			"it is valid. \"due\" is one that a running server renews at once. The server\n" +
			"need not run.\n\n" +
			"The exit code is 1 if a certificate has expired or could not be read.",
		Example: "  # a table to read\n" +
			"  sudo knarr certificate check\n\n" +
			"  # for a program\n" +
			"  sudo knarr certificate check -o json",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	given := bindOptions(cmd, certificateOptions())
	output := outputFlag(cmd, []string{"table", "json", "yaml"}, "table", "form of the output")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg := loadLeniently(cmd, *given)
		now := time.Now()
		all, err := pki.Inventory(now, filepath.Join(cfg.ServerDir(), "tls"),
			filepath.Join(cfg.ServerDir(), "tls", pki.NextDir), filepath.Join(cfg.AgentDir(), "identity"), filepath.Join(cfg.AgentDir(), "kubelet-pki"))
		admin, kerr := pki.InKubeconfig(now, cfg.Kubeconfig.Path)
		all = append(all, admin...)
		if err := errors.Join(err, kerr); err != nil {
			return err
		}
		if len(all) == 0 {
			return fmt.Errorf("there are no certificates in %s: no server or agent has run here with that --data-dir", cfg.DataDir)
		}
		if err := printCertificates(cmd.OutOrStdout(), all, *output); err != nil {
			return err
		}
		for _, e := range all {
			if e.State == pki.StateExpired {
				return exitCode(ExitFailed)
			}
		}
		return nil
	}
	return cmd
}

// certificateOptions tell where certificates are.
func certificateOptions() []config.Option {
	all := options("config", "data-dir", "run-dir", "write-kubeconfig")
	for i := range all {
		if all[i].Short == "o" { // it is the output's here
			all[i].Short = ""
		}
	}
	return all
}

// loadLeniently reads a configuration of which only some paths are needed:
// mistakes elsewhere are warned of.
func loadLeniently(cmd *cobra.Command, given []config.Given) *config.Config {
	cfg, _, err := config.Load(config.Sources{Flags: given, Environ: os.Environ()})
	if err != nil {
		printError(cmd.ErrOrStderr(), fmt.Errorf("warning: %w", err))
	}
	return cfg
}

func printCertificates(w io.Writer, all []pki.Entry, format string) error {
	switch format {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(all)
	case "yaml":
		text, err := yaml.Marshal(all)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FILE\tSUBJECT\tUSE\tEXPIRES\tDAYS LEFT\tSTATE")
	for _, e := range all {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\n", e.File, e.Subject, e.Use, e.NotAfter.UTC().Format(time.RFC3339), e.DaysLeft, e.State)
	}
	return t.Flush()
}

func newCertificateRotate() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate [flags]",
		Short: "Renew every certificate that the server makes for itself",
		Long: "Renews every certificate that the server on this machine makes for itself, with\n" +
			"new keys, and the administrator's kubeconfig. A running server does so while it\n" +
			"runs, and has them in use when this command ends. Where none runs, they are\n" +
			"removed, and the next start makes new ones. Authorities stay as they are.\n\n" +
			"The old certificates are valid until they end.",
		Example:               "  sudo knarr certificate rotate",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	given := bindOptions(cmd, options("config", "data-dir", "run-dir"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg := loadLeniently(cmd, *given)
		_, err := status.Ask(cmd.Context(), cfg.StatusSocket(), http.MethodPost, cluster.RotatePath)
		if err == nil {
			fmt.Fprintln(cmd.OutOrStdout(), "Every certificate of this server was renewed and is in use.")
			return nil
		}
		if !errors.Is(err, status.ErrNotRunning) {
			return fmt.Errorf("renew certificates: %w", err)
		}
		dir := filepath.Join(cfg.ServerDir(), "tls")
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("renew certificates: no server has run here with that --data-dir: %w", err)
		}
		lock, err := host.TakeLock(cfg.DataDir)
		if err != nil {
			return fmt.Errorf("renew certificates: %w", err)
		}
		defer lock.Close()
		n, err := pki.RemoveLeaves(dir)
		if err != nil {
			return fmt.Errorf("renew certificates: %w", err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "No server runs here. %d certificates of %s were removed; its next start makes new ones.\n", n, dir)
		return nil
	}
	return cmd
}
