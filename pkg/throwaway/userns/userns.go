// Package userns has others than root be root of something: of a user namespace,
// with their subordinate user and group ids in it (subuid(5)), and of a control
// group that their systemd hands down. It takes newuidmap and newgidmap (Debian's
// package uidmap), cgroup v2, and nsenter to come back in.
//
// A program that uses the package calls [MaybeInit] first thing in main.
package userns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

const (
	// insideVariable is set for all that Start has started.
	insideVariable = "KNARR_USERNS"
	// waitVariable has the descriptor by which a child learns that it has its ids.
	waitVariable = "KNARR_USERNS_WAIT"

	// leastIDs are the ids of images, up to that of nobody and nogroup.
	leastIDs = 65535
)

// Inside tells whether Start made the user namespace that this process is in.
func Inside() bool { return os.Getenv(insideVariable) != "" }

// A span is a row of ids inside a namespace that are others outside.
type span struct{ inside, outside, count int64 }

// spansOf gives an id and its subordinate ones the ids 0, 1, 2, … of a namespace.
func spansOf(own int, below []user.SubID) []span {
	all := []span{{0, int64(own), 1}}
	next := int64(1)
	for _, s := range below {
		all = append(all, span{next, s.SubID, s.Count})
		next += s.Count
	}
	return all
}

// idMap is what newuidmap or newgidmap is to write.
type idMap struct {
	tool  string
	spans []span
}

func (m idMap) write(ctx context.Context, pid int) error {
	args := []string{strconv.Itoa(pid)}
	for _, s := range m.spans {
		args = append(args, fmt.Sprint(s.inside), fmt.Sprint(s.outside), fmt.Sprint(s.count))
	}
	if out, err := exec.CommandContext(ctx, m.tool, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", m.tool, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// idMaps finds this user's ids and who writes them.
func idMaps() ([]idMap, error) {
	who, err := user.CurrentUser()
	if err != nil {
		return nil, fmt.Errorf("find this user's name: %w", err)
	}
	var maps []idMap
	for _, kind := range []struct {
		tool, file string
		own        int
	}{{"newuidmap", "/etc/subuid", os.Getuid()}, {"newgidmap", "/etc/subgid", os.Getgid()}} {
		if _, err := exec.LookPath(kind.tool); err != nil {
			return nil, fmt.Errorf("there is no %s: install it (uidmap on Debian, shadow-utils on Fedora)", kind.tool)
		}
		below, err := subordinate(kind.file, who.Name, os.Getuid())
		if err != nil {
			return nil, err
		}
		maps = append(maps, idMap{kind.tool, spansOf(kind.own, below)})
	}
	return maps, nil
}

// subordinate reads a user's rows of subuid or subgid.
func subordinate(file, name string, uid int) ([]user.SubID, error) {
	rows, err := user.ParseSubIDFileFilter(file, func(s user.SubID) bool {
		return s.Name == name || s.Name == strconv.Itoa(uid)
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var count int64
	for _, r := range rows {
		count += r.Count
	}
	if count < leastIDs {
		return nil, fmt.Errorf("%s gives the user %s %d ids, and images need %d: have root run usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s",
			file, name, count, leastIDs, name)
	}
	return rows, nil
}

// Check tells in one line what this machine lacks for Start, or nothing.
func Check() error {
	if _, err := idMaps(); err != nil {
		return err
	}
	return checkKernel(os.ReadFile)
}

// checkKernel looks for the switches by which a kernel or a distribution refuses.
func checkKernel(read func(string) ([]byte, error)) error {
	for _, s := range []struct{ path, refuses, name string }{
		{"/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=15000"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"},
	} {
		if now, err := read(s.path); err == nil && strings.TrimSpace(string(now)) == s.refuses {
			return fmt.Errorf("this machine lets only root make user namespaces: have root run sysctl -w %s", s.name)
		}
	}
	if _, err := read("/proc/self/ns/user"); errors.Is(err, os.ErrNotExist) {
		return errors.New("this kernel has no user namespaces")
	}
	return nil
}

// Start starts cmd, which must run this program, as root of a new user namespace, and
// where unit is not empty in a new control group of that name, in which it may make
// others. See [exec.Cmd.Start].
func Start(ctx context.Context, cmd *exec.Cmd, unit string) error {
	maps, err := idMaps()
	if err != nil {
		return err
	}
	wait, release, err := os.Pipe()
	if err != nil {
		return err
	}
	defer release.Close()
	defer wait.Close()
	cmd.Env = append(cmd.Environ(), insideVariable+"=1", fmt.Sprintf("%s=%d", waitVariable, 3+len(cmd.ExtraFiles)))
	cmd.ExtraFiles = append(cmd.ExtraFiles, wait)
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &unix.SysProcAttr{}
	}
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("make user namespace: %w", err)
	}
	if unit != "" {
		err = JoinScope(ctx, unit, cmd.Process.Pid)
	}
	for _, m := range maps {
		if err == nil {
			err = m.write(ctx, cmd.Process.Pid)
		}
	}
	if err == nil {
		_, err = release.Write([]byte{1})
	}
	if err != nil {
		release.Close() // it ends by itself
		_ = cmd.Wait()
	}
	return err
}

// MaybeInit does its part when this process was started by Start: it waits for its
// ids and runs the program anew, as root. It tells whether it failed to: then main
// must return at once. Call it before anything else in main.
func MaybeInit() bool {
	fd, err := strconv.Atoi(os.Getenv(waitVariable))
	if err != nil {
		return false
	}
	os.Unsetenv(waitVariable)
	wait := os.NewFile(uintptr(fd), "wait")
	_, err = io.ReadFull(wait, make([]byte, 1))
	wait.Close()
	if err != nil {
		return true // who started it says why
	}
	// The kernel gives root's rights at an exec only, and to root alone.
	if err := unix.Exec("/proc/self/exe", os.Args, os.Environ()); err != nil {
		fmt.Fprintln(os.Stderr, "become root of the user namespace:", err)
	}
	return true
}

// Enter makes a command that runs in the user namespace of a process that Start
// started, as its root, with this user's groups.
func Enter(ctx context.Context, pid int, name string, args ...string) (*exec.Cmd, error) {
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return nil, errors.New("there is no nsenter: install it (util-linux)")
	}
	cmd := exec.CommandContext(ctx, nsenter, append([]string{fmt.Sprintf("--user=/proc/%d/ns/user", pid), "--preserve-credentials", name}, args...)...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	return cmd, nil
}
