package bundle

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
)

// Format is the version of the archive's layout. An archive of another
// version is refused.
const Format = 1

// indexMagic opens the skippable zstd frame that holds the index. Ordinary
// zstd tools step over it, so the archive still reads as a .tar.zst.
const indexMagic = 0x184D2A5B

// maxIndex bounds the index, in bytes, so that a damaged length is noticed
// before it is believed.
const maxIndex = 1 << 20

// ErrNotArchive says that the bytes are no bundle archive at all, as opposed
// to a damaged one.
var ErrNotArchive = errors.New("not a bundle archive")

// Index is the table of contents at the head of an archive. It names the
// SHA-256 of every file, so the SHA-256 of the index identifies the contents
// and can be had without reading the archive.
type Index struct {
	Format   int               `json:"format"`
	Versions map[string]string `json:"versions,omitempty"`
	Groups   []Group           `json:"groups"`
}

// Group is a run of files compressed together, in one zstd frame. Groups are
// decompressed side by side; files of one group share what they repeat.
type Group struct {
	// Lazy groups stay packed until one of their files is asked for.
	Lazy bool `json:"lazy,omitempty"`
	// Offset counts bytes from the end of the index.
	Offset int64 `json:"offset"`
	// Length is the compressed size in bytes, Size the unpacked one.
	Length int64  `json:"length"`
	Size   int64  `json:"size"`
	Files  []File `json:"files"`
}

// File is one member of a group. Name is relative and slash-separated; Size
// is in bytes; Mode holds permission bits.
type File struct {
	Name   string      `json:"name"`
	Size   int64       `json:"size"`
	Mode   fs.FileMode `json:"mode"`
	SHA256 string      `json:"sha256"`
}

// MarshalIndex returns the bytes that precede the groups in an archive.
func MarshalIndex(ix Index) ([]byte, error) {
	js, err := json.Marshal(ix)
	if err != nil {
		return nil, fmt.Errorf("encode bundle index: %w", err)
	}
	if len(js) > maxIndex {
		return nil, fmt.Errorf("encode bundle index: %d bytes, more than %d", len(js), maxIndex)
	}
	out := binary.LittleEndian.AppendUint32(nil, indexMagic)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(js)))
	return append(out, js...), nil
}

// Archive is an opened bundle. It holds the packed bytes and unpacks them on
// demand; it is safe for concurrent use.
type Archive struct {
	index Index
	id    string
	body  []byte // what follows the index
}

// Open reads the index of an archive. It does not decompress or check the
// rest, which costs nothing until Unpack; data must not change afterwards.
func Open(data []byte) (*Archive, error) {
	if len(data) < 8 || binary.LittleEndian.Uint32(data) != indexMagic {
		return nil, fmt.Errorf("open bundle (%d bytes): %w; build one with cmd/knarr-bundle", len(data), ErrNotArchive)
	}
	n := binary.LittleEndian.Uint32(data[4:])
	if n > maxIndex || int64(n) > int64(len(data)-8) {
		return nil, fmt.Errorf("open bundle: the index claims %d bytes of %d; the archive is damaged, build it again", n, len(data)-8)
	}
	js := data[8 : 8+n]
	a := &Archive{body: data[8+n:]}
	if err := json.Unmarshal(js, &a.index); err != nil {
		return nil, fmt.Errorf("open bundle: read index: %w; the archive is damaged, build it again", err)
	}
	if a.index.Format != Format {
		return nil, fmt.Errorf("open bundle: format %d, this program reads %d; build the archive with the same version", a.index.Format, Format)
	}
	for i, g := range a.index.Groups {
		if g.Offset < 0 || g.Length < 0 || g.Size < 0 || g.Offset > int64(len(a.body)) || g.Length > int64(len(a.body))-g.Offset {
			return nil, fmt.Errorf("open bundle: cut short: group %d should end at byte %d of %d; build or copy the archive again",
				i, g.Offset+g.Length, len(a.body))
		}
		for _, f := range g.Files {
			if !fs.ValidPath(f.Name) || path.Clean(f.Name) != f.Name {
				return nil, fmt.Errorf("open bundle: file name %q leaves the bundle; the archive is damaged, build it again", f.Name)
			}
		}
	}
	sum := sha256.Sum256(js)
	a.id = hex.EncodeToString(sum[:])
	return a, nil
}

// OpenFS reads the archive name from fsys, for programs that embed or ship
// one themselves.
func OpenFS(fsys fs.FS, name string) (*Archive, error) {
	data, err := fs.ReadFile(fsys, name)
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	return Open(data)
}

// ID is the SHA-256, in hex, that names the contents.
func (a *Archive) ID() string { return a.id }

// Index returns the table of contents. The caller must not change it.
func (a *Archive) Index() Index { return a.index }

// find returns where a file is, by its name in the archive.
func (a *Archive) find(name string) (Group, File, error) {
	for _, g := range a.index.Groups {
		for _, f := range g.Files {
			if f.Name == name {
				return g, f, nil
			}
		}
	}
	return Group{}, File{}, fmt.Errorf("bundle %.12s has no %s: %w", a.id, name, fs.ErrNotExist)
}
