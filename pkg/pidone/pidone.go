// Package pidone lets a program be the first process of a container.
//
// The kernel makes the first process the parent of every process whose own has
// ended, and a parent has to wait for its children, or they stay as zombies. A
// program that starts others cannot wait for any child that comes: it would take
// their exit statuses from os/exec. So the first process starts the program once
// more and is no more than its init, as tini and catatonit are for others.
package pidone

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

// exitSignalBase plus a signal's number is how shells tell of a program that a
// signal has ended.
const exitSignalBase = 128

// Run does what the first process has to, if this is the first of its pid
// namespace: it runs this program with the same arguments, its name first, as
// its child, and returns the child's exit code when that has ended. With the
// first process the kernel ends all others of the container. Elsewhere it returns
// at once, and was is false: then this process is the program.
func Run(args []string) (code int, was bool, err error) {
	if os.Getpid() != 1 {
		return 0, false, nil
	}
	shareMounts()
	code, err = supervise("/proc/self/exe", args)
	return code, true, err
}

// shareMounts lets mounts of pods be seen by each other where a pod asks for that
// (mountPropagation: Bidirectional). Container managers start with mounts that
// are nobody else's; what a user shares with the machine stays so. A container
// that is not allowed to is told what it lacks by the program itself.
func shareMounts() {
	// Outside of a container these may be the machine's own mounts.
	if os.Getenv("container") != "" {
		_ = unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
	}
}

// supervise runs a program as the only child that counts, hands signals on to it
// and reaps every other child until it has ended.
func supervise(path string, args []string) (code int, err error) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	child, err := os.StartProcess(path, args, &os.ProcAttr{
		Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: foreground(),
	})
	if err != nil {
		return 0, fmt.Errorf("run %s as a child of the first process: %w", args[0], err)
	}
	pid := child.Pid
	// What all packages have set up is of no use to an init.
	debug.FreeOSMemory()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case sig := <-signals:
				// It is not reaped before ended is closed, so that the number is its own.
				_ = unix.Kill(pid, sig.(syscall.Signal))
			case <-ended:
				return
			}
		}
	}()
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for %s: %w", args[0], err)
		case got != pid:
		case status.Signaled():
			return exitSignalBase + int(status.Signal()), nil
		default:
			return status.ExitStatus(), nil
		}
	}
}

// foreground gives the child the terminal that we are in front of, if there is
// one: else Ctrl-C would reach it twice, from the terminal and from us.
func foreground() *syscall.SysProcAttr {
	front, err := unix.IoctlGetInt(0, unix.TIOCGPGRP)
	if err != nil || front != unix.Getpgrp() {
		return nil
	}
	return &syscall.SysProcAttr{Foreground: true, Ctty: 0}
}
