package flakydisk

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func TestMain(m *testing.M) {
	if MaybeServe() {
		return
	}
	os.Exit(m.Run())
}

// What an fsync has made safe outlives the cut, what none has does not.
func TestACutLosesWhatWasNotFlushed(t *testing.T) {
	d, point := testDisk(t)
	safe, lost := filepath.Join(point, "safe"), filepath.Join(point, "lost")
	content := bytes.Repeat([]byte("safe"), 5000)
	for path, sync := range map[string]bool{safe: true, lost: false} {
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(content); err != nil {
			t.Fatal(err)
		}
		if sync {
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// It comes after the other file, should the map have had it first.
	if err := os.WriteFile(lost+"2", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Cut(0, 1); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(safe, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		if _, err = f.Write(content); err == nil {
			err = f.Sync()
		}
		f.Close()
	}
	if err == nil {
		t.Error("a disk without power was written to and flushed")
	}
	cycle(t, d, point)
	if got, err := os.ReadFile(safe); err != nil || !bytes.Equal(got, content) {
		t.Errorf("what was flushed: %d bytes, %v", len(got), err)
	}
	if _, err := os.Stat(lost + "2"); !os.IsNotExist(err) {
		t.Errorf("what was not flushed is there: %v", err)
	}
	counts, err := d.Counts()
	if err != nil || counts.Cuts != 1 || counts.Flushes == 0 || counts.Writes == 0 {
		t.Errorf("%+v, %v", counts, err)
	}
}

func TestAFailingDiskHeals(t *testing.T) {
	d, point := testDisk(t)
	sync := func() error {
		f, err := os.Create(filepath.Join(point, "file"))
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync()
	}
	if err := d.Fail(); err != nil {
		t.Fatal(err)
	}
	if err := sync(); err == nil {
		t.Error("a failing disk was flushed")
	}
	cycle(t, d, point) // ext4 wants to be mounted anew after such an error
	if err := sync(); err != nil {
		t.Error(err)
	}
}

func TestACutKeepsAnySubsetOfPendingWritesAndNothingElse(t *testing.T) {
	const size, at = 64 << 10, 4096
	old, fresh := byte('o'), byte('n')
	kept, torn, lost := 0, 0, 0
	for seed := range uint64(200) {
		m, err := newImage(size)
		if err != nil {
			t.Fatal(err)
		}
		g := m.power()
		write := func(b byte) {
			if _, err := m.write(g, bytes.Repeat([]byte{b}, 4096), at); err != nil {
				t.Fatal(err)
			}
		}
		write(old)
		if err := m.flush(g); err != nil {
			t.Fatal(err)
		}
		write(fresh)
		m.cut(0.5, rand.New(rand.NewPCG(seed, 0)))
		if err := m.flush(g); err == nil {
			t.Fatal("flushed without power")
		}
		g = m.power()
		got := make([]byte, 4096)
		if _, err := m.read(g, got, at); err != nil {
			t.Fatal(err)
		}
		switch n := bytes.Count(got, []byte{fresh}); {
		case n == 4096:
			kept++
		case n == 0:
			lost++
		case n%sector == 0 && n+bytes.Count(got, []byte{old}) == 4096:
			torn++
		default:
			t.Fatalf("%d new bytes", n)
		}
	}
	if kept == 0 || torn == 0 || lost == 0 {
		t.Errorf("of 200 cuts %d kept the write, %d tore it, %d lost it", kept, torn, lost)
	}
}

func cycle(t *testing.T, d *Disk, point string) {
	t.Helper()
	if err := d.Unmount(point); err != nil {
		t.Fatal(err)
	}
	if err := d.Power(); err != nil {
		t.Fatal(err)
	}
	if err := d.Mount(t.Context(), point); err != nil {
		t.Fatal(err)
	}
}

func testDisk(t *testing.T) (*Disk, string) {
	t.Helper()
	Needs(t)
	dir := t.TempDir()
	d := ForTest(t, dir, 64<<20)
	point := filepath.Join(dir, "disk")
	if err := d.Mount(t.Context(), point); err != nil {
		t.Fatal(err)
	}
	return d, point
}
