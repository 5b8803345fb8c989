package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Folders makes and removes volumes on the machine that it is on.
//
// All of it happens within one of the node's paths, which is opened first: no
// name, no link and no change of a folder meanwhile leads out of it.
type Folders struct {
	// Paths are the folders that this node may have volumes in.
	Paths func(context.Context) ([]string, error)
}

// The kinds of a job.
const (
	opMake   = "make"
	opRemove = "remove"
)

// job is what a node is asked to do. Doing it twice is as good as once.
type job struct {
	ID   string `json:"id"`
	Node string `json:"node"`
	Op   string `json:"op"`
	// Volume is the name of the PersistentVolume.
	Volume string `json:"volume"`
	// Path is where the volume is or shall be.
	Path string `json:"path"`
	// Bytes is how large it may become.
	Bytes int64 `json:"bytes,omitempty"`
}

// outcome is what a node answers.
type outcome struct {
	ID    string `json:"id"`
	Error string `json:"error,omitempty"`
	// Unlimited is why nothing holds the volume to its size, with figures; empty
	// if something does.
	Unlimited string `json:"unlimited,omitempty"`
}

// do does a job.
func (f *Folders) do(ctx context.Context, j job) outcome {
	o := outcome{ID: j.ID}
	paths, err := f.Paths(ctx)
	var base, folder string
	if err == nil {
		base, folder, err = split(j.Path, paths)
	}
	if err == nil {
		switch j.Op {
		case opMake:
			o.Unlimited, err = makeVolume(base, folder, j.Volume, j.Bytes)
		case opRemove:
			err = removeVolume(base, folder)
		default:
			err = fmt.Errorf("this version of Knarr knows no job %q", j.Op)
		}
	}
	if err != nil {
		o.Error = err.Error()
	}
	return o
}

// makeVolume makes the folder, for any user of any pod to write to, and bounds
// its size where the file system can.
func makeVolume(base, folder, volume string, size int64) (unlimited string, err error) {
	// The volumes in it are open to all; who is not root here gets nowhere near.
	if err := os.MkdirAll(base, 0o700); err != nil {
		return "", fmt.Errorf("make the folder of volumes: %w", err)
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		return "", fmt.Errorf("open the folder of volumes: %w", err)
	}
	defer root.Close()
	if err := noLinks(root, base, folder); err != nil {
		return "", err
	}
	parent := filepath.Dir(folder)
	if err := root.MkdirAll(parent, 0o755); err != nil {
		return "", fmt.Errorf("make folder %s: %w", filepath.Join(base, parent), err)
	}
	err = root.Mkdir(folder, 0o777)
	made := err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("make folder %s: %w", filepath.Join(base, folder), err)
	}
	dir, err := root.Open(folder)
	if err != nil {
		return "", fmt.Errorf("open folder %s: %w", filepath.Join(base, folder), err)
	}
	defer dir.Close()
	if st, err := dir.Stat(); err != nil || !st.IsDir() {
		return "", errors.Join(err, fmt.Errorf("%s exists and is no folder", filepath.Join(base, folder)))
	}
	if !made { // by an attempt before, or with a user's data, whose mode is theirs
		names, err := dir.Readdirnames(1)
		made = err != nil && len(names) == 0
	}
	if made {
		if err := dir.Chmod(0o777); err != nil { // the umask has taken some bits
			return "", fmt.Errorf("open folder %s to pods: %w", filepath.Join(base, folder), err)
		}
	}
	if err := limit(dir, volume, size); err != nil {
		unlimited = fmt.Sprintf("nothing holds the volume to its %s: %v; %s", human(size), err, room(dir))
	}
	return unlimited, persist(root, folder)
}

// persist makes a new folder outlive a power cut.
func persist(root *os.Root, folder string) error {
	for dir := folder; ; dir = filepath.Dir(dir) {
		f, err := root.Open(dir)
		if err != nil {
			return fmt.Errorf("open folder %s: %w", dir, err)
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return fmt.Errorf("write folder %s to disk: %w", dir, err)
		}
		if dir == "." {
			return nil
		}
	}
}

// removeVolume removes the folder and all that is in it. Links in it go, and what
// they lead to stays.
func removeVolume(base, folder string) error {
	root, err := os.OpenRoot(base)
	if err != nil {
		return fmt.Errorf("open the folder of volumes (is its disk mounted?): %w", err)
	}
	defer root.Close()
	if err := noLinks(root, base, folder); err != nil {
		return err
	}
	path := filepath.Join(base, folder)
	if at, err := mountBelow(path); err != nil || at != "" {
		return errors.Join(err, fmt.Errorf("remove %s: something is mounted at %s, and would be emptied too; unmount it", path, at))
	}
	dir, err := root.Open(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open folder %s: %w", path, err)
	}
	unlimit(dir)
	dir.Close()
	if err := root.RemoveAll(folder); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// noLinks refuses a folder that is reached over a symbolic link. Those that come
// in between still can't lead out of root.
func noLinks(root *os.Root, base, folder string) error {
	at := ""
	for part := range strings.SplitSeq(folder, "/") {
		at = filepath.Join(at, part)
		st, err := root.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look at %s: %w", filepath.Join(base, at), err)
		}
		if st.Mode()&fs.ModeSymlink != 0 {
			return fmt.Errorf("%s is a symbolic link, which is not followed; remove it", filepath.Join(base, at))
		}
	}
	return nil
}

// mountBelow is where something is mounted at or below a path; empty if nowhere.
func mountBelow(path string) (string, error) {
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("list mounts: %w", err)
	}
	// Links that an administrator made on the way to the node's path.
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		real = path // it does not exist
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if at := unescape(f[4]); at == real || strings.HasPrefix(at, real+"/") {
			return at, nil
		}
	}
	return "", nil
}

// unescape reads the octal numbers that mountinfo writes for spaces and the like.
func unescape(text string) string {
	if !strings.Contains(text, `\`) {
		return text
	}
	var b []byte
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+3 < len(text) {
			if n, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				b = append(b, byte(n))
				i += 3
				continue
			}
		}
		b = append(b, text[i])
	}
	return string(b)
}

// room tells how full the file system is.
func room(dir *os.File) string {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return "how much room there is can't be told: " + err.Error()
	}
	unit := uint64(st.Bsize)
	return fmt.Sprintf("its file system has %s free of %s", human(int64(st.Bavail*unit)), human(int64(st.Blocks*unit)))
}

// human writes a number of bytes with the largest unit that fits.
func human(bytes int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	n, unit := float64(bytes), 0
	for n >= 1024 && unit < len(units)-1 {
		n, unit = n/1024, unit+1
	}
	return strings.TrimSuffix(strconv.FormatFloat(n, 'f', 1, 64), ".0") + " " + units[unit]
}

// used are the paths of other volumes on a node that overlap with one.
func used(path string, others []string) string {
	i := slices.IndexFunc(others, func(o string) bool { return overlap(path, o) })
	if i < 0 {
		return ""
	}
	return others[i]
}
