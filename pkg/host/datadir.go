package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxRunDir leaves room for the names of containerd's sockets.
const maxRunDir = 70

func (s *survey) checkRunDir(f *findings) string {
	if len(s.cfg.RunDir) > maxRunDir {
		f.errorf("the run dir's path is too long", s.cfg.RunDir, "the kernel takes at most 107 characters for a socket's path",
			fmt.Sprintf("choose one of at most %d", maxRunDir))
	}
	return s.cfg.RunDir
}

func (s *survey) checkDataDir(f *findings) string {
	dir := existing(s.cfg.DataDir)
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		f.errorf("the data dir can't be written", dir, err.Error(), "mount it writable, run as its owner, or choose another --data-dir")
		return ""
	}
	mt, ok := mountOf(s.mountTable(), dir)
	if ok && mt.has("noexec") && !s.cfg.DisableAgent {
		f.errorf("the data dir lies on a filesystem mounted noexec", mt.point,
			"runc and the CNI plugins are unpacked there and run from there", "mount it without noexec, or choose another --data-dir")
	}
	return s.cfg.DataDir + " can be written"
}

// checkOutside finds what a root that is mounted read-only has no room for.
func (s *survey) checkOutside(f *findings) string {
	told := map[string]bool{}
	for _, path := range s.cfg.Outside {
		at := existing(path)
		err := unix.Access(at, unix.W_OK)
		if info, serr := os.Stat(at); err == nil && at != path && serr == nil && !info.IsDir() {
			err = unix.ENOTDIR
		}
		if err == nil || told[at] {
			continue
		}
		told[at] = true
		do := "mount a folder of a writable disk, or a tmpfs, at " + filepath.Dir(path)
		if path == s.cfg.Kubeconfig {
			do += ", or choose another --write-kubeconfig"
		}
		f.errorf("a folder that Knarr writes to is not writable", path, fmt.Sprintf("%s: %v", at, err), do)
	}
	return "all folders outside of the data dir can be written"
}

func (s *survey) dataDirWritable() bool {
	return unix.Access(existing(s.cfg.DataDir), unix.W_OK|unix.X_OK) == nil
}

// checkSnapshotter probes overlays in the data dir. Where the user has chosen
// nothing, image layers are copied instead.
func (s *survey) checkSnapshotter(f *findings) string {
	if s.cfg.Snapshotter != "overlayfs" || !s.dataDirWritable() {
		return s.cfg.Snapshotter
	}
	if !s.filesystem("overlay") {
		_ = s.kernel().LoadModule("overlay") // the probe below tells
	}
	err := s.kernel().Overlay(s.cfg.DataDir)
	if err == nil {
		return "overlayfs works in " + s.cfg.DataDir
	}
	where := s.cfg.DataDir
	if mt, ok := mountOf(s.mountTable(), existing(s.cfg.DataDir)); ok {
		where += ", which lies on " + mt.fstype
	}
	const why, do = "containers' filesystems are overlays: ", "use ext4, xfs or btrfs for it"
	if s.cfg.SnapshotterGiven {
		f.errorf("overlayfs does not work in the data dir", where, why+err.Error(), do+", or --snapshotter=native (slower, takes more space)")
		return ""
	}
	s.snapshotter = "native"
	f.warnf("overlayfs does not work in the data dir", where, why+err.Error()+"; the snapshotter native stands in, which copies image layers: slower, and takes more space",
		do+", or give --snapshotter=native to hear no more of it")
	return ""
}

func (s *survey) filesystem(name string) bool {
	for line := range strings.Lines(s.read("/proc/filesystems")) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
			return true
		}
	}
	return false
}

// checkDatabase looks at what the store's file will lie on.
func (s *survey) checkDatabase(f *findings) string {
	if !s.dataDirWritable() {
		return ""
	}
	mt, _ := mountOf(s.mountTable(), existing(s.cfg.DataDir))
	where := fmt.Sprintf("%s, which lies on %s", s.cfg.DataDir, mt.fstype)
	if err := s.kernel().Database(s.cfg.DataDir); err != nil {
		f.errorf("SQLite does not work in the data dir", where, "it locks and maps its files: "+err.Error(), "use a local filesystem (ext4, xfs, btrfs), or choose another --data-dir")
		return ""
	}
	switch {
	case remote(mt.fstype):
		f.warnf("the database lies on a network", where, "that it survives a power cut is up to the server there, and a lost connection stops the cluster",
			"use a local disk, or choose another --data-dir")
	case mt.fstype == "tmpfs" || mt.fstype == "ramfs":
		f.warnf("the database lies in memory", where, "the cluster is gone after a reboot", "use a disk, or choose another --data-dir")
	case mt.fstype == "overlay":
		f.warnf("the database lies in a layer", where, "a container's layer goes with the container, and the cluster with it", "mount a volume there (docker run -v knarr:"+s.cfg.DataDir+")")
	}
	return "SQLite works on " + mt.fstype
}

// remote tells whether files of this kind of file system are on another machine.
func remote(fstype string) bool {
	return slices.Contains([]string{"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "afs", "9p", "virtiofs", "glusterfs"}, fstype) ||
		strings.HasPrefix(fstype, "fuse.") && fstype != "fuse.fuse-overlayfs"
}

// Less room than this is told. The kubelet evicts pods at a twentieth.
const (
	minFreePart  = 20
	minFreeBytes = 1 << 30
)

func (s *survey) checkDisk(f *findings) string {
	dir := existing(s.cfg.DataDir)
	space, err := s.kernel().Space(dir)
	if err != nil {
		f.warnf("free space is not known", dir, err.Error(), "look with df")
		return ""
	}
	const do = "make room, or choose another --data-dir"
	text := fmt.Sprintf("%s of %s are free", size(space.Free), size(space.Size))
	if space.Free < space.Size/minFreePart || space.Free < minFreeBytes {
		f.warnf("only "+text, dir, "below a twentieth pods are evicted, and without any the cluster takes no writes", do)
	}
	if space.Inodes > 0 && space.FreeInodes < space.Inodes/minFreePart {
		f.warnf(fmt.Sprintf("only %d of %d inodes are free", space.FreeInodes, space.Inodes), dir, "each file takes one, and below a twentieth pods are evicted", do)
	}
	return text
}

// checkModes looks for what others on this machine may read or write.
func (s *survey) checkModes(f *findings) string {
	mode := func(path string) os.FileMode {
		info, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return info.Mode().Perm()
	}
	const others = 0o022
	if m := mode(s.cfg.DataDir); m&others != 0 {
		f.warnf("others may write to the data dir", fmt.Sprintf("%s, mode %#o", s.cfg.DataDir, m), "root runs programs from it", "chmod go-w "+s.cfg.DataDir)
	}
	if m := mode(s.cfg.ConfigFile); m&others != 0 {
		f.warnf("others may write the configuration", fmt.Sprintf("%s, mode %#o", s.cfg.ConfigFile, m), "it says what root runs", "chmod go-w "+s.cfg.ConfigFile)
	}
	if m := mode(s.cfg.Kubeconfig); m&^os.FileMode(s.cfg.KubeconfigMode) != 0 {
		f.warnf("others may read the administrator's kubeconfig", fmt.Sprintf("%s, mode %#o", s.cfg.Kubeconfig, m), "who reads it rules the cluster",
			fmt.Sprintf("chmod %o %s, or give --write-kubeconfig-mode", s.cfg.KubeconfigMode, s.cfg.Kubeconfig))
	}
	if s.cfg.ServerDir == "" {
		return "nothing is open to others"
	}
	const private = 0o077
	for _, key := range s.keys() {
		if m := mode(key); m&private != 0 {
			f.warnf("others may read a key", fmt.Sprintf("%s, mode %#o", key, m), "who knows it can speak for the cluster; Knarr closes it at start", "chmod 600 "+key+", and replace it if others use this machine")
		}
	}
	store := filepath.Join(s.cfg.ServerDir, "db", "state.db")
	if m := mode(store); m&private != 0 && mode(s.cfg.ServerDir)&private != 0 && mode(filepath.Dir(store))&private != 0 {
		f.warnf("others may read the store", fmt.Sprintf("%s, mode %#o", store, m), "it holds all Secrets", "chmod 700 "+s.cfg.ServerDir)
	}
	return "nothing is open to others"
}

// keys are the files of the certificates' folder, every one of which may hold a key.
func (s *survey) keys() []string {
	dir := filepath.Join(s.cfg.ServerDir, "tls")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var keys []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext == ".key" || ext == ".pem" {
			keys = append(keys, filepath.Join(dir, e.Name()))
		}
	}
	return keys
}

func (s *survey) checkStoreVersion(f *findings) string {
	if s.cfg.ServerDir == "" {
		return ""
	}
	err := CheckStoreVersion(s.cfg.ServerDir, s.cfg.KubeVersion)
	if newer := (*NewerStoreError)(nil); errors.As(err, &newer) {
		f.errorf("the store was last used by "+newer.Recorded, newer.Dir, newer.why(), newer.advice())
	} else if err != nil {
		f.errorf("the store's version is not known", filepath.Join(s.cfg.ServerDir, "version"), err.Error(), "write there the version that last ran, such as "+s.cfg.KubeVersion)
	}
	return "the store suits " + s.cfg.KubeVersion
}

func (s *survey) checkSecondKnarr(f *findings) string {
	// An agent looks again when it knows its cluster; it holds the lock by then.
	if pid := s.holder(); pid != 0 && pid != os.Getpid() {
		f.errorf("another Knarr uses the data dir", fmt.Sprintf("%s, process %d", s.cfg.DataDir, pid), "two would spoil each other's state",
			(&InUseError{DataDir: s.cfg.DataDir, PID: pid}).advice())
	}
	return "no other Knarr uses the data dir"
}
