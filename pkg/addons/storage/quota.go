package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A project is a number that all files of a folder have, and what they take
// together is counted and bounded: on XFS, and on ext4 with its features project
// and quota, when mounted with prjquota. The calls are those of XFS, which the
// kernel answers for both: see linux/dqblk_xfs.h and linux/fs.h.
const (
	getAttributes  = 0x801c581f // FS_IOC_FSGETXATTR
	setAttributes  = 0x401c5820 // FS_IOC_FSSETXATTR
	projectInherit = 0x00000200 // FS_XFLAG_PROJINHERIT: new files belong to it

	projectQuotas = 2 // PRJQUOTA
	getQuota      = 'X'<<8 + 3
	setLimits     = 'X'<<8 + 4
	getState      = 'X'<<8 + 5

	projectsEnforced = 0x20       // FS_QUOTA_PDQ_ENFD
	blockLimits      = 4 | 8      // FS_DQ_BSOFT, FS_DQ_BHARD
	aProject         = 2          // FS_PROJ_QUOTA
	blockSize        = 512        // limits' unit
	quotaLength      = 112        // of struct fs_disk_quota
	ourProjects      = 0x4b << 24 // the first of our projects; each has a number of 24 bits more
	ourMask          = 0xff << 24
	attempts         = 64 // at a free number
)

// attributes is struct fsxattr.
type attributes struct {
	flags, extent, extents, project, cow uint32
	_                                    [8]byte
}

// limit bounds what a folder and all in it may take. The error tells why that
// can't be.
func limit(dir *os.File, volume string, size int64) error {
	var state [128]byte
	if err := quotactl(dir, getState, 0, state[:]); err != nil {
		return fmt.Errorf("the file system keeps no project quotas (%w)", err)
	}
	if binary.NativeEndian.Uint16(state[2:])&projectsEnforced == 0 {
		return errors.New("the file system is not mounted with prjquota")
	}
	a, err := readAttributes(dir)
	if err != nil {
		return err
	}
	if a.project&ourMask != ourProjects { // else an attempt before has come so far
		if a.project, err = freeProject(dir, volume); err != nil {
			return err
		}
		a.flags |= projectInherit
		if err := ioctl(dir, setAttributes, &a); err != nil {
			return fmt.Errorf("give it a project: %w", err)
		}
	}
	return setLimit(dir, a.project, uint64(size+blockSize-1)/blockSize)
}

// unlimit gives the project of a folder back. What can't be given back costs
// nothing but a number.
func unlimit(dir *os.File) {
	if a, err := readAttributes(dir); err == nil && a.project&ourMask == ourProjects {
		_ = setLimit(dir, a.project, 0)
	}
}

// freeProject is a number that nobody has, near one that follows from the name.
func freeProject(dir *os.File, volume string) (uint32, error) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(volume)) // a hash takes everything
	for i := range uint32(attempts) {
		id := ourProjects | (h.Sum32()+i)&^uint32(ourMask)
		var q [quotaLength]byte
		err := quotactl(dir, getQuota, id, q[:])
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
			return id, nil
		}
		if err != nil {
			return 0, fmt.Errorf("look for a free project: %w", err)
		}
		limit, blocks, files := binary.NativeEndian.Uint64(q[8:]), binary.NativeEndian.Uint64(q[40:]), binary.NativeEndian.Uint64(q[48:])
		if limit == 0 && blocks == 0 && files == 0 {
			return id, nil
		}
	}
	return 0, errors.New("no project is free")
}

func setLimit(dir *os.File, project uint32, blocks uint64) error {
	var q [quotaLength]byte
	q[0], q[1] = 1, aProject
	binary.NativeEndian.PutUint16(q[2:], blockLimits)
	binary.NativeEndian.PutUint32(q[4:], project)
	binary.NativeEndian.PutUint64(q[8:], blocks)
	binary.NativeEndian.PutUint64(q[16:], blocks)
	if err := quotactl(dir, setLimits, project, q[:]); err != nil {
		return fmt.Errorf("bound its project: %w", err)
	}
	return nil
}

func readAttributes(dir *os.File) (a attributes, err error) {
	if err := ioctl(dir, getAttributes, &a); err != nil {
		return a, fmt.Errorf("read its project: %w", err)
	}
	return a, nil
}

func ioctl(dir *os.File, request uintptr, a *attributes) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), request, uintptr(unsafe.Pointer(a))); errno != 0 {
		return errno
	}
	return nil
}

// quotactl is quotactl_fd(2), of Linux 5.14: it needs no device's name.
func quotactl(dir *os.File, command uintptr, id uint32, buf []byte) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, dir.Fd(), command<<8|projectQuotas, uintptr(id), uintptr(unsafe.Pointer(&buf[0])), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
