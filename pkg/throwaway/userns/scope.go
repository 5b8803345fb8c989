package userns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"github.com/knarr-dev/knarr/pkg/host"
)

const cgroupRoot = "/sys/fs/cgroup"

// JoinScope has this user's systemd move a process to a new control group, in which
// the process may make others. It is gone with the last process in it.
func JoinScope(ctx context.Context, unit string, pid int) error {
	if err := checkScope(os.ReadFile, pid); err != nil {
		return err
	}
	bus := userBus(os.Getenv("XDG_RUNTIME_DIR"), os.Getuid())
	if _, err := os.Stat(bus); err != nil {
		return fmt.Errorf("no systemd of this user is there to give it a control group (%s is missing): have root run loginctl enable-linger %d, and install dbus-user-session where it is a package", bus, os.Getuid())
	}
	systemd, err := dbus.NewConnection(func() (*godbus.Conn, error) {
		return godbus.Connect("unix:path="+bus, godbus.WithContext(ctx))
	})
	if err != nil {
		return fmt.Errorf("ask this user's systemd for a control group: %w", err)
	}
	defer systemd.Close()
	done := make(chan string, 1)
	property := func(name string, value any) dbus.Property {
		return dbus.Property{Name: name, Value: godbus.MakeVariant(value)}
	}
	_, err = systemd.StartTransientUnitContext(ctx, unit+".scope", "replace", []dbus.Property{
		dbus.PropDescription("Knarr's throwaway cluster"), dbus.PropPids(uint32(pid)),
		property("Delegate", true), property("CollectMode", "inactive-or-failed"),
	}, done)
	if err != nil {
		return fmt.Errorf("ask this user's systemd for a control group: %w", err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("ask this user's systemd for a control group: %s.scope: %s", unit, result)
		}
	case <-ctx.Done():
		return fmt.Errorf("ask this user's systemd for a control group: %w", context.Cause(ctx))
	}
	return checkControllers(os.ReadFile, pid)
}

// userBus is the socket of the D-Bus at which a user's systemd is. Who came by su or
// sudo has no XDG_RUNTIME_DIR.
func userBus(runtimeDir string, uid int) string {
	if runtimeDir == "" {
		runtimeDir = fmt.Sprintf("/run/user/%d", uid)
	}
	return filepath.Join(runtimeDir, "bus")
}

// checkScope refuses machines whose control groups can't be handed down.
func checkScope(read func(string) ([]byte, error), pid int) error {
	if _, err := read(filepath.Join(cgroupRoot, "cgroup.controllers")); err != nil {
		return errors.New("nodes without root need cgroup v2 alone, and this machine has v1: boot it with systemd.unified_cgroup_hierarchy=1, or run as root")
	}
	_, err := CgroupOf(read, pid)
	return err
}

// checkControllers tells which controllers the process did not get.
func checkControllers(read func(string) ([]byte, error), pid int) error {
	own, err := CgroupOf(read, pid)
	if err != nil {
		return err
	}
	has, err := read(filepath.Join(cgroupRoot, own, "cgroup.controllers"))
	if err != nil {
		return err
	}
	missing := slices.DeleteFunc(host.Cgroups{Mode: host.CgroupV2}.Needs(), func(name string) bool {
		return slices.Contains(strings.Fields(string(has)), name)
	})
	if len(missing) > 0 {
		return fmt.Errorf("systemd hands this user no controller %s: have root write \"[Service]\" and \"Delegate=cpu cpuset io memory pids\" into /etc/systemd/system/user@.service.d/delegate.conf and run systemctl daemon-reload, then log in anew",
			strings.Join(missing, ", "))
	}
	return nil
}

// CgroupOf is the path of a process in the unified hierarchy.
func CgroupOf(read func(string) ([]byte, error), pid int) (string, error) {
	text, err := read(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path, nil
		}
	}
	return "", fmt.Errorf("process %d is in no control group of v2", pid)
}
