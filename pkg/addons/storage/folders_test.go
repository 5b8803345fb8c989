package storage

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// disk is a node's path for volumes, beside a folder that is none of ours.
func disk(t *testing.T) (f *Folders, path, precious string) {
	t.Helper()
	dir := t.TempDir()
	path, precious = filepath.Join(dir, "volumes"), filepath.Join(dir, "precious")
	if err := os.Mkdir(precious, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(precious, "note"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if text, err := os.ReadFile(filepath.Join(precious, "note")); err != nil || string(text) != "kept" {
			t.Errorf("what is none of ours: %q, %v", text, err)
		}
	})
	return &Folders{Paths: func(context.Context) ([]string, error) { return []string{path}, nil }}, path, precious
}

func (f *Folders) must(t *testing.T, op, path, words string) {
	t.Helper()
	o := f.do(t.Context(), job{ID: "7", Op: op, Volume: filepath.Base(path), Path: path, Bytes: 1 << 20})
	if words == "" && o.Error != "" || !strings.Contains(o.Error, words) || o.ID != "7" {
		t.Fatalf("%s %s: %+v, want %q", op, path, o, words)
	}
}

func isThere(t *testing.T, path string, want bool) {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || want != (err == nil) {
		t.Errorf("%s: %v", path, err)
	}
}

func TestVolumeIsMadeAndRemovedAsOftenAsAsked(t *testing.T) {
	f, path, _ := disk(t)
	v := filepath.Join(path, "ns", "v")
	for range 2 {
		f.must(t, opMake, v, "")
		st, err := os.Stat(v)
		if err != nil || st.Mode().Perm() != 0o777 {
			t.Fatalf("%v, %v", st, err)
		}
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the folder of all volumes: %v, %v", st, err)
	}
	// What is there has its own mode, and stays.
	for _, err := range []error{os.WriteFile(filepath.Join(v, "note"), nil, 0o600), os.Chmod(v, 0o750)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	f.must(t, opMake, v, "")
	if st, err := os.Stat(v); err != nil || st.Mode().Perm() != 0o750 {
		t.Errorf("a folder with data: %v, %v", st, err)
	}
	isThere(t, filepath.Join(v, "note"), true)
	for range 2 {
		f.must(t, opRemove, v, "")
		isThere(t, v, false)
	}
}

func TestRemovalNeverLeavesTheNodesPath(t *testing.T) {
	f, path, precious := disk(t)
	v := filepath.Join(path, "v")
	f.must(t, opMake, v, "")
	for name, to := range map[string]string{"link": precious, "root": "/", "up": "../..", "file": filepath.Join(precious, "note")} {
		if err := os.Symlink(to, filepath.Join(v, name)); err != nil {
			t.Fatal(err)
		}
	}
	f.must(t, opRemove, v, "")
	isThere(t, v, false)

	if err := os.Symlink(precious, v); err != nil {
		t.Fatal(err)
	}
	f.must(t, opRemove, v, "is a symbolic link")
	f.must(t, opRemove, filepath.Join(v, "note"), "is a symbolic link")
	f.must(t, opMake, v, "is a symbolic link")
	f.must(t, opMake, filepath.Join(v, "new"), "is a symbolic link")
	for _, outside := range []string{precious, path, filepath.Dir(path), path + "/../precious", "/", ""} {
		f.must(t, opRemove, outside, "outside")
		f.must(t, opMake, outside, "outside")
	}
	f.must(t, "burn", filepath.Join(path, "w"), `no job "burn"`)
}

func TestRemovalWaitsForAMissingDisk(t *testing.T) {
	f, path, _ := disk(t)
	f.must(t, opRemove, filepath.Join(path, "v"), "is its disk mounted?")
}

func TestSizesAreWrittenForPeople(t *testing.T) {
	for bytes, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 64 << 20: "64 MiB", 3 << 29: "1.5 GiB", 1 << 50: "1 PiB"} {
		if got := human(bytes); got != want {
			t.Errorf("%d: %s, want %s", bytes, got, want)
		}
	}
}

// mounted runs a function on a thread with mounts of its own.
func mounted(t *testing.T, do func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its mounts
		err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			do()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Skip("mounts of one's own: ", err)
	}
}

func TestRemovalStopsAtAMount(t *testing.T) {
	f, path, precious := disk(t)
	v := filepath.Join(path, "v")
	f.must(t, opMake, v, "")
	mounted(t, func() {
		inner := filepath.Join(v, "a mount")
		err := os.Mkdir(inner, 0o755)
		if err == nil {
			err = unix.Mount(precious, inner, "", unix.MS_BIND, "")
		}
		if err != nil {
			t.Error(err)
			return
		}
		if o := f.do(context.Background(), job{Op: opRemove, Path: v}); !strings.Contains(o.Error, "something is mounted at "+inner) {
			t.Errorf("%+v", o)
		}
	})
	isThere(t, filepath.Join(v, "a mount"), true)
}

// On a kernel without ext4's quotas, such as our CI's, this is skipped.
func TestVolumeIsHeldToItsSizeWhereTheFileSystemCan(t *testing.T) {
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 64<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, "-q", "-O", "quota,project", "-E", "quotatype=prjquota", image).CombinedOutput(); err != nil {
		t.Skipf("%v: %s", err, out)
	}
	skip := ""
	mounted(t, func() {
		if out, err := exec.Command("mount", "-o", "loop,prjquota", image, at).CombinedOutput(); err != nil {
			skip = string(out)
			return
		}
		defer func() { _ = exec.Command("umount", at).Run() }()
		f := &Folders{Paths: func(context.Context) ([]string, error) { return []string{at}, nil }}
		v := filepath.Join(at, "v")
		if o := f.do(context.Background(), job{Op: opMake, Volume: "v", Path: v, Bytes: 1 << 20}); o.Error != "" || o.Unlimited != "" {
			t.Errorf("%+v", o)
			return
		}
		// As a container that has not been given SYS_RESOURCE, with which Linux looks
		// at no limits of ext4.
		write := exec.Command("setpriv", "--bounding-set=-sys_resource", "--inh-caps=-all", "dd", "if=/dev/zero", "of="+filepath.Join(v, "much"), "bs=64k", "count=32")
		if out, err := write.CombinedOutput(); err == nil || !bytes.Contains(bytes.ToLower(out), []byte(unix.ENOSPC.Error())) && !bytes.Contains(bytes.ToLower(out), []byte(unix.EDQUOT.Error())) {
			t.Errorf("2 MiB written to a volume of 1: %v: %s", err, out)
		}
		if o := f.do(context.Background(), job{Op: opRemove, Path: v}); o.Error != "" {
			t.Errorf("%+v", o)
		}
	})
	if skip != "" {
		t.Skip(skip)
	}
}
