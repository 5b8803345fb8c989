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
		return fmt.Sprintf("data dir %s is in use by another Knarr: %s", e.DataDir, e.advice())
	}
	return fmt.Sprintf("data dir %s is in use by process %d: %s", e.DataDir, e.PID, e.advice())
}

func (e *InUseError) advice() string {
	if e.PID == 0 {
		return "stop that one, or choose another --data-dir"
	}
	return fmt.Sprintf("stop it (systemctl stop knarr, or kill %d), or choose another --data-dir", e.PID)
}

// lockHolder finds the process that has locked a data dir, without touching the
// lock: a try, however short, could keep a server from starting. It returns 0
// if there is none, or none that this process can see.
func (m *Machine) lockHolder(dataDir string) int {
	path := filepath.Join(dataDir, "lock")
	var stat unix.Stat_t
	if unix.Stat(path, &stat) != nil {
		return 0
	}
	device := fmt.Sprintf("%02x:%02x:", unix.Major(uint64(stat.Dev)), unix.Minor(uint64(stat.Dev)))
	inode := fmt.Sprintf(":%d", stat.Ino)
	written := ""
	for line := range strings.Lines(m.read("/proc/locks")) {
		// 1: FLOCK  ADVISORY  WRITE 4711 fd:01:262146 0 EOF
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || !strings.HasSuffix(f[5], inode) {
			continue
		}
		if written == "" {
			b, err := os.ReadFile(path)
			if err != nil {
				return 0
			}
			written = strings.TrimSpace(string(b))
		}
		// On btrfs the kernel names another device here than stat does.
		if strings.HasPrefix(f[5], device) || f[4] == written {
			pid, _ := strconv.Atoi(f[4])
			return pid
		}
	}
	return 0
}
