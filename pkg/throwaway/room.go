package throwaway

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// leastDisk is what a node writes before the first image, with some room.
	leastDisk = 512 << 20
	// leastApart is what a control plane without nodes writes.
	leastApart = 64 << 20
	// instances is how many a node's parts watch files with.
	instances = 32
)

// roomFor tells what this machine has too little of, before a cluster fails in
// less clear words.
func roomFor(dir string, apart bool) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look at the disk of %s: %w", dir, err)
	}
	least := uint64(leastDisk)
	if apart {
		least = leastApart
	}
	if err := diskRoom(dir, st.Bavail*uint64(st.Bsize), least); err != nil || apart {
		return err
	}
	const sysctl = "/proc/sys/fs/inotify/"
	// A server raises these by itself where it may.
	if unix.Access(sysctl+"max_user_instances", unix.W_OK) == nil {
		return nil
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for range instances {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err == nil {
			fds = append(fds, fd)
			_, err = unix.InotifyAddWatch(fd, "/", unix.IN_CREATE)
		}
		if err := watchRoom(err, sysctl); err != nil {
			return err
		}
	}
	return nil
}

func diskRoom(dir string, free, least uint64) error {
	if free >= least {
		return nil
	}
	return fmt.Errorf("only %d MiB are free in %s, where nodes have their disks, and a cluster needs %d: make room, or set %s to a folder elsewhere",
		free>>20, dir, least>>20, DirVariable)
}

// watchRoom explains why a file can't be watched.
func watchRoom(err error, sysctls string) error {
	what, name := "instances", "max_user_instances"
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC):
		what, name = "watches", "max_user_watches"
	case !errors.Is(err, unix.EMFILE):
		return fmt.Errorf("watch files: %w", err)
	}
	now, rerr := os.ReadFile(filepath.Join(sysctls, name))
	if rerr != nil {
		now = []byte("unknown")
	}
	return fmt.Errorf("too few inotify %s are left for this user: raise sysctl fs.inotify.%s, which is %s", what, name, strings.TrimSpace(string(now)))
}
