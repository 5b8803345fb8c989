// Appliance is a program that is a whole cluster with a workload of its own: one
// file to copy to a machine and start.
//
// Its workload is what lies in the folder files: manifests of static pods, and
// archives of their images. The executables of a node come from Knarr's modules:
//
//	go run github.com/knarr-dev/knarr/cmd/knarr-bundle -o files/bundle.tar.zst
//	cp hello.tar files/images/
//	CGO_ENABLED=1 go build -o appliance . && sudo ./appliance
package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"syscall"

	"github.com/knarr-dev/knarr/pkg/bundle"
	"github.com/knarr-dev/knarr/pkg/cli"
	"github.com/knarr-dev/knarr/pkg/config"
)

//go:embed all:files
var files embed.FS

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "appliance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	cfg := config.Default()
	cfg.DataDir, cfg.RunDir = "/var/lib/appliance", "/run/appliance"
	cfg.Kubeconfig.Path = "/etc/appliance/kubeconfig.yaml"
	if err := cfg.Complete(config.ThisHost()); err != nil {
		return err
	}
	archive, err := executables()
	if err != nil {
		return err
	}
	if err := unpack("files/images", filepath.Join(cfg.AgentDir(), "images")); err != nil {
		return err
	}
	if err := unpack("files/pods", cfg.Node.PodManifestPath); err != nil {
		return err
	}
	return cli.Serve(ctx, cfg, cli.ServeOptions{Bundle: archive})
}

// executables are those built into Knarr's own packages, or else those in our files.
func executables() (*bundle.Archive, error) {
	archive, err := bundle.Embedded()
	if errors.Is(err, bundle.ErrNone) {
		return bundle.OpenFS(files, "files/bundle.tar.zst")
	}
	return archive, err
}

// unpack writes what is in one of our folders to one of the machine.
func unpack(from, to string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	entries, err := files.ReadDir(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		data, err := files.ReadFile(path.Join(from, e.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, e.Name()), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}
