// Package sealed keeps records in one file: encrypted, appended in batches of
// which a power cut leaves all or nothing, and read back by their place.
//
// The file is a log and not one of the embedded stores, for three reasons. Its
// user keeps an index in memory anyway. A change costs one write and one sync,
// where a tree of pages costs several of 4 KiB each, and SD cards wear by bytes
// written. And every byte that is read is verified first, so that no damage can
// be taken for content or end the process, as a page mapped from a file that was
// cut short does.
//
//	file   = head batch…
//	head   = magic, salt [16]byte, a sealed empty record: tells a wrong key
//	batch  = length uint32, CRC-32C of length and offset, then length bytes: record…
//	record = length uint32, nonce [12]byte, AES-256-GCM of the record and its tag
//
// Numbers are little endian. What a record is sealed with names the file, by its
// salt, and the record's place: none can be moved or taken from another file.
package sealed

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/knarr-dev/knarr/pkg/durable"
)

const (
	magic     = "knarr sealed 001"
	saltSize  = 16
	sealSize  = 12 + 16 // nonce and tag
	headSize  = len(magic) + saltSize + sealSize
	batchHead = 8
	// batchSize is how many bytes Rewrite collects before it writes them, so
	// that neither writing nor reading needs much memory.
	batchSize = 256 << 10
	// suffix is what a file is called before it replaces the one of its name.
	suffix = ".new"
)

// KeySize is the length of a key, in bytes.
const KeySize = 32

// ErrDamaged says that a file can't be read: it is of another key, of a later
// version, or changed by something else. The file is left as it is.
var ErrDamaged = errors.New("the file is damaged, or sealed with another key")

// errBroken says that a write failed before: what is on disk is unknown.
var errBroken = errors.New("an earlier write failed")

// Ref is where a record is. The zero Ref is no record's.
type Ref struct {
	off  int64
	size uint32
}

// File is an open file. Append and Rewrite are for one goroutine at a time;
// Read may be called by many, also meanwhile.
type File struct {
	path   string
	f      *os.File
	aead   cipher.AEAD
	salt   [saltSize]byte
	size   int64
	torn   int64
	broken bool
}

// Open opens the file, or makes it, and calls replay with each record in the
// order of writing; the slice is replay's to keep. A batch that was not written
// to its end is cut off, see [File.Torn]. An error of replay, like damage, is an
// ErrDamaged.
func Open(path string, key [KeySize]byte, replay func(Ref, []byte) error) (*File, error) {
	f, err := open(path, key, replay)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return f, nil
}

func open(path string, key [KeySize]byte, replay func(Ref, []byte) error) (*File, error) {
	if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove what an unfinished write left: %w", err)
	}
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		w, err := create(path, aead)
		if err != nil {
			return nil, err
		}
		return w.finish()
	}
	if err != nil {
		return nil, err
	}
	f := &File{path: path, f: file, aead: aead}
	if err := f.load(replay); err != nil {
		file.Close()
		return nil, err
	}
	return f, nil
}

func newAEAD(key [KeySize]byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// load reads the whole file.
func (f *File) load(replay func(Ref, []byte) error) error {
	info, err := f.f.Stat()
	if err != nil {
		return err
	}
	end := info.Size()
	r := bufio.NewReaderSize(f.f, 64<<10)
	if err := f.readHead(r); err != nil {
		return err
	}
	f.size = int64(headSize)
	for f.size < end {
		records, size, err := f.readBatch(r, end)
		if errors.Is(err, errTorn) {
			return f.cut(end)
		}
		if err != nil {
			return err
		}
		for _, rec := range records {
			if err := replay(rec.ref, rec.text); err != nil {
				return fmt.Errorf("%w: record at byte %d: %w", ErrDamaged, rec.ref.off, err)
			}
		}
		f.size += size
	}
	return nil
}

func (f *File) readHead(r io.Reader) error {
	head := make([]byte, headSize)
	if _, err := io.ReadFull(r, head); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: it has no head", ErrDamaged)
		}
		return err
	}
	if string(head[:len(magic)]) != magic {
		return fmt.Errorf("%w: it does not begin as such a file does", ErrDamaged)
	}
	copy(f.salt[:], head[len(magic):])
	if _, err := f.aead.Open(nil, nil, head[len(magic)+saltSize:], f.place(0)); err != nil {
		return fmt.Errorf("%w: the key does not fit", ErrDamaged)
	}
	return nil
}

type record struct {
	ref  Ref
	text []byte
}

// errTorn says that the last batch was not written to its end.
var errTorn = errors.New("unfinished batch")

// readBatch reads the batch that begins at f.size. A batch is synced before the
// next one is written, so only the last can be unfinished: what is wrong with
// one before it is damage.
func (f *File) readBatch(r io.Reader, end int64) ([]record, int64, error) {
	left := end - f.size
	if left < batchHead {
		return nil, 0, errTorn
	}
	var head [batchHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, 0, err
	}
	length := binary.LittleEndian.Uint32(head[:])
	if !isBatch(head[:], f.size) {
		if followed, err := f.followed(end); err != nil || followed {
			return nil, 0, errors.Join(err, fmt.Errorf("%w at byte %d", ErrDamaged, f.size))
		}
		return nil, 0, errTorn
	}
	size := batchHead + int64(length)
	if size > left {
		return nil, 0, errTorn
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, 0, err
	}
	records, err := f.split(body, f.size+batchHead)
	if err != nil {
		if size == left {
			return nil, 0, errTorn
		}
		return nil, 0, err
	}
	return records, size, nil
}

// followed tells whether a batch begins somewhere behind f.size, where none does.
func (f *File) followed(end int64) (bool, error) {
	r := bufio.NewReaderSize(io.NewSectionReader(f.f, f.size, end-f.size), 64<<10)
	for off := f.size; ; off++ {
		head, err := r.Peek(batchHead)
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		length := int64(binary.LittleEndian.Uint32(head))
		if length <= end-off-batchHead && isBatch(head, off) {
			return true, nil
		}
		if _, err := r.Discard(1); err != nil {
			return false, err
		}
	}
}

// split opens the records in body, which begins at off.
func (f *File) split(body []byte, off int64) ([]record, error) {
	var records []record
	for len(body) > 0 {
		if len(body) < 4 {
			return nil, fmt.Errorf("%w at byte %d", ErrDamaged, off)
		}
		n := binary.LittleEndian.Uint32(body)
		body, off = body[4:], off+4
		if uint64(n) > uint64(len(body)) {
			return nil, fmt.Errorf("%w at byte %d", ErrDamaged, off)
		}
		text, err := f.aead.Open(nil, nil, body[:n], f.place(off))
		if err != nil {
			return nil, fmt.Errorf("%w at byte %d", ErrDamaged, off)
		}
		records = append(records, record{Ref{off, n}, text})
		body, off = body[n:], off+int64(n)
	}
	return records, nil
}

// cut drops what follows the last whole batch.
func (f *File) cut(end int64) error {
	f.torn = end - f.size
	if err := f.f.Truncate(f.size); err != nil {
		return fmt.Errorf("cut off an unfinished write: %w", err)
	}
	if err := f.f.Sync(); err != nil {
		return fmt.Errorf("cut off an unfinished write: %w", err)
	}
	return nil
}

// Torn is how many bytes of an unfinished write Open has cut off.
func (f *File) Torn() int64 { return f.torn }

// Size is the length of the file, in bytes.
func (f *File) Size() int64 { return f.size }

// Cost is how many bytes a record of n bytes takes in the file.
func Cost(n int) int64 { return int64(4 + sealSize + n) }

// Cost is how many bytes the record takes in the file; none for the zero Ref.
func (r Ref) Cost() int64 {
	if r.size == 0 {
		return 0
	}
	return 4 + int64(r.size)
}

func (f *File) place(off int64) []byte {
	return binary.LittleEndian.AppendUint64(f.salt[:saltSize:saltSize], uint64(off))
}

// isBatch tells whether the head is that of a batch at off.
func isBatch(head []byte, off int64) bool {
	return binary.LittleEndian.Uint32(head[4:]) == batchSum(binary.LittleEndian.Uint32(head), off)
}

func batchSum(length uint32, off int64) uint32 {
	var b [12]byte
	binary.LittleEndian.PutUint32(b[:], length)
	binary.LittleEndian.PutUint64(b[4:], uint64(off))
	return crc32.Checksum(b[:], crc32.MakeTable(crc32.Castagnoli))
}

// Read returns the record.
func (f *File) Read(ref Ref) ([]byte, error) {
	body := make([]byte, ref.size)
	if _, err := f.f.ReadAt(body, ref.off); err != nil {
		return nil, fmt.Errorf("read %s: %w", f.path, err)
	}
	text, err := f.aead.Open(nil, nil, body, f.place(ref.off))
	if err != nil {
		return nil, fmt.Errorf("read %s at byte %d: %w", f.path, ref.off, ErrDamaged)
	}
	return text, nil
}

// Append writes the records in one batch, on disk when it returns. After an
// error only Rewrite can write, since what the disk holds is then unknown.
func (f *File) Append(records [][]byte) ([]Ref, error) {
	if f.broken {
		return nil, fmt.Errorf("write %s: %w", f.path, errBroken)
	}
	batch, refs := f.batch(records)
	if _, err := f.f.WriteAt(batch, f.size); err != nil {
		f.broken = true
		return nil, fmt.Errorf("write %s: %w", f.path, err)
	}
	if err := f.f.Sync(); err != nil {
		f.broken = true
		return nil, fmt.Errorf("write %s: %w", f.path, err)
	}
	f.size += int64(len(batch))
	return refs, nil
}

// Broken tells whether Append fails until the file is rewritten.
func (f *File) Broken() bool { return f.broken }

// batch makes one to be written at f.size.
func (f *File) batch(records [][]byte) ([]byte, []Ref) {
	size := int64(batchHead)
	for _, rec := range records {
		size += Cost(len(rec))
	}
	batch := make([]byte, batchHead, size)
	refs := make([]Ref, len(records))
	for i, rec := range records {
		n := uint32(sealSize + len(rec))
		batch = binary.LittleEndian.AppendUint32(batch, n)
		refs[i] = Ref{f.size + int64(len(batch)), n}
		batch = f.aead.Seal(batch, nil, rec, f.place(refs[i].off))
	}
	length := uint32(len(batch) - batchHead)
	binary.LittleEndian.PutUint32(batch, length)
	binary.LittleEndian.PutUint32(batch[4:], batchSum(length, f.size))
	return batch, refs
}

// create makes a file beside path, which finish moves there.
func create(path string, aead cipher.AEAD) (*File, error) {
	file, err := os.OpenFile(path+suffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	f := &File{path: path, f: file, aead: aead}
	if _, err := rand.Read(f.salt[:]); err != nil {
		f.discard()
		return nil, err
	}
	head := append([]byte(magic), f.salt[:]...)
	head = aead.Seal(head, nil, nil, f.place(0))
	if _, err := file.Write(head); err != nil {
		f.discard()
		return nil, err
	}
	f.size = int64(len(head))
	return f, nil
}

func (f *File) finish() (*File, error) {
	err := f.f.Sync()
	if err == nil {
		err = os.Rename(f.path+suffix, f.path)
	}
	if err != nil {
		f.discard()
		return nil, err
	}
	// If the name is not on disk, what is appended may be lost with it: the next
	// write makes the file anew.
	f.broken = durable.SyncDir(filepath.Dir(f.path)) != nil
	return f, nil
}

func (f *File) discard() {
	f.f.Close()
	os.Remove(f.path + suffix)
}

// Rewrite makes a new file of the records that fill hands to add, each with what
// is to be called with its place, and puts it in this one's stead. This one can
// still be read, until it is closed. After an error it is as it was.
func (f *File) Rewrite(fill func(add func(rec []byte, placed func(Ref)) error) error) (*File, error) {
	n, err := create(f.path, f.aead)
	if err != nil {
		return nil, fmt.Errorf("rewrite %s: %w", f.path, err)
	}
	var (
		pending [][]byte
		placed  []func(Ref)
		size    int
	)
	write := func() error {
		batch, refs := n.batch(pending)
		if _, err := n.f.WriteAt(batch, n.size); err != nil {
			return err
		}
		n.size += int64(len(batch))
		for i, tell := range placed {
			if tell != nil {
				tell(refs[i])
			}
		}
		pending, placed, size = nil, nil, 0
		return nil
	}
	err = fill(func(rec []byte, tell func(Ref)) error {
		pending, placed = append(pending, rec), append(placed, tell)
		if size += len(rec); size < batchSize {
			return nil
		}
		return write()
	})
	if err == nil && len(pending) > 0 {
		err = write()
	}
	if err != nil {
		n.discard()
		return nil, fmt.Errorf("rewrite %s: %w", f.path, err)
	}
	if n, err = n.finish(); err != nil {
		return nil, fmt.Errorf("rewrite %s: %w", f.path, err)
	}
	return n, nil
}

// Close closes the file, in which everything is synced already.
func (f *File) Close() error { return f.f.Close() }
