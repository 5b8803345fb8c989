package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/yaml"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/datastore"
	"github.com/knarr-dev/knarr/pkg/encryption"
	"github.com/knarr-dev/knarr/pkg/host"
)

// registry is what the API server's keys begin with.
const registry = "/registry/"

func newStore() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "store",
		Short: "Look after the file that the cluster's objects are in",
		Long: "Looks after the datastore of the server on this machine: the SQLite file\n" +
			"server/db/state.db in its data dir. All but \"compact\" only read it, and can do\n" +
			"so while the server runs.",
		Example: "  # how large it is, and what makes it so\n" +
			"  sudo knarr store stats\n\n" +
			"  # an object as it is stored\n" +
			"  sudo knarr store dump /registry/configmaps/default/app",
		Args:                  knownCommand,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		DisableFlagsInUseLine: true,
	}
	cmd.AddCommand(newStoreCheck(), newStoreStats(), newStoreDump(), newStoreCompact())
	return cmd
}

// storeCommand gives cmd the flags that tell where the store is, and a function
// that does so.
func storeCommand(cmd *cobra.Command) func() (*config.Config, string, error) {
	cmd.DisableFlagsInUseLine = true
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	given := bindOptions(cmd, options("config", "data-dir"))
	return func() (*config.Config, string, error) {
		cfg, _, err := config.Load(config.Sources{Flags: *given, Environ: os.Environ()})
		if err != nil {
			return nil, "", err
		}
		return cfg, filepath.Join(cfg.ServerDir(), "db", "state.db"), nil
	}
}

// inspectStore has cmd open the store beside whoever writes to it, and do that. What
// is done first comes before the moment that is seen of the store.
func inspectStore(cmd *cobra.Command, do func(i *datastore.Inspector, path string, args []string) error, first ...func(*config.Config)) {
	where := storeCommand(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, path, err := where()
		if err != nil {
			return err
		}
		for _, f := range first {
			f(cfg)
		}
		i, err := datastore.Inspect(cmd.Context(), path)
		if err != nil {
			return err
		}
		defer i.Close()
		return do(i, path, args)
	}
}

func newStoreCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [flags]",
		Short: "Look for damage in the datastore",
		Long: "Reads all of the datastore and looks for damage: in SQLite's structures, and,\n" +
			"in a file of Knarr's own driver, for revisions that are missing and for an\n" +
			"index that says otherwise than the log. A value that was changed in place it\n" +
			"cannot tell from what was written. The exit code is 1 if there is any damage:\n" +
			"restore a backup then.",
		Args: noArguments,
	}
	inspectStore(cmd, func(i *datastore.Inspector, path string, _ []string) error {
		faults, err := i.Check(cmd.Context())
		if err != nil {
			return err
		}
		for _, f := range faults {
			fmt.Fprintln(cmd.OutOrStdout(), f)
		}
		if len(faults) > 0 {
			return fmt.Errorf("datastore %s is damaged: restore a backup", path)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s is well\n", path)
		return nil
	})
	return cmd
}

func newStoreStats() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stats [flags]",
		Short: "Show how large the datastore is, and what makes it so",
		Long: "Shows the sizes of the datastore's file and log, how many keys and revisions\n" +
			"are in it, and of which resources.",
		Args: noArguments,
	}
	output := outputFlag(cmd, []string{"table", "json"}, "table", "form of the output")
	inspectStore(cmd, func(i *datastore.Inspector, _ string, _ []string) error {
		s, err := i.Stats(cmd.Context())
		if err != nil {
			return err
		}
		return printStats(cmd.OutOrStdout(), s, *output)
	})
	return cmd
}

func printStats(w io.Writer, s datastore.Stats, format string) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "file\t%s, %s, %s of it free\n", s.Path, bytesOf(s.FileBytes), bytesOf(s.FreeBytes))
	fmt.Fprintf(t, "log\t%s\n", bytesOf(s.LogBytes))
	fmt.Fprintf(t, "driver\t%s\n", s.Driver)
	fmt.Fprintf(t, "revision\t%d, history from %d on\n", s.Revision, s.Compacted)
	fmt.Fprintf(t, "keys\t%d, %s\n", s.Keys, bytesOf(s.KeyBytes))
	fmt.Fprintf(t, "revisions\t%d, %s\n\n", s.Revisions, bytesOf(s.RevisionBytes))
	fmt.Fprintln(t, "RESOURCE\tKEYS\tSIZE\tREVISIONS")
	bySize := slices.SortedFunc(maps.Keys(s.Resources), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.Resources[b].KeyBytes, s.Resources[a].KeyBytes), cmp.Compare(a, b))
	})
	for _, name := range bySize {
		r := s.Resources[name]
		fmt.Fprintf(t, "%s\t%d\t%s\t%d\n", name, r.Keys, bytesOf(r.KeyBytes), r.Revisions)
	}
	return t.Flush()
}

// bytesOf writes a size in the largest unit that leaves a digit before the point.
func bytesOf(n int64) string {
	value, units := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB"}
	for value >= 1024 && len(units) > 1 {
		value, units = value/1024, units[1:]
	}
	if units[0] == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, units[0])
}

func newStoreDump() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dump KEY [flags]",
		Short: "Print objects as they are stored",
		Long: "Prints the object under a key of the datastore as YAML, in the version that it\n" +
			"is stored in. A key that ends with a slash stands for all that begin with it;\n" +
			"one that does not begin with a slash begins with " + registry + ". The API\n" +
			"server, its admission and its permissions are passed by: a Secret is shown as\n" +
			"it is.",
		Example: "  # one object\n" +
			"  sudo knarr store dump configmaps/default/app\n\n" +
			"  # which Leases there are\n" +
			"  sudo knarr store dump leases/ --keys",
		Args: cobra.ExactArgs(1),
	}
	keysOnly := cmd.Flags().Bool("keys", false, "print the keys and their revisions only")
	var secrets *encryption.Opener
	inspectStore(cmd, func(i *datastore.Inspector, path string, args []string) error {
		decoder, err := storedDecoder()
		if err != nil {
			return err
		}
		living, err := i.Living(cmd.Context())
		if err != nil {
			return err
		}
		wanted := args[0]
		if !strings.HasPrefix(wanted, "/") {
			wanted = registry + wanted
		}
		found := false
		for _, key := range slices.Sorted(maps.Keys(living)) {
			if key != wanted && (!strings.HasSuffix(wanted, "/") || !strings.HasPrefix(key, wanted)) {
				continue
			}
			found = true
			if *keysOnly {
				fmt.Fprintf(cmd.OutOrStdout(), "%d\t%s\n", living[key].Revision, key)
				continue
			}
			value, err := i.Value(cmd.Context(), living[key].Revision)
			if err != nil {
				return err
			}
			if value, err = secrets.Open(cmd.Context(), key, value); err != nil {
				return fmt.Errorf("decode %s: %w", key, err)
			}
			text, err := describeStored(decoder, value)
			if err != nil {
				return fmt.Errorf("decode %s: %w", key, err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "# %s at revision %d\n%s---\n", key, living[key].Revision, text)
		}
		if !found {
			return fmt.Errorf("there is no key %s in %s: list keys with --keys and a key that ends with a slash", wanted, path)
		}
		return nil
	}, func(cfg *config.Config) {
		secrets = encryption.NewOpener(cmd.Context(), encryption.Path(cfg.ServerDir()))
	})
	return cmd
}

// storedDecoder knows the kinds that a cluster has from birth.
func storedDecoder() (runtime.Decoder, error) {
	all := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(all), apiextensions.AddToScheme(all), apiregistration.AddToScheme(all)); err != nil {
		return nil, fmt.Errorf("learn the kinds of objects: %w", err)
	}
	return serializer.NewCodecFactory(all).UniversalDeserializer(), nil
}

// describeStored writes a value of the API server's as YAML.
func describeStored(decoder runtime.Decoder, value []byte) (string, error) {
	switch {
	case !bytes.HasPrefix(value, []byte("k8s\x00")) && !bytes.HasPrefix(value, []byte("{")):
		return string(value) + "\n", nil
	}
	object, kind, err := decoder.Decode(value, nil, nil)
	if (runtime.IsNotRegisteredError(err) || runtime.IsMissingKind(err)) && bytes.HasPrefix(value, []byte("{")) {
		text, err := yaml.JSONToYAML(value) // of a custom resource, or the store's own
		return string(text), err
	}
	if err != nil {
		return "", err
	}
	object.GetObjectKind().SetGroupVersionKind(*kind)
	text, err := yaml.Marshal(object)
	return string(text), err
}

func newStoreCompact() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "compact [flags]",
		Short: "Forget history, and give the room in the file back",
		Long: "Forgets all history of the datastore and gives the room in its file back to\n" +
			"the file system. The server does the first by itself every five minutes, and\n" +
			"uses the room anew: this is for a file that once was much larger than it need\n" +
			"be. The server must not run, and the disk needs room for a copy meanwhile.",
		Args: noArguments,
	}
	where := storeCommand(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, path, err := where()
		if err != nil {
			return err
		}
		before, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("find datastore: %w: give --data-dir as the server gets it", err)
		}
		lock, err := host.TakeLock(cfg.DataDir)
		if err != nil {
			return err
		}
		defer lock.Close()
		if err := datastore.Compact(cmd.Context(), path); err != nil {
			return err
		}
		after, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("find datastore: %w", err)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s had %s, and has %s\n", path, bytesOf(before.Size()), bytesOf(after.Size()))
		return err
	}
	return cmd
}
