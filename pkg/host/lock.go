package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Lock keeps a data dir to one process. The kernel drops it when the process
// ends, however it ends.
type Lock struct{ f *os.File }

// TakeLock locks dataDir, which it makes if need be, and fails at once with an
// InUseError if another process has it.
func TakeLock(dataDir string) (*Lock, error) {
	if err := os.MkdirAll(dataDir, 0o755); err != nil {
		return nil, fmt.Errorf("make data dir: %w", err)
	}
	path := filepath.Join(dataDir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of data dir: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		text, _ := os.ReadFile(path)
		f.Close()
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return nil, &InUseError{DataDir: dataDir, PID: pid}
	}
	if err == nil {
		err = errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n"))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock data dir %s: %w", dataDir, err)
	}
	return &Lock{f: f}, nil
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// Close gives the data dir free. The file stays: removing it would let two
// processes hold locks on two files of the same name.
func (l *Lock) Close() error { return l.f.Close() }

// InUseError says that another process holds the data dir.
type InUseError struct {
	DataDir string
	// PID is as the other process sees itself, 0 if it has not said yet.
	PID int
}

func (e *InUseError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("data dir %s is in use by another Knarr: stop that one, or choose another --data-dir", e.DataDir)
	}
	return fmt.Sprintf("data dir %s is in use by process %d: stop it (systemctl stop knarr, or kill %d), or choose another --data-dir",
		e.DataDir, e.PID, e.PID)
}
