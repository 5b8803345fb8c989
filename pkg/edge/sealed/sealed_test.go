package sealed

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func newKey(t testing.TB) (k [KeySize]byte) {
	t.Helper()
	if _, err := rand.Read(k[:]); err != nil {
		t.Fatal(err)
	}
	return k
}

// reopen returns what the file has, record by record.
func reopen(t testing.TB, path string, key [KeySize]byte) (*File, []string, []Ref) {
	t.Helper()
	var texts []string
	var refs []Ref
	f, err := Open(path, key, func(r Ref, b []byte) error {
		texts, refs = append(texts, string(b)), append(refs, r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return f, texts, refs
}

func mustAppend(t testing.TB, f *File, texts ...string) []Ref {
	t.Helper()
	var records [][]byte
	for _, text := range texts {
		records = append(records, []byte(text))
	}
	refs, err := f.Append(records)
	if err != nil {
		t.Fatal(err)
	}
	return refs
}

func mustClose(t testing.TB, f *File) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// threeBatches are the records that written writes.
func threeBatches() [][]string {
	return [][]string{{"one", ""}, {"two", "three", strings.Repeat("x", 50)}, {"four", "five"}}
}

// file is what written has written: its content, where each batch ends (the head
// being the first), and the records up to there.
type file struct {
	content []byte
	ends    []int
	texts   [][]string
}

func written(t testing.TB, path string, key [KeySize]byte) file {
	t.Helper()
	f, _, _ := reopen(t, path, key)
	w := file{ends: []int{int(f.Size())}, texts: [][]string{nil}}
	for _, batch := range threeBatches() {
		mustAppend(t, f, batch...)
		w.ends = append(w.ends, int(f.Size()))
		w.texts = append(w.texts, slices.Concat(w.texts[len(w.texts)-1], batch))
	}
	mustClose(t, f)
	var err error
	if w.content, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return w
}

// batch is the number of the batch that the byte is in.
func (w file) batch(at int) int {
	return slices.IndexFunc(w.ends, func(end int) bool { return at < end })
}

func TestRecordsAreReadBackInTheirOrder(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), "f"), newKey(t)
	f, texts, _ := reopen(t, path, key)
	if len(texts) != 0 {
		t.Fatalf("a new file has records: %q", texts)
	}
	refs := mustAppend(t, f, "a", "", strings.Repeat("b", 1<<20))
	refs = append(refs, mustAppend(t, f, "c")...)
	want := []string{"a", "", strings.Repeat("b", 1<<20), "c"}
	check := func(f *File, refs []Ref) {
		t.Helper()
		for i, r := range refs {
			got, err := f.Read(r)
			if err != nil || string(got) != want[i] {
				t.Errorf("record %d: %d bytes, %v", i, len(got), err)
			}
		}
	}
	check(f, refs)
	size := f.Size()
	mustClose(t, f)

	f, texts, again := reopen(t, path, key)
	defer f.Close()
	if !slices.Equal(texts, want) || !slices.Equal(again, refs) || f.Size() != size || f.Torn() != 0 {
		t.Errorf("read back %d records, size %d of %d, %d torn", len(texts), f.Size(), size, f.Torn())
	}
	check(f, again)
	sum := int64(headSize + 2*batchHead)
	for i, r := range refs {
		if r.Cost() != Cost(len(want[i])) {
			t.Errorf("record %d costs %d, want %d", i, r.Cost(), Cost(len(want[i])))
		}
		sum += r.Cost()
	}
	if sum != size {
		t.Errorf("the costs add up to %d of %d bytes", sum, size)
	}
}

// A power cut can end the last write anywhere. What was whole before is whole
// after, and can be written to.
func TestAWriteCutAnywhereLeavesAllOrNothing(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), "f"), newKey(t)
	w := written(t, path, key)
	check := func(name string, cut []byte, want []string, torn bool) {
		t.Helper()
		if err := os.WriteFile(path, cut, 0o600); err != nil {
			t.Fatal(err)
		}
		f, got, _ := reopen(t, path, key)
		if !slices.Equal(got, want) || (f.Torn() > 0) != torn {
			t.Fatalf("%s: %d records, want %d; %d torn", name, len(got), len(want), f.Torn())
		}
		mustAppend(t, f, "after")
		mustClose(t, f)
		f, got, _ = reopen(t, path, key)
		if !slices.Equal(got, append(slices.Clone(want), "after")) || f.Torn() != 0 {
			t.Fatalf("%s, then written: %d records, %d torn", name, len(got), f.Torn())
		}
		mustClose(t, f)
	}
	for at := w.ends[0]; at < len(w.content); at++ {
		n := w.batch(at)
		want, begin, end := w.texts[n-1], w.ends[n-1], w.ends[n]
		check(fmt.Sprintf("cut at %d", at), w.content[:at], want, at > begin)
		// The file has its length already, and what follows is not there yet.
		check(fmt.Sprintf("zeros from %d", at), append(bytes.Clone(w.content[:at]), make([]byte, end-at)...), want, true)
		// What follows is there, and what is before it is not.
		holed := bytes.Clone(w.content[:end])
		clear(holed[begin : at+1])
		check(fmt.Sprintf("zeros up to %d", at), holed, want, true)
	}
}

func TestAChangedByteIsNeverTakenForContent(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), "f"), newKey(t)
	w := written(t, path, key)
	last := len(w.ends) - 1
	for i := range w.content {
		changed := bytes.Clone(w.content)
		changed[i] ^= 0x55
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		var got []string
		f, err := Open(path, key, func(_ Ref, b []byte) error { got = append(got, string(b)); return nil })
		if err == nil {
			mustClose(t, f)
			// The last batch can't be told from one that a power cut spoiled.
			if w.batch(i) != last || !slices.Equal(got, w.texts[last-1]) {
				t.Fatalf("byte %d: read as whole, with %d records", i, len(got))
			}
			continue
		}
		if !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d: %v", i, err)
		}
		if left, err := os.ReadFile(path); err != nil || !bytes.Equal(left, changed) {
			t.Fatalf("byte %d: a damaged file was changed (%v)", i, err)
		}
	}
}

func TestAnotherKeyIsToldAndTheFileLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	content := written(t, path, newKey(t)).content
	_, err := Open(path, newKey(t), func(Ref, []byte) error { return nil })
	if !errors.Is(err, ErrDamaged) {
		t.Fatalf("opened with another key: %v", err)
	}
	if left, err := os.ReadFile(path); err != nil || !bytes.Equal(left, content) {
		t.Errorf("the file was changed (%v)", err)
	}
}

func TestARecordCannotBeMovedOrTakenFromAnotherFile(t *testing.T) {
	dir, key := t.TempDir(), newKey(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	var contents [2][]byte
	for i, path := range []string{a, b} {
		f, _, _ := reopen(t, path, key)
		mustAppend(t, f, "same", "size")
		mustAppend(t, f, "more")
		mustClose(t, f)
		var err error
		if contents[i], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	one := int(Cost(4))
	first := headSize + batchHead
	swapped := bytes.Clone(contents[0])
	copy(swapped[first:], contents[0][first+one:first+2*one])
	copy(swapped[first+one:], contents[0][first:first+one])
	spliced := bytes.Clone(contents[0])
	copy(spliced[first:], contents[1][first:first+one])
	for name, content := range map[string][]byte{"swapped": swapped, "spliced": spliced} {
		if err := os.WriteFile(a, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(a, key, func(Ref, []byte) error { return nil }); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNothingReadableIsInTheFile(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), "f"), newKey(t)
	f, _, _ := reopen(t, path, key)
	mustAppend(t, f, "correct horse battery staple", "correct horse battery staple")
	f2, err := f.Rewrite(func(add func([]byte, func(Ref)) error) error {
		return add([]byte("correct horse battery staple"), nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, f)
	mustAppend(t, f2, "correct horse battery staple")
	mustClose(t, f2)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"correct", "horse", "battery", "staple"} {
		if bytes.Contains(content, []byte(word)) {
			t.Errorf("%q is in the file", word)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestRewriteReplacesTheFileAtOnce(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), "f"), newKey(t)
	f, _, _ := reopen(t, path, key)
	refs := mustAppend(t, f, "old")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	// Fails half way: the file is as it was, and goes on.
	no := errors.New("no")
	if _, err := f.Rewrite(func(add func([]byte, func(Ref)) error) error {
		if err := add(make([]byte, 2*batchSize), nil); err != nil {
			return err
		}
		return no
	}); !errors.Is(err, no) {
		t.Fatalf("an error of the caller is %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Fatalf("a rewrite that failed changed the file (%v)", err)
	}
	if left, _ := filepath.Glob(path + "*"); len(left) != 1 {
		t.Errorf("left behind: %q", left)
	}

	want := map[string]Ref{}
	n, err := f.Rewrite(func(add func([]byte, func(Ref)) error) error {
		for i := range 100 {
			text := fmt.Sprintf("%d %s", i, strings.Repeat("y", 10_000))
			if err := add([]byte(text), func(r Ref) { want[text] = r }); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.Read(refs[0]); err != nil || string(got) != "old" {
		t.Errorf("the old file can't be read until it is closed: %q, %v", got, err)
	}
	mustClose(t, f)
	if len(want) != 100 {
		t.Fatalf("the places of %d records were told", len(want))
	}
	for text, r := range want {
		if got, err := n.Read(r); err != nil || string(got) != text {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
	}
	mustAppend(t, n, "new")
	mustClose(t, n)
	n, texts, _ := reopen(t, path, key)
	defer n.Close()
	if len(texts) != 101 || texts[100] != "new" {
		t.Errorf("%d records after a rewrite and a write", len(texts))
	}
}

// What the disk holds after a failed write is unknown: nothing is written behind
// it, and a rewrite mends it.
func TestAfterAFailedWriteOnlyARewriteWrites(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), "f"), newKey(t)
	f, _, _ := reopen(t, path, key)
	refs := mustAppend(t, f, "kept")
	good := f.f
	readOnly, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	f.f = readOnly
	if _, err := f.Append([][]byte{[]byte("lost")}); err == nil {
		t.Fatal("wrote to a file that is open for reading")
	}
	mustClose(t, &File{f: good})
	if _, err := f.Append([][]byte{[]byte("lost")}); err == nil || !f.Broken() {
		t.Fatalf("wrote after a failure: %v", err)
	}
	n, err := f.Rewrite(func(add func([]byte, func(Ref)) error) error {
		text, err := f.Read(refs[0])
		if err != nil {
			return err
		}
		return add(text, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, f)
	mustAppend(t, n, "again")
	mustClose(t, n)
	n, texts, _ := reopen(t, path, key)
	defer n.Close()
	if !slices.Equal(texts, []string{"kept", "again"}) {
		t.Errorf("%q", texts)
	}
}

func TestWhatACrashLeftOfARewriteIsRemoved(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), "f"), newKey(t)
	f, _, _ := reopen(t, path, key)
	mustAppend(t, f, "old")
	mustClose(t, f)
	if err := os.WriteFile(path+suffix, []byte("half a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, texts, _ := reopen(t, path, key)
	defer f.Close()
	if !slices.Equal(texts, []string{"old"}) {
		t.Errorf("%q", texts)
	}
	if _, err := os.Stat(path + suffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unfinished file is still there: %v", err)
	}
}

func TestARecordThatItsUserRefusesIsDamage(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), "f"), newKey(t)
	written(t, path, key)
	no := errors.New("no such kind of record")
	if _, err := Open(path, key, func(Ref, []byte) error { return no }); !errors.Is(err, ErrDamaged) || !errors.Is(err, no) {
		t.Errorf("%v", err)
	}
}

// Whatever the file is, Open neither panics nor takes in what was not written.
func FuzzOpen(f *testing.F) {
	var key [KeySize]byte
	path := filepath.Join(f.TempDir(), "seed")
	w := written(f, path, key)
	content, texts := w.content, w.texts[len(w.texts)-1]
	f.Add(content, 0, byte(0))
	f.Add(content[:len(content)-1], 0, byte(0))
	f.Add(content, headSize, byte(0xff))
	f.Add(content, headSize+4, byte(1))
	f.Fuzz(func(t *testing.T, file []byte, at int, with byte) {
		if at >= 0 && at < len(file) {
			file[at] ^= with
		}
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		n := 0
		g, err := Open(path, key, func(_ Ref, b []byte) error {
			if n >= len(texts) || string(b) != texts[n] {
				t.Errorf("record %d is %q", n, b)
			}
			n++
			return nil
		})
		if err == nil {
			g.Close()
		}
	})
}
