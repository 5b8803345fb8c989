package lab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/throwaway/userns"
)

// A host's folder holds its disk, and what it changes in /etc.
const (
	diskDir = "disk"
	etcDir  = "etc"
	etcWork = "etc.work"
)

// privateDirs are the top-level folders in which a host sees nothing of the
// machine's.
func privateDirs() []string { return []string{"var", "tmp", "root", "opt", "run"} }

// builtDirs are the top-level folders that are put together for each host.
func builtDirs() []string { return []string{"proc", "sys", "dev", "etc", "run"} }

// makeDisk makes what is missing of the host's folder.
func (h *Host) makeDisk() error {
	disk := filepath.Join(h.dir, diskDir)
	for path, mode := range map[string]fs.FileMode{
		disk:                           0o755,
		filepath.Join(h.dir, etcWork):  0o755,
		filepath.Join(h.dir, etcDir):   0o755,
		filepath.Join(disk, "var/lib"): 0o755,
		filepath.Join(disk, "var/log"): 0o755,
		filepath.Join(disk, "var/tmp"): 0o777 | fs.ModeSticky,
		filepath.Join(disk, "tmp"):     0o777 | fs.ModeSticky,
		filepath.Join(disk, "root"):    0o700,
		filepath.Join(disk, "opt"):     0o755,
	} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
	}
	for _, name := range []string{"run", "lock"} {
		target := map[string]string{"run": "../run", "lock": "../run/lock"}[name]
		err := os.Symlink(target, filepath.Join(disk, "var", name))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return h.makeEtc()
}

// makeEtc writes the upper layer of the host's /etc, unless it is there.
func (h *Host) makeEtc() error {
	etc := filepath.Join(h.dir, etcDir)
	// What the machine may have in these is none of the host's business.
	for _, name := range []string{"cni", "knarr", "containerd"} {
		dir := filepath.Join(etc, name)
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := unix.Setxattr(dir, opaque(), []byte("y"), 0); err != nil {
			return fmt.Errorf("hide the machine's /etc/%s: %w", name, err)
		}
	}
	id := make([]byte, 16)
	rand.Read(id) // never fails, see its documentation
	for name, content := range map[string]string{
		"hostname":    h.cfg.Hostname + "\n",
		"hosts":       fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", h.addr, h.cfg.Hostname),
		"resolv.conf": h.cfg.ResolvConf,
		"machine-id":  hex.EncodeToString(id) + "\n",
	} {
		f, err := os.OpenFile(filepath.Join(etc, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		_, err = f.WriteString(content)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// opaque is the attribute of a folder that hides what layers below have of it. In a
// user namespace the kernel heeds another one, of the file's owner.
func opaque() string {
	if userns.Inside() {
		return "user.overlay.opaque"
	}
	return "trusted.overlay.opaque"
}

// A tree is a detached copy of a part of the machine's mounts, or a link.
type tree struct {
	fd     int
	link   string // where it leads, if it is one
	target string // in the host
	folder bool
}

// buildRoot puts the host's file system together and makes it this process's.
func buildRoot(spec initSpec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("part from the machine's mounts: %w", err)
	}
	// All copies are taken before anything is mounted, so that none of them
	// contains the host itself.
	machine, err := machineTrees()
	if err != nil {
		return err
	}
	binds, err := bindTrees(spec.Binds)
	if err != nil {
		return err
	}
	links, err := cgroupLinks()
	if err != nil {
		return err
	}
	if err := os.Chdir(spec.Dir); err != nil {
		return err
	}
	disk, err := copyTree(diskDir, "/", false)
	if err != nil {
		return err
	}
	root := filepath.Join(spec.Dir, diskDir)
	if err := disk.attach(root); err != nil {
		return err
	}
	for _, t := range machine {
		if err := t.attach(root); err != nil {
			return err
		}
	}
	// Relative names: the host's folder may have a comma in its own.
	layers := "lowerdir=/etc,upperdir=" + etcDir + ",workdir=" + etcWork
	if spec.UserNamespace {
		layers += ",userxattr"
	}
	if err := mountAt(filepath.Join(root, "etc"), "overlay", 0, layers); err != nil {
		return fmt.Errorf("%w: does %s lie on ext4 or xfs?", err, spec.Dir)
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := mountKernel(spec.Cgroups, links); err != nil {
		return err
	}
	for _, t := range binds {
		if err := t.attach(root); err != nil {
			return err
		}
	}
	return pivot()
}

// pivot makes the working folder the root and lets go of the machine's.
func pivot() error {
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the machine's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// As systemd leaves it: the kubelet's mount propagation builds on it.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts within the host: %w", err)
	}
	return nil
}

// mountKernel mounts what the kernel shows, below the working folder.
func mountKernel(cg cgroups, links map[string]string) error {
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := mountAt("proc", "proc", safe, ""); err != nil {
		return err
	}
	if err := mountAt("sys", "sysfs", safe, ""); err != nil {
		return err
	}
	if err := mountAt("run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	if _, err := os.Stat("dev/shm"); err == nil {
		if err := mountAt("dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(cg, cgroup.pure) {
		if err := mountAt("sys/fs/cgroup", "tmpfs", safe, "mode=755"); err != nil {
			return err
		}
	}
	for _, c := range cg {
		point, kind := c.Mount[1:], "cgroup"
		if c.V2 {
			kind = "cgroup2"
		}
		if err := mountAt(point, kind, safe, c.Options); err != nil {
			return err
		}
		if !c.V2 {
			continue
		}
		if err := os.Mkdir(filepath.Join(point, leaf), 0o755); err != nil {
			return fmt.Errorf("make leaf cgroup: %w", err)
		}
		if err := os.WriteFile(filepath.Join(point, leaf, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join leaf cgroup: %w", err)
		}
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join("sys/fs/cgroup", name)); err != nil {
			return err
		}
	}
	return nil
}

func mountAt(target, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("mount %s: %w", kind, err)
	}
	if err := unix.Mount(kind, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w", kind, data, target, err)
	}
	return nil
}

// cgroupLinks are names such as cpu for the hierarchy cpu,cpuacct.
func cgroupLinks() (map[string]string, error) {
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil, err
	}
	links := map[string]string{}
	for _, e := range entries {
		if e.Type() != fs.ModeSymlink {
			continue
		}
		if links[e.Name()], err = os.Readlink(filepath.Join(cgroupRoot, e.Name())); err != nil {
			return nil, err
		}
	}
	return links, nil
}

// machineTrees are the machine's top-level folders as a host sees them.
func machineTrees() ([]tree, error) {
	entries, err := os.ReadDir("/")
	if err != nil {
		return nil, err
	}
	var trees []tree
	for _, e := range entries {
		path := "/" + e.Name()
		if slices.Contains(privateDirs(), e.Name()) || e.Name() == "lost+found" ||
			e.Name() != "dev" && slices.Contains(builtDirs(), e.Name()) {
			continue
		}
		if e.Type() == fs.ModeSymlink {
			link, err := os.Readlink(path)
			if err != nil {
				return nil, err
			}
			trees = append(trees, tree{fd: -1, target: path, link: link})
			continue
		}
		if !e.IsDir() {
			continue
		}
		t, err := copyTree(path, path, e.Name() != "dev")
		if err != nil {
			return nil, err
		}
		trees = append(trees, t)
	}
	return trees, nil
}

// bindTrees are the files and folders that the host was promised, and the
// program that makes it, for hosts often run that again.
func bindTrees(binds []Bind) ([]tree, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var trees []tree
	top, _, _ := strings.Cut(exe[1:], "/")
	if _, err := os.Stat(exe); err == nil && slices.Contains(privateDirs(), top) {
		binds = append([]Bind{{Source: exe, Target: exe, ReadOnly: true}}, binds...)
	}
	for _, b := range binds {
		t, err := copyTree(b.Source, b.Target, b.ReadOnly)
		if err != nil {
			return nil, err
		}
		trees = append(trees, t)
	}
	return trees, nil
}

func copyTree(source, target string, readOnly bool) (tree, error) {
	info, err := os.Stat(source)
	if err != nil {
		return tree{}, fmt.Errorf("show %s in host: %w", source, err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return tree{}, fmt.Errorf("show %s in host: %w", source, err)
	}
	if readOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			return tree{}, fmt.Errorf("make %s read-only in host: %w", source, err)
		}
	}
	return tree{fd: fd, target: target, folder: info.IsDir()}, nil
}

// attach mounts the tree at its target below root, which it makes if missing.
func (t tree) attach(root string) error {
	target := filepath.Join(root, t.target)
	if t.link != "" {
		err := os.Symlink(t.link, target)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	}
	defer unix.Close(t.fd)
	if err := t.makePoint(target); err != nil {
		return fmt.Errorf("mount %s in host: %w", t.target, err)
	}
	if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s in host: %w", t.target, err)
	}
	return nil
}

func (t tree) makePoint(target string) error {
	if t.folder {
		return os.MkdirAll(target, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}
