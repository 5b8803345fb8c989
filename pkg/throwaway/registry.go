package throwaway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/addons/registry"
)

// CacheVariable names the folder of what clusters have in common and leave behind:
// the registry's images, and those that they were given. Its default is
// /var/cache/knarr, and that of others than root the folder knarr in theirs.
const CacheVariable = "KNARR_CACHE_DIR"

// DefaultRegistryPort is where the shared registry is unless told otherwise.
const DefaultRegistryPort = 5000

func cacheDir() (string, error) {
	if dir := os.Getenv(CacheVariable); dir != "" {
		return filepath.Abs(dir)
	}
	if machineRoot() {
		return "/var/cache/knarr", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a folder for a cache: %w: set %s", err, CacheVariable)
	}
	return filepath.Join(dir, "knarr"), nil
}

// serveRegistry has this keeper answer for the registry, as every other does whose
// cluster wants it: all of them serve one folder at one port of the machine. Nodes
// reach it as any other registry, by who connects for their pulls. It ends with ctx.
func (k *keeper) serveRegistry(ctx context.Context) error {
	if k.Config.RegistryPort == 0 {
		return nil
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), k.Config.RegistryPort)
	r := registry.New(registry.Config{Dir: filepath.Join(k.Cache, "registry"), Listen: addr.String(), Shared: true})
	ready, failed := make(chan struct{}), make(chan error, 1)
	ctx, k.endRegistry = context.WithCancel(context.WithoutCancel(ctx))
	k.registry.Go(func() { failed <- r.Run(ctx, ready) })
	select {
	case <-ready:
	case err := <-failed:
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("serve the registry: port %d of this machine is taken by another program: choose another, such as --registry=5001", addr.Port())
		}
		return err
	}
	k.Record.Registry = fmt.Sprintf("localhost:%d", addr.Port())
	return nil
}
