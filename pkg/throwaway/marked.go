package throwaway

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// markVariable is in the environment of a command that a cluster was made for,
// and so in those of all that it starts. By it they are found when they outlive
// the command: a process that left its parents and its session is still known.
const markVariable = "KNARR_THROWAWAY"

// killTime bounds how long killed processes may take to go.
const killTime = 10 * time.Second

// killMarked ends what a cluster's command left running.
func killMarked(id string) error {
	if id == "" {
		return nil
	}
	deadline := time.Now().Add(killTime)
	for {
		found, err := killOnce(id, deadline)
		if err != nil || found == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes of the cluster's command are still there %s after they were killed", killTime)
		}
	}
}

// killOnce ends those that are there now; one may just be starting another.
func killOnce(id string, deadline time.Time) (found int, err error) {
	entries, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return 0, err
	}
	for _, path := range entries {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || pid == os.Getpid() || !isMarked(path, id) {
			continue
		}
		// The process may end, and another get its number, until this holds it.
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return found, fmt.Errorf("hold process %d: %w", pid, err)
		}
		if isMarked(path, id) {
			found++
			err = endProcess(fd, deadline)
		}
		unix.Close(fd)
		if err != nil {
			return found, fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return found, nil
}

func endProcess(pidfd int, deadline time.Time) error {
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(poll, int(max(0, time.Until(deadline)).Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// isMarked reads a process' environment; one that is gone has none.
func isMarked(path, id string) bool {
	environ, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	return bytes.Contains(append([]byte{0}, environ...), []byte("\x00"+markVariable+"="+id+"\x00"))
}
