package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/node/images"
	"github.com/knarr-dev/knarr/pkg/node/registries"
)

func newImage() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "image",
		Aliases: []string{"images"},
		Short:   "Pull, push, load and remove this node's container images",
		Long: "Manages the container images of the node on this machine. Registries are\n" +
			"reached as /etc/knarr/registries.yaml says, with the credentials of Docker's\n" +
			"configuration (docker login) where that has some.",
		Example: "  # what there is, and what of it pods use\n" +
			"  sudo knarr image list\n\n" +
			"  # bring an image here without a registry\n" +
			"  docker save app:1 | sudo knarr image import -\n\n" +
			"  # and from here to the cluster's own registry (knarr server --registry)\n" +
			"  sudo knarr image push app:1 localhost:5000/app:1",
		Args:                  knownCommand,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		DisableFlagsInUseLine: true,
	}
	cmd.AddCommand(newImageList(), newImagePull(), newImagePush(), newImageImport(), newImageExport(), newImageRemove(), newImagePrune())
	return cmd
}

// imageCommand gives cmd the flags that tell where the node is, and has it do
// that with its images.
func imageCommand(cmd *cobra.Command, do func(ctx context.Context, s *images.Store, cfg *config.Config, args []string) error) *cobra.Command {
	return imageOrRegistryCommand(cmd, new(bool), nil, do)
}

// imageOrRegistryCommand is imageCommand for a command that asks the cluster's
// registry instead of the node when registry is set.
func imageOrRegistryCommand(cmd *cobra.Command, registry *bool, ask func(ctx context.Context, cfg *config.Config) error,
	do func(ctx context.Context, s *images.Store, cfg *config.Config, args []string) error) *cobra.Command {
	cmd.DisableFlagsInUseLine = true
	if cmd.ValidArgsFunction == nil {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	given := bindOptions(cmd, options("config", "run-dir", "private-registry"))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, _, err := config.Load(config.Sources{Flags: *given, Environ: os.Environ()})
		if err != nil {
			// What concerns the server must not keep its user from his images.
			printError(cmd.ErrOrStderr(), fmt.Errorf("warning: %w", err))
		}
		if *registry {
			return ask(cmd.Context(), cfg)
		}
		s, err := images.Open(cmd.Context(), filepath.Join(cfg.RunDir, "containerd", "containerd.sock"))
		if err != nil {
			return err
		}
		defer s.Close()
		return do(cmd.Context(), s, cfg, args)
	}
	return cmd
}

func newImageList() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list [flags]",
		Aliases: []string{"ls"},
		Short:   "Show the images of this node",
		Long: "Shows the images of this node: their names, what they take as they were pulled,\n" +
			"whether a container of a pod is made of them (used), and whether they stay when\n" +
			"room is needed (pinned).",
		Example: "  sudo knarr image list\n\n" +
			"  # for a program\n" +
			"  sudo knarr image list -o json\n\n" +
			"  # what the cluster's registry has, on the server that keeps it\n" +
			"  sudo knarr image list --registry",
		Args: noArguments,
	}
	output := outputFlag(cmd, []string{"table", "json"}, "table", "form of the output")
	registry := cmd.Flags().Bool("registry", false, "show what the registry in this server has instead")
	return imageOrRegistryCommand(cmd, registry, func(ctx context.Context, cfg *config.Config) error {
		return listRegistry(ctx, cmd.OutOrStdout(), cfg, *output)
	}, func(ctx context.Context, s *images.Store, _ *config.Config, _ []string) error {
		list, err := s.List(ctx)
		if err != nil {
			return err
		}
		if *output == "json" {
			e := json.NewEncoder(cmd.OutOrStdout())
			e.SetIndent("", "  ")
			return e.Encode(list)
		}
		return printImages(cmd.OutOrStdout(), list)
	})
}

func printImages(w io.Writer, list []images.Image) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tID\tSIZE\tSTATE")
	for _, i := range list {
		names := i.Tags
		if len(names) == 0 {
			names = []string{i.Name()}
		}
		state := "unused"
		switch {
		case i.Used && i.Pinned:
			state = "used, pinned"
		case i.Used:
			state = "used"
		case i.Pinned:
			state = "pinned"
		}
		for _, name := range names {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", name, shortID(i.ID), bytesOf(int64(i.Size)), state)
		}
	}
	return t.Flush()
}

func newImagePull() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pull IMAGE [flags]",
		Short: "Fetch an image from its registry",
		Long:  "Fetches an image as the kubelet would, so that a pod finds it here.",
		Example: "  sudo knarr image pull nginx:1.29\n\n" +
			"  sudo knarr image pull localhost:5000/app:1",
		Args: words(1, 1, "an image, such as nginx:1.29"),
	}
	return imageCommand(cmd, func(ctx context.Context, s *images.Store, _ *config.Config, args []string) error {
		host, err := images.Registry(args[0])
		if err != nil {
			return &usageError{err}
		}
		creds, err := dockerCredentials(ctx, host)
		if err != nil {
			return err
		}
		id, err := s.Pull(ctx, args[0], creds)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "pulled %s, %s\n", args[0], shortID(id))
		return nil
	})
}

func newImagePush() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "push IMAGE [TARGET] [flags]",
		Short: "Send an image of this node to a registry",
		Long: "Sends an image of this node to the registry that its name begins with, or that\n" +
			"TARGET begins with, under which name it is then there.",
		Example: "  sudo knarr image push registry.example.org/team/app:1\n\n" +
			"  # to the cluster's own registry\n" +
			"  sudo knarr image push app:1 localhost:5000/app:1",
		Args: words(1, 2, "an image of this node, and the name to push it by if that is another"),
	}
	return imageCommand(cmd, func(ctx context.Context, s *images.Store, cfg *config.Config, args []string) error {
		target := args[len(args)-1]
		if _, err := images.Registry(target); err != nil {
			return &usageError{err}
		}
		pusher, err := registries.Pusher(cfg.Node.PrivateRegistry, func(host string) (string, string, error) {
			c, err := dockerCredentials(ctx, host)
			if c.IdentityToken != "" {
				return "", c.IdentityToken, err
			}
			return c.Username, c.Password, err
		})
		if err != nil {
			return err
		}
		digest, err := s.Push(ctx, args[0], target, pusher)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "pushed %s, %s\n", target, digest)
		return nil
	})
}

func newImageImport() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "import FILE... [flags]",
		Aliases: []string{"load"},
		Short:   "Load images from archives",
		Long: "Loads images from archives as \"docker save\" and OCI tools write them, plain or\n" +
			"compressed with gzip or zstd; - is standard input. The images are pinned: they\n" +
			"stay until \"knarr image remove\".",
		Example: "  docker save app:1 | sudo knarr image import -\n\n" +
			"  sudo knarr image import app.tar.zst other.tar",
		Args:              words(1, -1, "an archive, or - for standard input"),
		ValidArgsFunction: cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault),
	}
	return imageCommand(cmd, func(ctx context.Context, s *images.Store, _ *config.Config, args []string) error {
		for _, path := range args {
			in, name := cmd.InOrStdin(), "standard input"
			if path != "-" {
				f, err := os.Open(path)
				if err != nil {
					return fmt.Errorf("import images: %w", err)
				}
				defer f.Close()
				in, name = f, path
			}
			tags, err := s.Import(ctx, in)
			if err != nil {
				return fmt.Errorf("import images from %s: %w", name, err)
			}
			for _, tag := range tags {
				fmt.Fprintln(cmd.OutOrStdout(), "imported", tag)
			}
		}
		return nil
	})
}

func newImageExport() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "export IMAGE... -f FILE",
		Aliases: []string{"save"},
		Short:   "Write images to an archive",
		Long: "Writes images to an archive that Docker and OCI tools read, for this kind of\n" +
			"machine.",
		Example: "  sudo knarr image export app:1 -f app.tar\n\n" +
			"  sudo knarr image export app:1 -f - | zstd > app.tar.zst",
		Args: words(1, -1, "an image of this node"),
	}
	file := ""
	cmd.Flags().VarP(&valueFlag{"file", func(text string) error { file = text; return nil }}, "file", "f", "file to write, which must not exist; - is standard output")
	return imageCommand(cmd, func(ctx context.Context, s *images.Store, _ *config.Config, args []string) (err error) {
		if file == "" {
			return usagef("--file: say where to write the archive; - is standard output")
		}
		if file == "-" {
			return s.Export(ctx, cmd.OutOrStdout(), args...)
		}
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
		if err := errors.Join(s.Export(ctx, f, args...), f.Close()); err != nil {
			_ = os.Remove(file) // half of it is of no use
			return err
		}
		return nil
	})
}

func newImageRemove() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "remove IMAGE... [flags]",
		Aliases: []string{"rm"},
		Short:   "Remove images from this node",
		Long:    "Removes images, each under all its names. Containers made of them go on.",
		Example: "  sudo knarr image remove app:1",
		Args:    words(1, -1, "an image of this node"),
	}
	return imageCommand(cmd, func(ctx context.Context, s *images.Store, _ *config.Config, args []string) error {
		for _, name := range args {
			if err := s.Remove(ctx, name); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "removed", name)
		}
		return nil
	})
}

func newImagePrune() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove the images that no pod uses",
		Long: "Removes the images that no container of a pod, running or ended, is made of.\n" +
			"What is pinned stays: Knarr's own, those in the folder of archives, and those\n" +
			"that were imported.\n\n" +
			"With --registry, frees the disk of the registry in this server from what no\n" +
			"image there is made of and, with --untagged, from images that no tag leads to.\n" +
			"Pushes may go on meanwhile: what was pushed or asked for within the last hour\n" +
			"stays.",
		Example: "  sudo knarr image prune --dry-run\n\n" +
			"  sudo knarr image prune\n\n" +
			"  # what was pushed before by the same tags goes, too\n" +
			"  sudo knarr image prune --registry --untagged",
		Args: noArguments,
	}
	dry := cmd.Flags().Bool("dry-run", false, "only tell what would be removed")
	registry := cmd.Flags().Bool("registry", false, "prune the registry in this server instead")
	untagged := cmd.Flags().Bool("untagged", false, "with --registry, also remove images that have no tag; pods that name one by its digest can't pull it any more")
	return imageOrRegistryCommand(cmd, registry, func(ctx context.Context, cfg *config.Config) error {
		return pruneRegistry(ctx, cmd.OutOrStdout(), cfg, *untagged, *dry)
	}, func(ctx context.Context, s *images.Store, _ *config.Config, _ []string) error {
		if *untagged {
			return usagef("--untagged: only the images of a registry can lose their tags; add --registry")
		}
		gone, err := s.Prune(ctx, *dry)
		done := "removed"
		if *dry {
			done = "would remove"
		}
		sum := uint64(0)
		for _, i := range gone {
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s (%s)\n", done, i.Name(), bytesOf(int64(i.Size)))
			sum += i.Size
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s %d images, %s as pulled\n", done, len(gone), bytesOf(int64(sum)))
		return nil
	})
}

// words accepts at least so many arguments, and at most so many unless that is
// less than none.
func words(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least {
			return usagef("give %s; %q tells more", what, cmd.CommandPath()+" --help")
		}
		if most >= 0 && len(args) > most {
			return usagef("unexpected argument %q; %q tells what is known", args[most], cmd.CommandPath()+" --help")
		}
		return nil
	}
}

// dockerCredentials are those that Docker's configuration has for a registry, also
// by its credential helpers; none are no error.
func dockerCredentials(ctx context.Context, host string) (images.Credentials, error) {
	store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{})
	if err != nil {
		return images.Credentials{}, fmt.Errorf("read Docker's configuration: %w", err)
	}
	if host == "registry-1.docker.io" {
		host = "docker.io"
	}
	c, err := store.Get(ctx, credentials.ServerAddressFromRegistry(host))
	if err != nil {
		return images.Credentials{}, fmt.Errorf("get credentials for %s by Docker's configuration: %w", host, err)
	}
	return images.Credentials{Username: c.Username, Password: c.Password, IdentityToken: c.RefreshToken}, nil
}

// shortID is an image's ID as people write it.
func shortID(id string) string {
	const prefix, digits = "sha256:", 12
	if len(id) > len(prefix)+digits && id[:len(prefix)] == prefix {
		return id[len(prefix) : len(prefix)+digits]
	}
	return id
}
