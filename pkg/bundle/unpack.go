package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// What lies in the bundle folder beside the contents, which are in folders
// named by their ID.
const (
	currentLink  = "current"  // to the contents in use
	previousLink = "previous" // to those in use before
	lockFile     = ".lock"
	partPrefix   = ".part-" // contents that are not whole yet, or no longer

	// In the contents' folder itself:
	bootFile    = ".boot"    // the boot in which the contents were written
	settledFile = ".settled" // exists once they are on the disk
)

// Unpacked is a bundle whose eager files are in place. It is safe for
// concurrent use.
type Unpacked struct {
	// BinDir holds the executables: runc, containerd-shim-runc-v2 and nft. It
	// leads through a link that each version turns to its own contents, so a path
	// handed to a long-lived process (a shim calls runc as long as its pod lives)
	// outlasts upgrades.
	BinDir string
	// CNIDir holds the CNI plugins bridge, host-local, loopback and portmap,
	// through the same link.
	CNIDir string
	// Dir is the folder named by the contents' ID.
	Dir string

	archive *Archive
	lazy    *sync.Mutex
}

// Unpack puts the bundle's eager files into dir, normally
// <data-dir>/bundle, and returns where they are. If they are there already,
// nothing is read or written but a few names.
//
// A crash at any moment, of the process or of the machine, leaves either whole
// contents or some that the next call replaces. Unpack does not wait for the
// disk, though: contents that are not yet on it count only until the machine
// next boots. Settle makes them last. Two processes may call Unpack at once;
// the second waits for the first. Contents other than these and the ones in
// use before are removed.
func (a *Archive) Unpack(dir string) (*Unpacked, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("unpack bundle: %w", err)
	}
	current := filepath.Join(dir, currentLink)
	u := &Unpacked{
		BinDir: filepath.Join(current, "bin"), CNIDir: filepath.Join(current, "cni"),
		Dir: filepath.Join(dir, a.id), archive: a, lazy: new(sync.Mutex),
	}
	if to, err := os.Readlink(current); err == nil && to == a.id && u.whole() {
		return u, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("unpack bundle: %w", err)
	}
	unlock, err := lock(filepath.Join(dir, lockFile))
	if err != nil {
		return nil, fmt.Errorf("unpack bundle: %w", err)
	}
	defer unlock()
	if err := executable(dir); err != nil {
		return nil, fmt.Errorf("unpack bundle: %w", err)
	}
	if err := a.place(dir, u); err != nil {
		return nil, fmt.Errorf("unpack bundle into %s: %w", dir, err)
	}
	return u, nil
}

// place does Unpack's work under the lock.
func (a *Archive) place(dir string, u *Unpacked) error {
	if err := removeParts(dir); err != nil {
		return err
	}
	if !u.whole() {
		part, err := os.MkdirTemp(dir, partPrefix)
		if err != nil {
			return err
		}
		defer os.RemoveAll(part)
		if err := os.Chmod(part, 0o755); err != nil {
			return err
		}
		if err := a.write(part); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(part, bootFile), []byte(bootID()), 0o644); err != nil {
			return err
		}
		// Contents that are there but not whole make room. What runs from them
		// keeps its open files.
		if err := os.Rename(u.Dir, part+"-old"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Rename(part, u.Dir); err != nil {
			return err
		}
		if err := os.RemoveAll(part + "-old"); err != nil {
			return err
		}
	}
	was, err := os.Readlink(filepath.Join(dir, currentLink))
	if err == nil && was != a.id {
		err = link(dir, previousLink, was)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if was != a.id {
		if err := link(dir, currentLink, a.id); err != nil {
			return err
		}
	}
	return prune(dir)
}

// whole reports whether the contents can be used: every eager file is there in
// its size, and they were either brought to the disk or written since the
// machine booted.
func (u *Unpacked) whole() bool {
	if _, err := os.Lstat(filepath.Join(u.Dir, settledFile)); err != nil {
		boot, err := os.ReadFile(filepath.Join(u.Dir, bootFile))
		if err != nil || len(boot) == 0 || string(boot) != bootID() {
			return false
		}
	}
	for _, g := range u.archive.index.Groups {
		if g.Lazy {
			continue
		}
		for _, f := range g.Files {
			st, err := os.Lstat(filepath.Join(u.Dir, f.Name))
			if err != nil || st.Size() != f.Size {
				return false
			}
		}
	}
	return true
}

// Settle waits until the contents are on the disk and marks them so, which
// lets them outlive a power cut. It costs nothing when that was done before.
// Call it once the start is over: on a slow disk it takes seconds.
func (u *Unpacked) Settle() error {
	mark := filepath.Join(u.Dir, settledFile)
	if _, err := os.Lstat(mark); err == nil {
		return nil
	}
	if err := syncTree(u.Dir); err != nil {
		return fmt.Errorf("bring bundle to the disk: %w", err)
	}
	if err := os.WriteFile(mark, nil, 0o644); err != nil {
		return fmt.Errorf("bring bundle to the disk: %w", err)
	}
	return nil
}

// Path returns where a file of the bundle is, by its name in the archive, such
// as "doc/LICENSES". A file that Unpack left packed is unpacked now, with all of
// its group, and stays.
func (u *Unpacked) Path(name string) (string, error) {
	g, f, err := u.archive.find(name)
	if err != nil {
		return "", err
	}
	full := filepath.Join(u.Dir, f.Name)
	if !g.Lazy {
		return full, nil
	}
	u.lazy.Lock()
	defer u.lazy.Unlock()
	if st, err := os.Lstat(full); err == nil && st.Size() == f.Size {
		return full, nil
	}
	// A folder of its own beside the others, so that a cut-off attempt is
	// swept up with theirs.
	dir := filepath.Dir(u.Dir)
	unlock, err := lock(filepath.Join(dir, lockFile))
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	defer unlock()
	part, err := os.MkdirTemp(dir, partPrefix)
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	defer os.RemoveAll(part)
	if err := u.archive.writeGroup(part, g); err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	// These come one by one after Settle may have spoken for the folder, so
	// each is on the disk before it gets its name.
	if err := syncTree(part); err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	for _, f := range g.Files {
		to := filepath.Join(u.Dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return "", fmt.Errorf("unpack %s: %w", name, err)
		}
		if err := os.Rename(filepath.Join(part, f.Name), to); err != nil {
			return "", fmt.Errorf("unpack %s: %w", name, err)
		}
	}
	return full, nil
}

// Image returns the path of an image archive in OCI layout, such as "pause".
func (u *Unpacked) Image(name string) (string, error) {
	return u.Path("images/" + name + ".tar")
}

// removeParts sweeps up what a crash left. It is called under the lock, so no
// other process is still writing there.
func removeParts(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), partPrefix) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// prune removes contents that neither link leads to.
func prune(dir string) error {
	keep := map[string]bool{}
	for _, l := range []string{currentLink, previousLink} {
		if to, err := os.Readlink(filepath.Join(dir, l)); err == nil {
			keep[to] = true
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		// Only what is named like contents is ours to remove.
		if e.IsDir() && len(e.Name()) == 64 && !keep[e.Name()] {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// link points dir/name at to, in one step.
func link(dir, name, to string) error {
	tmp := filepath.Join(dir, partPrefix+name)
	if err := os.Symlink(to, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, name))
}

// executable returns an error if programs in dir could not be run.
func executable(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("ask about the file system of %s: %w", dir, err)
	}
	if st.Flags&unix.ST_NOEXEC != 0 {
		return fmt.Errorf("%s is on a file system mounted noexec, from which runc and nft can't run; mount it exec or choose another --data-dir", dir)
	}
	return nil
}

// lock waits for an exclusive lock that ends with the process.
func lock(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return func() { f.Close() }, nil
}

// bootID identifies the running boot; it is empty if the kernel won't say, and
// then equal to none.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
