package library

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

const (
	root    = "../.."
	ownPath = "github.com/knarr-dev/knarr"
)

// TestAFreshModuleRequiresKnarr as anyone's does: by a version, from a proxy, which is
// made of this checkout. There is no replace directive, no link flag and no file that
// git ignores.
func TestAFreshModuleRequiresKnarr(t *testing.T) {
	cache := goEnv(t, "GOMODCACHE")
	// One of its own, so that the cache of modules can't hold another checkout's.
	version := fmt.Sprintf("v0.0.0-test.%d", time.Now().UnixNano())
	t.Cleanup(func() { forget(t, cache, version) })
	proxy := t.TempDir()
	publish(t, proxy, version)

	dir := t.TempDir()
	copyTree(t, "testdata/operator", dir)
	mod := "module example.org/operator\n\ngo 1.26.0\n\nrequire " + ownPath + " " + version + "\n"
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(mod), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		// Most of what Knarr itself requires is in the cache, since this test was compiled.
		cmd.Env = append(os.Environ(), "GOPROXY=file://"+proxy+",file://"+filepath.Join(cache, "cache", "download")+","+goEnv(t, "GOPROXY"),
			"GOSUMDB=off", "GONOSUMDB=", "GOFLAGS="+flags(t), "GOWORK=off")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	out := run("test", "-vet=off", "-count=1", "-v", ".")
	if !strings.Contains(out, "server is v1.36.4") || !strings.Contains(out, "--- PASS: TestNamespace") {
		t.Errorf("%s", out)
	}
	run("build", "./...")
	text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil || bytes.Contains(text, []byte("replace")) {
		t.Errorf("%v, %s", err, text)
	}
}

// flags are those of this build, so that what is compiled can be used again, without
// the archive of executables.
func flags(t *testing.T) string {
	t.Helper()
	return strings.ReplaceAll(goEnv(t, "GOFLAGS"), ",bundle", "") + " -mod=mod"
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// publish lays the checkout into a proxy: what git has, and what it would take.
func publish(t *testing.T, proxy, version string) {
	t.Helper()
	list := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	var files []zip.File
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		if _, err := os.Stat(filepath.Join(root, name)); err == nil {
			files = append(files, checkedOut(name))
		}
	}
	dir := filepath.Join(proxy, ownPath, "@v")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	archive, err := os.Create(filepath.Join(dir, version+".zip"))
	if err != nil {
		t.Fatal(err)
	}
	err = zip.Create(archive, module.Version{Path: ownPath, Version: version}, files)
	if err := errors.Join(err, archive.Close()); err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"list":            version + "\n",
		version + ".info": fmt.Sprintf(`{"Version":%q,"Time":%q}`, version, time.Now().UTC().Format(time.RFC3339)),
		version + ".mod":  string(mod),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// checkedOut is a file of the checkout, by its path in it.
type checkedOut string

var _ zip.File = checkedOut("")

func (f checkedOut) Path() string                 { return string(f) }
func (f checkedOut) Lstat() (fs.FileInfo, error)  { return os.Lstat(filepath.Join(root, string(f))) }
func (f checkedOut) Open() (io.ReadCloser, error) { return os.Open(filepath.Join(root, string(f))) }

// copyTree copies Go files whose names end with .txt, lest they be taken for ours.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(from), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, path), 0o755)
		}
		data, err := os.ReadFile(filepath.Join(from, path))
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, strings.TrimSuffix(path, ".txt")), data, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// forget removes what go has unpacked of our version.
func forget(t *testing.T, cache, version string) {
	t.Helper()
	unpacked := filepath.Join(cache, ownPath+"@"+version)
	// Folders of the cache can't be written.
	err := filepath.WalkDir(unpacked, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return os.Chmod(path, 0o755)
		}
		return err
	})
	if err == nil {
		err = os.RemoveAll(unpacked)
	}
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	files, err := filepath.Glob(filepath.Join(cache, "cache", "download", ownPath, "@v", version+".*"))
	if err != nil {
		t.Error(err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Error(err)
		}
	}
}
