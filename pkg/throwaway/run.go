package throwaway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit codes of Run beside those of the command, as shells have them.
const (
	exitFailed     = 1
	exitNoExec     = 126 // the command is there, and no program
	exitNotFound   = 127
	exitSignalBase = 128 // plus the signal's number
)

// Run starts a cluster, runs a command with KUBECONFIG set while it lives, and
// removes it. It returns the command's exit code; a signal that ends it gives 128
// and its number. Signals for this process go to the command.
//
// What the command has left running is ended with it. When this process is killed,
// the keeper ends the command and the cluster.
func Run(ctx context.Context, cfg Config, command []string) (code int, err error) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	path, err := findCommand(command[0])
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return exitNotFound, fmt.Errorf("run %s: no such command", command[0])
	}
	if err != nil {
		return exitNoExec, fmt.Errorf("run %s: %w", command[0], err)
	}

	starting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	begun := make(chan struct{})
	interrupted := make(chan os.Signal, 1)
	go func() {
		defer close(interrupted)
		select {
		case sig := <-signals:
			interrupted <- sig
			cancel(fmt.Errorf("stopped by %s", sig))
		case <-begun:
		}
	}()
	c, err := Start(starting, cfg, nil)
	close(begun)
	if sig, ok := <-interrupted; ok {
		if err == nil {
			err = errors.Join(context.Cause(starting), c.Close())
		}
		return exitSignalBase + int(sig.(syscall.Signal)), err
	}
	if err != nil {
		return exitFailed, err
	}
	defer func() {
		// The keeper ends what is left of the command, with the cluster.
		if cerr := c.Close(); cerr != nil {
			code, err = max(code, exitFailed), errors.Join(err, cerr)
		}
	}()
	cmd := exec.Command(path, command[1:]...)
	cmd.Args[0] = command[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if cmd.Env, err = c.environ(cfg.Exe); err != nil {
		return exitFailed, err
	}
	return c.run(cmd, signals)
}

func findCommand(name string) (string, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) && name == "kubectl" {
		return os.Executable() // which is kubectl too, by that name
	}
	if errors.Is(err, exec.ErrDot) {
		err = nil
	}
	return path, err
}

// environ is the command's environment: our own, the cluster, and kubectl for
// those who have none.
func (c *Cluster) environ(exe string) ([]string, error) {
	tools := c.folder.file(c.Name, "bin")
	if err := os.Mkdir(tools, 0o755); err != nil {
		return nil, fmt.Errorf("make folder of tools: %w", err)
	}
	if err := os.Symlink(exe, filepath.Join(tools, "kubectl")); err != nil {
		return nil, fmt.Errorf("provide kubectl: %w", err)
	}
	ours := []string{
		"KUBECONFIG=" + c.KubeconfigFile(),
		"PATH=" + strings.TrimPrefix(os.Getenv("PATH")+string(filepath.ListSeparator)+tools, string(filepath.ListSeparator)),
		markVariable + "=" + c.ID,
		markVariable + "_NAME=" + c.Name,
		markVariable + "_REGISTRY=" + c.Registry,
	}
	env := slices.DeleteFunc(os.Environ(), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return slices.ContainsFunc(ours, func(o string) bool { return strings.HasPrefix(o, name+"=") })
	})
	return append(env, ours...), nil
}

// run runs the command to its end.
func (c *Cluster) run(cmd *exec.Cmd, signals <-chan os.Signal) (int, error) {
	// The kernel kills it if we are killed, and counts by threads.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	started, done := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			done <- cmd.Wait()
		}
	}()
	if err := <-started; errors.Is(err, fs.ErrNotExist) {
		return exitNotFound, fmt.Errorf("run %s: its interpreter is missing: %w", cmd.Args[0], err)
	} else if err != nil {
		return exitNoExec, fmt.Errorf("run %s: %w", cmd.Args[0], err)
	}
	var lost error
	ended := c.said
	for {
		select {
		case <-done:
			code := exitCodeOf(cmd.ProcessState)
			if lost != nil {
				code = max(code, exitFailed)
			}
			return code, lost
		case sig := <-signals:
			if fromTerminal(sig) {
				continue // the command got it too
			}
			// It may just have ended.
			_ = cmd.Process.Signal(sig)
		case r, ok := <-ended:
			if ok && r.Error == "" {
				continue
			}
			lost = errors.New("the cluster ended while the command ran")
			if r.Error != "" {
				lost = fmt.Errorf("%w: %s", lost, r.Error)
			}
			ended = nil
			_ = cmd.Process.Signal(unix.SIGTERM)
		}
	}
}

func exitCodeOf(s *os.ProcessState) int {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return exitSignalBase + int(w.Signal())
	}
	return s.ExitCode()
}

// fromTerminal tells of a signal that the terminal sends to all in front of it:
// to us, and to the command, which is in our process group.
func fromTerminal(sig os.Signal) bool {
	if sig != unix.SIGINT && sig != unix.SIGQUIT {
		return false
	}
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	front, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && front == unix.Getpgrp()
}
