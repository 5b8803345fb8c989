package bundle_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/klauspost/compress/zstd"

	"github.com/knarr-dev/knarr/pkg/bundle"
	"github.com/knarr-dev/knarr/pkg/bundle/pack"
)

// unpackInto makes this test binary a second process that unpacks.
const unpackInto = "KNARR_TEST_UNPACK_INTO"

func TestMain(m *testing.M) {
	if dir := os.Getenv(unpackInto); dir != "" {
		fmt.Println("starting")
		u, err := open(pieces("one")).Unpack(dir)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(u.Dir)
		return
	}
	os.Exit(m.Run())
}

// pieces are the groups of a small bundle, which differ by text.
func pieces(text string) []pack.Group {
	return []pack.Group{
		{Files: []pack.File{
			{Name: "bin/tool", Mode: 0o755, Data: []byte("#!" + text)},
			{Name: "bin/large", Mode: 0o755, Data: bytes.Repeat([]byte("0123456789abcdef"+text), 1<<18)},
		}},
		{Files: []pack.File{{Name: "images/pause.tar", Mode: 0o644, Data: []byte(text)}, {Name: "cni/empty", Mode: 0o644}}},
		{Lazy: true, Files: []pack.File{{Name: "bin/rare", Mode: 0o755, Data: []byte("rare " + text)}}},
	}
}

func packed(groups []pack.Group) []byte {
	var buf bytes.Buffer
	_, err := pack.Write(context.Background(), &buf, map[string]string{"tool": "v1"}, groups, func(_ context.Context, b []byte) ([]byte, error) {
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithSingleSegment(true))
		return w.EncodeAll(b, nil), err
	})
	if err != nil {
		panic(err)
	}
	return buf.Bytes()
}

func open(groups []pack.Group) *bundle.Archive {
	a, err := bundle.Open(packed(groups))
	if err != nil {
		panic(err)
	}
	return a
}

// whole fails the test unless every eager file of the bundle made from text is
// in place, and nothing that a crash leaves.
func whole(t *testing.T, dir, text string) {
	t.Helper()
	for _, g := range pieces(text) {
		for _, f := range g.Files {
			p := filepath.Join(dir, "current", f.Name)
			if g.Lazy {
				continue
			}
			data, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(data, f.Data) {
				t.Errorf("%s has other contents than were packed", p)
			}
			if st, _ := os.Stat(p); st.Mode().Perm() != f.Mode {
				t.Errorf("%s: mode %v, want %v", p, st.Mode().Perm(), f.Mode)
			}
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".part-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestUnpackPlacesEagerFilesAndLeavesLazyOnesPacked(t *testing.T) {
	dir := t.TempDir()
	a := open(pieces("one"))
	u, err := a.Unpack(dir)
	if err != nil {
		t.Fatal(err)
	}
	whole(t, dir, "one")
	rare := filepath.Join(u.Dir, "bin", "rare")
	if _, err := os.Lstat(rare); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("bin/rare was unpacked before it was asked for (%v)", err)
	}
	for range 2 {
		got, err := u.Path("bin/rare")
		if err != nil || got != rare {
			t.Fatalf("Path = %q, %v; want %q", got, err, rare)
		}
	}
	if data, _ := os.ReadFile(rare); string(data) != "rare one" {
		t.Errorf("bin/rare holds %q", data)
	}
	if p, err := u.Image("pause"); err != nil || p != filepath.Join(u.Dir, "images/pause.tar") {
		t.Errorf("Image = %q, %v", p, err)
	}
	if _, err := u.Path("bin/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Path of a file that is in no bundle: %v", err)
	}
	whole(t, dir, "one")
}

func TestUnpackWritesNothingWhenContentsAreThere(t *testing.T) {
	dir := t.TempDir()
	a := open(pieces("one"))
	u, err := a.Unpack(dir)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(filepath.Join(u.Dir, "bin", "tool"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if u, err = a.Unpack(dir); err != nil {
			t.Fatal(err)
		}
		after, err := os.Stat(filepath.Join(u.Dir, "bin", "tool"))
		if err != nil {
			t.Fatal(err)
		}
		if !os.SameFile(before, after) {
			t.Fatal("the files were written again")
		}
		if err := u.Settle(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestManyProcessesUnpackAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bundle")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			c := exec.Command(os.Args[0])
			c.Env = append(os.Environ(), unpackInto+"="+dir)
			if out, err := c.CombinedOutput(); err != nil {
				t.Errorf("another process: %v\n%s", err, out)
			}
		})
		wg.Go(func() {
			u, err := open(pieces("one")).Unpack(dir)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := u.Path("bin/rare"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	whole(t, dir, "one")
}

func TestUnpackAfterKillInTheMiddle(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bundle")
	for range 10 {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), unpackInto+"="+dir)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		c.Process.Kill()
		c.Wait()
		if _, err := open(pieces("one")).Unpack(dir); err != nil {
			t.Fatal(err)
		}
		whole(t, dir, "one")
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnpackSweepsUpWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	for _, p := range []string{".part-1/bin/large", ".part-1-old/bin/tool"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, p)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, p), []byte("half"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, ".part-current")); err != nil {
		t.Fatal(err)
	}
	if _, err := open(pieces("one")).Unpack(dir); err != nil {
		t.Fatal(err)
	}
	whole(t, dir, "one")
}

// After a power cut the names may be there and the bytes not.
func TestUnpackTrustsUnsettledContentsOnlyUntilTheNextBoot(t *testing.T) {
	dir := t.TempDir()
	a := open(pieces("one"))
	u, err := a.Unpack(dir)
	if err != nil {
		t.Fatal(err)
	}
	reboot := func() {
		large := filepath.Join(u.Dir, "bin", "large")
		st, err := os.Stat(large)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Truncate(large, 0), os.Truncate(large, st.Size()),
			os.WriteFile(filepath.Join(u.Dir, ".boot"), []byte("a boot before"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	reboot()
	if _, err := a.Unpack(dir); err != nil {
		t.Fatal(err)
	}
	whole(t, dir, "one")

	if err := u.Settle(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(u.Dir, ".boot"), []byte("a boot before"), 0o644); err != nil {
		t.Fatal(err)
	}
	before, _ := os.Stat(filepath.Join(u.Dir, "bin", "tool"))
	if _, err := a.Unpack(dir); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(filepath.Join(u.Dir, "bin", "tool")); !os.SameFile(before, after) {
		t.Error("settled contents were written again after a boot")
	}
}

func TestUnpackReplacesContentsThatMissAFile(t *testing.T) {
	dir := t.TempDir()
	a := open(pieces("one"))
	u, err := a.Unpack(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(u.Dir, "cni", "empty")); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Unpack(dir); err != nil {
		t.Fatal(err)
	}
	whole(t, dir, "one")
}

func TestUnpackKeepsTheContentsUsedBefore(t *testing.T) {
	dir := t.TempDir()
	has := func(text string) bool {
		_, err := os.Stat(filepath.Join(dir, open(pieces(text)).ID()))
		return err == nil
	}
	use := func(text string) {
		t.Helper()
		u, err := open(pieces(text)).Unpack(dir)
		if err != nil {
			t.Fatal(err)
		}
		whole(t, dir, text)
		if got, _ := os.ReadFile(filepath.Join(u.BinDir, "tool")); string(got) != "#!"+text {
			t.Errorf("BinDir's tool is %q", got)
		}
	}
	use("one")
	use("two")
	use("one")
	use("three")
	if !has("one") || has("two") || !has("three") {
		t.Errorf("one: %v, two: %v, three: %v; want the newest and the one used before it", has("one"), has("two"), has("three"))
	}
}

func TestDamageIsTold(t *testing.T) {
	good := packed(pieces("one"))
	for name, damage := range map[string]func([]byte) []byte{
		"cut short":      func(b []byte) []byte { return b[:len(b)-100] },
		"only a head":    func(b []byte) []byte { return b[:6] },
		"empty":          func(b []byte) []byte { return nil },
		"another file":   func(b []byte) []byte { return []byte("\x7fELF and so on") },
		"index mangled":  func(b []byte) []byte { b[9] = '!'; return b },
		"length mangled": func(b []byte) []byte { b[6] = 0xff; return b },
		"name leaves":    func(b []byte) []byte { return bytes.Replace(b, []byte(`"bin/tool"`), []byte(`"../etool"`), 1) },
		"content differs": func(b []byte) []byte {
			body := 8 + int(binary.LittleEndian.Uint32(b[4:]))
			b[body+40] ^= 1
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			a, err := bundle.Open(damage(bytes.Clone(good)))
			if err == nil {
				_, err = a.Unpack(dir)
			}
			if err == nil {
				t.Fatal("no error")
			}
			t.Log(err)
			if msg := err.Error(); !strings.Contains(msg, "bundle") || !strings.Contains(msg, "again") && !strings.Contains(msg, "build") {
				t.Errorf("the error does not say what to do: %v", err)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, ".part-*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "current")); len(left) > 0 {
				t.Error("a damaged bundle became the current one")
			}
		})
	}
}

func TestOpenFSReadsAnArchiveFromAFileSystem(t *testing.T) {
	data := packed(pieces("one"))
	a, err := bundle.OpenFS(fstest.MapFS{"b.tar.zst": {Data: data}}, "b.tar.zst")
	if err != nil {
		t.Fatal(err)
	}
	if want := open(pieces("one")).ID(); a.ID() != want {
		t.Errorf("ID %s, want %s", a.ID(), want)
	}
	if _, err := bundle.OpenFS(fstest.MapFS{}, "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing archive: %v", err)
	}
}

func TestPackingTwiceGivesTheSameBytes(t *testing.T) {
	groups := pieces("one")
	first := packed(groups)
	files := groups[0].Files
	files[0], files[1] = files[1], files[0]
	if !bytes.Equal(first, packed(groups)) {
		t.Error("the order in which files were found shows in the archive")
	}
	if bytes.Equal(first, packed(pieces("two"))) {
		t.Error("different contents give the same archive")
	}
}

func TestArchiveIsAnOrdinaryTar(t *testing.T) {
	zr, err := zstd.NewReader(bytes.NewReader(packed(pieces("one"))))
	if err != nil {
		t.Fatal(err)
	}
	defer zr.Close()
	var names []string
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if got, want := strings.Join(names, " "), "bin/large bin/tool cni/empty images/pause.tar bin/rare"; got != want {
		t.Errorf("files %s, want %s", got, want)
	}
}
