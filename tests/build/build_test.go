// Package build tests what `make` makes: the executable itself.
package build

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const knarr = "../../dist/knarr"

func sum(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatalf("%v; run make first", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return h.Sum(nil)
}

func TestTwoBuildsAreTheSameBytes(t *testing.T) {
	var sums [][]byte
	for _, name := range []string{"first", "second"} {
		out := filepath.Join(t.TempDir(), name)
		if b, err := exec.Command("make", "-C", "../..", "build", "OUT="+out).CombinedOutput(); err != nil {
			t.Fatalf("make build: %v\n%s", err, b)
		}
		sums = append(sums, sum(t, out))
	}
	if !bytes.Equal(sums[0], sums[1]) {
		t.Error("two builds of one tree differ")
	}
}

func TestExecutableIsStaticAndStripped(t *testing.T) {
	f, err := elf.Open(knarr)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("it has a program header %v, so it is not fully static", p.Type)
		}
	}
	if f.Section(".symtab") != nil || f.Section(".debug_info") != nil {
		t.Error("it is not stripped")
	}
}

func TestExecutableRunsWithoutALibc(t *testing.T) {
	root := t.TempDir()
	if err := copyFile(filepath.Join(root, "knarr"), knarr); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("/knarr", args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		cmd.Dir = "/"
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("knarr %v in an empty root: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if out := run("version"); !strings.Contains(out, "v1.36.4+knarr1") {
		t.Errorf("version says %q", out)
	}
	if out := run("kubectl", "version", "--client"); !strings.Contains(out, "v1.36.4+knarr1") {
		t.Errorf("kubectl version says %q", out)
	}
}

func copyFile(to, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}
