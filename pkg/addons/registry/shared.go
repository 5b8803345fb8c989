package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// listen opens the address. Of processes that share one the kernel has each new
// connection answered by any, and the last one that ends gives it up.
func (r *Registry) listen(ctx context.Context) (net.Listener, error) {
	var lc net.ListenConfig
	if r.cfg.Shared {
		lc.Control = func(_, _ string, c syscall.RawConn) error {
			var failed error
			err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
			return errors.Join(err, failed)
		}
	}
	return lc.Listen(ctx, "tcp", r.cfg.Listen)
}

// secretFile is beside what Distribution keeps.
const secretFile = "secret"

// secret is the same for all who serve the folder: an upload that one has begun is
// continued by another.
func (f *files) secret() (string, error) {
	text, err := f.root.ReadFile(secretFile)
	if errors.Is(err, fs.ErrNotExist) {
		// Whoever is first gives the file its name, whole.
		own := secretFile + "." + rand.Text()
		if err := f.root.WriteFile(own, []byte(rand.Text()), 0o600); err != nil {
			return "", fmt.Errorf("make the registry's secret: %w", err)
		}
		if err := f.root.Link(own, secretFile); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("make the registry's secret: %w", err)
		}
		if err := f.root.Remove(own); err != nil {
			return "", fmt.Errorf("make the registry's secret: %w", err)
		}
		text, err = f.root.ReadFile(secretFile)
	}
	if err != nil {
		return "", fmt.Errorf("read the registry's secret: %w", err)
	}
	return string(text), nil
}
