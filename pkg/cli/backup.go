package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/knarr-dev/knarr/pkg/backup"
	"github.com/knarr-dev/knarr/pkg/config"
)

func newBackup(c Commands) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Save all that makes the cluster, and bring it back",
		Long: "Saves what makes the cluster of the server on this machine, and brings it back:\n" +
			"the datastore, the authorities with their keys, the tokens, and the keys that\n" +
			"Secrets are encrypted with. Where backups are, and how they are encrypted, is\n" +
			"told by the same options as the server's, and by its configuration file.",
		Example: "  # save, and look whether all is there\n" +
			"  sudo knarr backup create\n" +
			"  sudo knarr backup list\n\n" +
			"  # on a machine that is to take the place of the server\n" +
			"  sudo knarr backup restore /mnt/knarr-0123abcd-20260801T030000.000Z.tar.zst",
		Args:                  knownCommand,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		DisableFlagsInUseLine: true,
	}
	cmd.AddCommand(newBackupCreate(c), newBackupList(c), newBackupVerify(c), newBackupRestore(c), newBackupPrune(c))
	return cmd
}

// backupOptions are those that tell where backups are.
func backupOptions(more ...string) []string {
	return append(append([]string{"config", "data-dir", "backup-dir"}, more...), "backup-s3", "backup-s3-endpoint", "backup-s3-endpoint-ca",
		"backup-s3-skip-ssl-verify", "backup-s3-insecure", "backup-s3-bucket", "backup-s3-region", "backup-s3-folder",
		"backup-s3-credentials-file", "backup-s3-timeout")
}

// backupCommand gives cmd the options of those names, and a function that reads
// what they say.
func backupCommand(cmd *cobra.Command, c Commands, names []string) func() (backup.Config, error) {
	load := backupConfig(cmd, c, names)
	return func() (backup.Config, error) {
		cfg, err := load()
		if err != nil {
			return backup.Config{}, err
		}
		return backup.New(cfg)
	}
}

func backupConfig(cmd *cobra.Command, c Commands, names []string) func() (*config.Config, error) {
	cmd.DisableFlagsInUseLine = true
	cmd.Flags().SortFlags = false
	if cmd.ValidArgsFunction == nil {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	given := bindOptions(cmd, options(names...))
	return func() (*config.Config, error) {
		cfg, _, err := config.Load(config.Sources{Flags: *given, Environ: os.Environ()})
		if err != nil {
			return nil, err
		}
		if err := cfg.CompleteBackup(c.Host()); err != nil {
			return nil, &usageError{err}
		}
		return cfg, nil
	}
}

func newBackupCreate(c Commands) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create [flags]",
		Short: "Make a backup",
		Long: "Makes a backup, also while the server runs, whose writes do not wait for it.\n" +
			"Whoever has a backup has the cluster: it is encrypted if a passphrase or public\n" +
			"keys of age are given, and otherwise open to root alone.",
		Example: "  # into the folder backups of the data dir\n" +
			"  sudo knarr backup create\n\n" +
			"  # encrypted, into a bucket; credentials are in AWS' variables\n" +
			"  sudo -E knarr backup create --backup-recipients-file /etc/knarr/backup.pub \\\n" +
			"    --backup-s3 --backup-s3-bucket backups --backup-s3-endpoint s3.example.org",
		Args: noArguments,
	}
	configure := backupCommand(cmd, c, backupOptions("backup-passphrase-file", "backup-recipients-file"))
	output := outputFlag(cmd, []string{"text", "json"}, "text", "form of the output")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := configure()
		if err != nil {
			return err
		}
		if !cfg.Keys.Sealed() {
			fmt.Fprintln(cmd.ErrOrStderr(), "knarr: warning: the backup is not encrypted, and has the cluster's keys in it: --backup-recipients-file or --backup-passphrase-file encrypt it")
		}
		m, stored, err := backup.Create(cmd.Context(), cfg)
		if err != nil {
			return err
		}
		if *output == "json" {
			return printJSON(cmd.OutOrStdout(), struct {
				backup.Stored
				Manifest backup.Manifest `json:"manifest"`
			}{stored, m})
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\nrevision %d, %s, in %s\n", stored.Name, m.Revision, bytesOf(stored.Size), cfg.Storage)
		return err
	}
	return cmd
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func newBackupList(c Commands) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [flags]",
		Short: "Show which backups there are",
		Long: "Shows the backups that there are, oldest first. The eight digits in a name are\n" +
			"those that its cluster's join tokens begin with.",
		Args: noArguments,
	}
	configure := backupCommand(cmd, c, backupOptions())
	output := outputFlag(cmd, []string{"table", "json"}, "table", "form of the output")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := configure()
		if err != nil {
			return err
		}
		all, err := backup.List(cmd.Context(), cfg)
		if err != nil {
			return err
		}
		if *output == "json" {
			if all == nil {
				all = []backup.Stored{}
			}
			return printJSON(cmd.OutOrStdout(), all)
		}
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "NAME\tCREATED\tSIZE\tENCRYPTED")
		for _, b := range all {
			fmt.Fprintf(t, "%s\t%s\t%s\t%v\n", b.Name, b.Created.Format(time.RFC3339), bytesOf(b.Size), b.Encrypted)
		}
		return t.Flush()
	}
	return cmd
}

// identityFlag adds the flag that names the secret keys of age.
func identityFlag(cmd *cobra.Command) *string {
	path := new(string)
	cmd.Flags().VarP(&valueFlag{"file", func(text string) error { *path = text; return nil }}, "identity-file", "i",
		"secret keys of age that open the backup, one a line")
	_ = cmd.RegisterFlagCompletionFunc("identity-file", cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault))
	return path
}

// oneBackup wants the name of one.
func oneBackup(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usagef("give one backup: a file, or a name that %q shows", "knarr backup list")
	}
	return nil
}

func newBackupVerify(c Commands) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify BACKUP [flags]",
		Short: "Check that a backup is whole",
		Long: "Reads a whole backup, a file or one of those that \"knarr backup list\" shows,\n" +
			"and checks it: each file's hash, the structure of the store, and that\n" +
			"authorities and keys belong together. It is unpacked in the data dir for that.",
		Args:              oneBackup,
		ValidArgsFunction: cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault),
	}
	configure := backupCommand(cmd, c, backupOptions("backup-passphrase-file"))
	identity := identityFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configure()
		if err != nil {
			return err
		}
		cfg.Keys.IdentityFile = *identity
		m, err := backup.Verify(cmd.Context(), cfg, args[0])
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is whole: cluster %s of node %s, %s, revision %d, %d files\n",
			args[0], m.Cluster[:8], m.Node, m.Created.Format(time.RFC3339), m.Revision, len(m.Files))
		return err
	}
	return cmd
}

func newBackupRestore(c Commands) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore [BACKUP] [flags]",
		Short: "Bring a cluster back",
		Long: "Puts a backup, a file or one of those that \"knarr backup list\" shows, into the\n" +
			"data dir of a server that does not run. All of it is checked before anything\n" +
			"changes. The machine may be another one, with another address; the ranges of\n" +
			"pods and Services have to be configured as they were.",
		Example: "  # a new machine in the place of one that is lost\n" +
			"  sudo knarr backup restore -i key.txt \\\n" +
			"    /mnt/knarr-0123abcd-20260801T030000.000Z.tar.zst.age\n" +
			"  sudo knarr server",
		ValidArgsFunction: cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault),
	}
	load := backupConfig(cmd, c, backupOptions("backup-passphrase-file"))
	identity := identityFlag(cmd)
	replica := ""
	cmd.Flags().VarP(&valueFlag{"place", func(text string) error { replica = text; return nil }}, "from-replica", "",
		"restore what a server copied to that folder or s3://bucket/folder (--replicate-to)")
	force := cmd.Flags().Bool("force", false, "move the state of a cluster that is there aside")
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if replica != "" {
			return noArguments(cmd, args)
		}
		return oneBackup(cmd, args)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		loaded, err := load()
		if err != nil {
			return err
		}
		var r backup.Restored
		var cfg backup.Config
		if replica != "" {
			if cfg, err = backup.NewReplica(loaded, replica); err == nil {
				cfg.Keys.IdentityFile = *identity
				r, err = backup.RestoreReplica(cmd.Context(), cfg, *force)
			}
		} else if cfg, err = backup.New(loaded); err == nil {
			cfg.Keys.IdentityFile = *identity
			r, err = backup.Restore(cmd.Context(), cfg, args[0], *force)
		}
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		fmt.Fprintf(out, "the cluster of %s is restored at revision %d of its store: start knarr\n", r.Node, r.Revision)
		if r.Node != cfg.Node {
			fmt.Fprintf(out, "this machine is %s: `knarr kubectl delete node %s` once it runs, or start it with --node-name %s\n", cfg.Node, r.Node, r.Node)
		}
		if r.Aside != "" {
			fmt.Fprintf(out, "the state of before is in %s\n", r.Aside)
		}
		return nil
	}
	return cmd
}

func newBackupPrune(c Commands) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Delete all but the latest backups",
		Long: "Deletes all but the latest backups of the server's cluster, as a server does\n" +
			"after each scheduled one. Those of other clusters stay.",
		Args: noArguments,
	}
	configure := backupCommand(cmd, c, backupOptions("backup-retention"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := configure()
		if err != nil {
			return err
		}
		deleted, err := backup.Prune(cmd.Context(), cfg)
		for _, b := range deleted {
			fmt.Fprintf(cmd.OutOrStdout(), "%s deleted\n", b.Name)
		}
		return err
	}
	return cmd
}
