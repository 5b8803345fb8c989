package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/knarr-dev/knarr/pkg/cluster"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/pkg/status"
	"github.com/knarr-dev/knarr/pkg/support"
)

func newSupportBundle(v Version) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "support-bundle [flags]",
		Short: "Gather what helps to find out what is wrong, and no secret",
		Long: "Writes an archive that tells how the server or agent on this machine stands:\n" +
			"versions, status, configuration, logs, goroutines, certificates' dates, packet\n" +
			"filter, network, and the cluster's nodes, pods and events. Tokens, passwords and\n" +
			"keys are taken out. It works while nothing runs, too, and tells in each file\n" +
			"what could not be had. Look through it before you hand it on: pods' names and\n" +
			"addresses are in it.",
		Example: "  sudo knarr support-bundle\n\n" +
			"  # elsewhere\n" +
			"  sudo knarr support-bundle --to /tmp/bundle.tar.gz",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	to := cmd.Flags().String("to", "", "`file` to write (default: knarr-support-DATE.tar.gz in this folder)")
	given := bindOptions(cmd, options("config", "data-dir", "run-dir", "write-kubeconfig"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg := loadLeniently(cmd, *given)
		name := "knarr-support-" + time.Now().UTC().Format("20060102T150405Z")
		if *to == "" {
			*to = name + ".tar.gz"
		}
		secrets, err := knownSecrets(cfg)
		if err != nil {
			return fmt.Errorf("learn which secrets to take out: %w", err)
		}
		f, err := os.OpenFile(*to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("make the bundle (--to): %w", err)
		}
		err = errors.Join(support.Write(cmd.Context(), f, name, support.NewScrubber(secrets...), bundleSteps(cfg, v)), f.Sync(), f.Close())
		if err != nil {
			return errors.Join(err, os.Remove(*to))
		}
		fmt.Fprintf(cmd.OutOrStdout(), "Wrote %s.\n", *to)
		return nil
	}
	return cmd
}

// knownSecrets are those that this machine has in files and in its configuration.
func knownSecrets(cfg *config.Config) ([]string, error) {
	secrets := []string{cfg.Token, os.Getenv(tokenVariable)}
	patterns := []string{
		filepath.Join(cfg.ServerDir(), "node-token"), filepath.Join(cfg.ServerDir(), "tls", "*.key"), filepath.Join(cfg.ServerDir(), "tls", "*.pem"),
		filepath.Join(cfg.AgentDir(), "identity", "*.key"), filepath.Join(cfg.AgentDir(), "identity", "*.pem"), filepath.Join(cfg.AgentDir(), "kubelet-pki", "*.pem"),
	}
	if cfg.TokenFile != "" {
		patterns = append(patterns, cfg.TokenFile)
	}
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			// Certificates are no secrets, and lines of them are in kubeconfigs.
			_, key, found := strings.Cut(string(text), "PRIVATE KEY-----\n")
			if !found {
				key = string(text)
			}
			secrets = append(secrets, key)
		}
	}
	return secrets, nil
}

func bundleSteps(cfg *config.Config, v Version) []support.Step {
	ask := func(name, path string) support.Step {
		return support.Step{Name: name, Get: func(ctx context.Context) ([]byte, error) {
			return status.Ask(ctx, cfg.StatusSocket(), http.MethodGet, path)
		}}
	}
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	kubectl := func(name string, args ...string) support.Step {
		return support.Program(name, self, append([]string{"kubectl", "--kubeconfig", cfg.Kubeconfig.Path, "--request-timeout=10s"}, args...)...)
	}
	steps := []support.Step{
		support.Text("version.json", func() (string, error) { return asJSON(v) }),
		ask("status.json", status.Path),
		ask("flags.json", cluster.FlagsPath),
		ask("goroutines.txt", cluster.GoroutinesPath),
		support.Text("configuration.txt", func() (string, error) { return effective(cfg), nil }),
		support.File("config.yaml", cfg.File),
		support.Text("registries.yaml", func() (string, error) { return readFile(cfg.Node.PrivateRegistry) }),
		support.Text("certificates.json", func() (string, error) {
			all, err := pki.Inventory(time.Now(), filepath.Join(cfg.ServerDir(), "tls"), filepath.Join(cfg.AgentDir(), "identity"), filepath.Join(cfg.AgentDir(), "kubelet-pki"))
			text, jerr := asJSON(all)
			return text, errors.Join(err, jerr)
		}),
		support.Text("files.txt", func() (string, error) { return listing(cfg.DataDir, cfg.RunDir) }),
		support.Program("logs/journal.txt", "journalctl", "--no-pager", "-n", "20000", "-u", "knarr*"),
		support.Program("logs/kernel.txt", "dmesg"),
		support.Program("machine/uname.txt", "uname", "-a"),
		support.File("machine/os-release.txt", "/etc/os-release"),
		support.File("machine/meminfo.txt", "/proc/meminfo"),
		support.File("machine/cpuinfo.txt", "/proc/cpuinfo"),
		support.File("machine/loadavg.txt", "/proc/loadavg"),
		support.File("machine/mounts.txt", "/proc/self/mountinfo"),
		support.File("machine/cgroups.txt", "/proc/self/cgroup"),
		support.Program("machine/df.txt", "df", "-h"),
		support.Program("network/nft.txt", nftPath(cfg), "list", "ruleset"),
		support.Program("network/addresses.txt", "ip", "address"),
		support.Program("network/routes.txt", "ip", "route", "show", "table", "all"),
		support.Program("network/links.txt", "ip", "-d", "link"),
	}
	for _, file := range []string{"tcp", "tcp6", "udp", "udp6", "route", "dev"} {
		steps = append(steps, support.File("network/proc-"+file+".txt", "/proc/net/"+file))
	}
	return append(steps,
		support.File("network/resolv.conf", "/etc/resolv.conf"),
		kubectl("cluster/nodes.txt", "describe", "nodes"),
		kubectl("cluster/pods.txt", "get", "pods", "-A", "-o", "wide"),
		kubectl("cluster/events.txt", "get", "events", "-A", "--sort-by=.lastTimestamp"),
		kubectl("cluster/services.txt", "get", "services,endpointslices", "-A", "-o", "wide"),
		kubectl("cluster/metrics.txt", "get", "--raw", "/metrics"))
}

func asJSON(v any) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	err := e.Encode(v)
	return b.String(), err
}

func readFile(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}

// effective lists the options as they were read here, by flags, environment and
// files of this command. Those of the server are in its own environment, too.
func effective(cfg *config.Config) string {
	var b strings.Builder
	for _, o := range config.Options() {
		values := o.Values(cfg)
		if o.Secret && len(values) > 0 {
			values = []string{support.Hidden}
		}
		fmt.Fprintf(&b, "%s: %s\n", o.Name, strings.Join(values, ", "))
	}
	return b.String()
}

// listing tells what is in folders, three levels deep, with modes and sizes.
func listing(dirs ...string) (string, error) {
	var b strings.Builder
	var errs []error
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				errs = append(errs, err)
				return nil
			}
			info, err := e.Info()
			if err != nil {
				return nil // it has gone
			}
			fmt.Fprintf(&b, "%s %12d %s %s\n", info.Mode(), info.Size(), info.ModTime().UTC().Format(time.RFC3339), path)
			if rel, _ := filepath.Rel(dir, path); e.IsDir() && strings.Count(rel, string(filepath.Separator)) >= 2 {
				return fs.SkipDir
			}
			return nil
		})
		errs = append(errs, err)
	}
	return b.String(), errors.Join(errs...)
}

// nftPath is the one that Knarr brings, where it was unpacked, else the machine's.
func nftPath(cfg *config.Config) string {
	if found, err := filepath.Glob(filepath.Join(cfg.DataDir, "bundle", "*", "bin", "nft")); err == nil && len(found) > 0 {
		return found[0]
	}
	return "nft"
}
