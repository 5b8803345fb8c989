package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// knarr is `knarr server` with its defaults.
type knarr struct {
	file  string // on this machine
	args  []string
	image string
}

var _ subject = (*knarr)(nil)

const (
	knarrInHost  = "/opt/knarr/knarr"
	knarrDataDir = "/var/lib/knarr"
)

func (k *knarr) name() string { return knarrName }

func (k *knarr) version(ctx context.Context) (string, error) {
	text, err := command(ctx, "", nil, k.file, "version")
	if err != nil {
		return "", err
	}
	return strings.Join(strings.Fields(text), " "), nil
}

func (k *knarr) executables() ([]string, error) { return []string{k.file}, nil }

func (k *knarr) binds() []lab.Bind {
	return []lab.Bind{{Source: k.file, Target: knarrInHost, ReadOnly: true}}
}

func (k *knarr) prepare(_ context.Context, h *lab.Host) error {
	data, err := os.ReadFile(k.image)
	if err != nil {
		return fmt.Errorf("%w: scripts/images.sh makes it", err)
	}
	return writeFile(h, filepath.Join(knarrDataDir, "agent/images/test.tar"), data, 0o644)
}

func (k *knarr) command(ctx context.Context, h *lab.Host) *lab.Cmd {
	return h.Command(ctx, knarrInHost, append([]string{"server"}, k.args...)...)
}

func (k *knarr) supervised() bool { return false }

func (k *knarr) kubeconfig() string { return "/etc/knarr/kubeconfig.yaml" }

func (k *knarr) lastWords(log []string) []string { return last(log) }

// forget makes a host what it was before Knarr first ran there, but for the
// unpacked bundle, and boots it anew.
func (k *knarr) forget(ctx context.Context, h *lab.Host) error {
	if err := h.Reboot(ctx); err != nil {
		return err
	}
	var errs []error
	for _, dir := range []string{knarrDataDir, "/etc/knarr", "/etc/cni", "/opt/cni", "/var/lib/kubelet", "/var/lib/cni", "/var/log"} {
		errs = append(errs, empty(h.Path(dir), "bundle"))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("empty the host's folders: %w", err)
	}
	return k.prepare(ctx, h)
}

// empty removes all that is in a folder but one name.
func empty(dir, except string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == except {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
