package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/encryption"
)

func newSecretsEncrypt() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secrets-encrypt",
		Short: "Look after the encryption of Secrets in the datastore",
		Long: "Looks after the encryption of Secrets in the datastore of the server on this\n" +
			"machine. The key is in server/encryption-config.yaml of its data dir, open to\n" +
			"root alone. All is done while the server runs; what was interrupted goes on\n" +
			"when the same command is run again.",
		Example: "  # are Secrets encrypted, and with which key?\n" +
			"  sudo knarr secrets-encrypt status\n\n" +
			"  # another key for all of them\n" +
			"  sudo knarr secrets-encrypt rotate-keys",
		Args:                  knownCommand,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		DisableFlagsInUseLine: true,
	}
	cmd.AddCommand(newSecretsStatus(),
		newSecretsChange("rotate-keys [flags]", "Encrypt all Secrets with a new key",
			"Makes a new key, writes all Secrets anew with it, and forgets the one before.\n"+
				"Backups made earlier have the key that they need.", (*encryption.Manager).Rotate),
		newSecretsChange("enable [flags]", "Encrypt all Secrets",
			"Encrypts all Secrets from now on, and writes those that there are anew. What\n"+
				"was in the clear stays in the free room of the store's file until that is used\n"+
				"again: \"knarr store compact\" gives it back.", (*encryption.Manager).Enable),
		newSecretsChange("disable [flags]", "Write all Secrets in the clear",
			"Writes all Secrets in the clear, those that there are and those to come. The\n"+
				"key is kept for backups made earlier, and for \"enable\".", (*encryption.Manager).Disable))
	return cmd
}

// secretsCommand gives cmd the flag that tells where the server's state is.
func secretsCommand(cmd *cobra.Command, given *[]config.Given) func() (*encryption.Manager, error) {
	cmd.DisableFlagsInUseLine = true
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	return func() (*encryption.Manager, error) {
		cfg, err := loadFlags(*given)
		if err != nil {
			return nil, err
		}
		return &encryption.Manager{ServerDir: cfg.ServerDir()}, nil
	}
}

func newSecretsStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [flags]",
		Short: "Show whether Secrets are encrypted, and with which keys",
		Long: "Shows whether Secrets that are written are encrypted, and with which key each of\n" +
			"those in the store is.",
		Args: noArguments,
	}
	output := outputFlag(cmd, []string{"table", "json"}, "table", "form of the output")
	manager := secretsCommand(cmd, bindOptions(cmd, options("config", "data-dir")))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := manager()
		if err != nil {
			return err
		}
		s, err := m.Status(cmd.Context())
		if err != nil {
			return err
		}
		if *output == "json" {
			return printJSON(cmd.OutOrStdout(), s)
		}
		return printSecretsStatus(cmd.OutOrStdout(), s)
	}
	return cmd
}

func printSecretsStatus(w io.Writer, s encryption.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	state := "disabled"
	if s.Enabled {
		state = "enabled, secretbox with " + s.Key
	}
	fmt.Fprintf(t, "encryption\t%s\n", state)
	fmt.Fprintf(t, "keys\t%s\n", strings.Join(s.Keys, ", "))
	running := "a server works by this"
	if !s.Loaded {
		running = "no server works by this"
	}
	fmt.Fprintf(t, "server\t%s\n", running)
	for _, key := range slices.Sorted(maps.Keys(s.Secrets)) {
		with := "encrypted with " + key
		if key == "" {
			with = "in the clear"
		}
		fmt.Fprintf(t, "Secrets\t%d %s\n", s.Secrets[key], with)
	}
	if s.Pending > 0 {
		again := "rotate-keys"
		switch {
		case !s.Enabled:
			again = "disable"
		case len(s.Keys) == 1:
			again = "enable"
		}
		fmt.Fprintf(t, "unfinished\t%d are to be written anew: \"knarr secrets-encrypt %s\" does so\n", s.Pending, again)
	}
	return t.Flush()
}

func newSecretsChange(use, short, long string, change func(*encryption.Manager, context.Context) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: noArguments}
	given := bindOptions(cmd, options("data-dir"))
	connect := apiFlagsBeside(cmd, given)
	manager := secretsCommand(cmd, given)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := manager()
		if err != nil {
			return err
		}
		api, err := connect()
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		m.Client = api.client
		m.Step = func(what string) { fmt.Fprintln(out, what) }
		m.Progress = func(done, of int) {
			if done%100 == 0 || done == of {
				fmt.Fprintf(out, "  %d of %d\n", done, of)
			}
		}
		if err := change(m, cmd.Context()); err != nil {
			return err
		}
		_, err = fmt.Fprintln(out, "done")
		return err
	}
	return cmd
}
