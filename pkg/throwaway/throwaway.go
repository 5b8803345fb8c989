// Package throwaway makes clusters that leave nothing behind.
package throwaway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// Host is a lab host with a Knarr server in it.
type Host struct {
	*lab.Host
	// Exe is the Knarr executable as a path inside the host.
	Exe string
}

// exeFolder is where a host sees the folder of the executable, in which a new
// build may replace it: hosts don't see all of the machine's folders.
const exeFolder = "/opt/knarr"

// Kubeconfig is the administrator's kubeconfig, as a path on the machine.
func (h *Host) Kubeconfig() string { return h.Path("/etc/knarr/kubeconfig.yaml") }

// NewHost makes a lab of one host. Image archives are copied to where a server
// imports them from. The caller closes the lab.
func NewHost(ctx context.Context, name, exe string, archives []string) (*lab.Lab, *Host, error) {
	l, err := lab.New(ctx, lab.Config{Name: name})
	if err != nil {
		return nil, nil, err
	}
	h, err := AddHost(ctx, l, "node", exe, archives)
	if err != nil {
		return nil, nil, errors.Join(err, l.Close())
	}
	return l, h, nil
}

// AddHost adds a host to a lab, such as one for an agent. It goes with the lab.
func AddHost(ctx context.Context, l *lab.Lab, name, exe string, archives []string) (*Host, error) {
	exe, err := filepath.Abs(exe)
	if err != nil {
		return nil, fmt.Errorf("find executable: %w", err)
	}
	h, err := l.AddHost(ctx, lab.HostConfig{Name: name, Binds: []lab.Bind{{Source: filepath.Dir(exe), Target: exeFolder, ReadOnly: true}}})
	if err != nil {
		return nil, err
	}
	host := &Host{Host: h, Exe: filepath.Join(exeFolder, filepath.Base(exe))}
	for _, a := range archives {
		if err := host.put(a); err != nil {
			return nil, errors.Join(err, h.Close())
		}
	}
	return host, nil
}

// Inside makes a command in the host that uses the terminal, where Knarr's own
// commands are found.
func (h *Host) Inside(ctx context.Context, name string, args ...string) *lab.Cmd {
	cmd := h.Command(ctx, name, args...)
	cmd.SysProcAttr = nil
	for i, e := range cmd.Env {
		if strings.HasPrefix(e, "PATH=") {
			cmd.Env[i] = e + ":" + exeFolder
		}
	}
	return cmd
}

func (h *Host) put(archive string) error {
	src, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("open image archive: %w", err)
	}
	defer src.Close()
	dir := h.Path("/var/lib/knarr/agent/images")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create folder of images in the host: %w", err)
	}
	dst, err := os.Create(filepath.Join(dir, filepath.Base(archive)))
	if err != nil {
		return fmt.Errorf("copy image archive: %w", err)
	}
	_, err = io.Copy(dst, src)
	if err = errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("copy image archive %s: %w", archive, err)
	}
	return nil
}
