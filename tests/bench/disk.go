package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A disk is a folder for the host of one run.
type disk struct {
	dir    string
	device string // loop3, or empty for a folder of the machine's own disk
}

const diskSize = 8 << 30 // bytes, of which only those written take space

// plainDisk is a fresh folder: the loop device's price is not in what is timed.
func plainDisk(dir string) (*disk, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("make disk: %w", err)
	}
	return &disk{dir: dir}, os.MkdirAll(dir, 0o755)
}

// loopDisk mounts a fresh ext4 of its own at dir, from a loop device, whose
// statistics then say exactly what a host wrote: /proc/PID/io does not.
func loopDisk(ctx context.Context, dir string) (_ *disk, err error) {
	image := dir + ".img"
	defer func() {
		// The device keeps the file; nobody else needs its name.
		err = errors.Join(err, os.Remove(image))
	}()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make disk: %w", err)
	}
	f, err := os.Create(image)
	if err != nil {
		return nil, fmt.Errorf("make disk: %w", err)
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close()); err != nil {
		return nil, fmt.Errorf("make disk: %w", err)
	}
	// All of it is initialised now, not by the kernel in the background while
	// writes are counted.
	if _, err := command(ctx, "", nil, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", image); err != nil {
		return nil, fmt.Errorf("make disk: %w", err)
	}
	device, err := command(ctx, "", nil, "losetup", "--find", "--show", image)
	if err != nil {
		return nil, fmt.Errorf("make disk: %w", err)
	}
	// A device in use is only marked by detach, and goes with the last user:
	// nothing is left behind, whatever becomes of this program.
	mountErr := unix.Mount(device, dir, "ext4", unix.MS_NOATIME, "")
	_, detachErr := command(context.WithoutCancel(ctx), "", nil, "losetup", "--detach", device)
	if mountErr != nil {
		return nil, errors.Join(fmt.Errorf("mount %s on %s: %w", device, dir, mountErr), detachErr)
	}
	d := &disk{dir: dir, device: filepath.Base(device)}
	if detachErr != nil {
		return nil, errors.Join(detachErr, d.close())
	}
	return d, nil
}

// close unmounts the disk, or removes the folder.
func (d *disk) close() error {
	if d.device == "" {
		return os.RemoveAll(d.dir)
	}
	if err := unmount(d.dir); err != nil {
		return fmt.Errorf("unmount disk %s: %w", d.dir, err)
	}
	return os.Remove(d.dir)
}

// unmount tries again for a while: a host's mounts go a moment after its last
// process, and no event tells when.
func unmount(dir string) error {
	deadline := time.Now().Add(10 * time.Second)
	for wait := time.Millisecond; ; wait *= 2 {
		err := unix.Unmount(dir, 0)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		<-time.After(wait)
	}
}

// diskStat is what was written to a block device since it was made.
type diskStat struct {
	requests int64
	bytes    int64
	flushes  int64 // cache flushes: one fsync causes one or two
}

func (d *disk) stat() (diskStat, error) {
	text, err := os.ReadFile("/sys/block/" + d.device + "/stat")
	if err != nil {
		return diskStat{}, fmt.Errorf("read statistics of %s: %w", d.device, err)
	}
	return parseDiskStat(string(text))
}

// parseDiskStat reads the fields that Documentation/block/stat.rst lists.
func parseDiskStat(text string) (diskStat, error) {
	const writeRequests, writeSectors, flushes = 4, 6, 15
	fields := strings.Fields(text)
	if len(fields) <= flushes {
		return diskStat{}, fmt.Errorf("statistics of disk have %d fields, want %d: Linux 5.5 or later counts flushes", len(fields), flushes+2)
	}
	var n [3]int64
	for i, f := range []int{writeRequests, writeSectors, flushes} {
		var err error
		if n[i], err = strconv.ParseInt(fields[f], 10, 64); err != nil {
			return diskStat{}, fmt.Errorf("statistics of disk: %w", err)
		}
	}
	// Sectors are of 512 bytes, whatever the device's own are.
	return diskStat{requests: n[0], bytes: n[1] * 512, flushes: n[2]}, nil
}

func (s diskStat) since(before diskStat) diskStat {
	return diskStat{s.requests - before.requests, s.bytes - before.bytes, s.flushes - before.flushes}
}
