package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/knarr-dev/knarr/pkg/archive"
)

// format is the first field of every manifest. Another one is of a version that
// this one does not know.
const format = "knarr-backup/1"

// Manifest is the first file of a backup and tells of the others.
type Manifest struct {
	Format string `json:"format"`
	// Created is when the copy of the store was begun.
	Created time.Time `json:"created"`
	// Cluster is the SHA-256 of the certificate of the authority that the API server
	// serves by, as join tokens have it.
	Cluster string `json:"cluster"`
	// Node is that of the server.
	Node string `json:"node"`
	// Knarr and Kubernetes are the versions that made the backup.
	Knarr      string `json:"knarr"`
	Kubernetes string `json:"kubernetes"`
	// Driver keeps the store; Revision is its last one.
	Driver   string `json:"driver"`
	Revision int64  `json:"revision"`
	// Files are those of <data-dir>/server, in the order of the archive.
	Files []File `json:"files"`
}

// File is one of a backup.
type File = archive.File

// source is a file to be archived, with where it is.
type source = archive.Source

func writeArchive(to io.Writer, m Manifest, files []source) error {
	return archive.Write(to, m, m.Created, files)
}

// errForeign is what a file is told to be that is no backup.
var errForeign = errors.New("it is not a backup of Knarr's")

// reader is a backup that is read.
type reader struct {
	*archive.Reader
	manifest Manifest
}

func openArchive(from io.Reader) (*reader, error) {
	a, err := archive.Open(from)
	if err != nil {
		return nil, told(err)
	}
	r := &reader{Reader: a}
	if err := r.readManifest(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (r *reader) readManifest() error {
	if err := json.Unmarshal(r.Manifest, &r.manifest); err != nil {
		return fmt.Errorf("%w: %w", errForeign, err)
	}
	if f := r.manifest.Format; f != format {
		if strings.HasPrefix(f, "knarr-backup/") {
			return fmt.Errorf("it is of the form %s, and this version knows %s: use the version that made it, or a newer one", f, format)
		}
		return errForeign
	}
	return nil
}

// unpack writes all files into a folder that is empty, and checks each.
func (r *reader) unpack(into string) error { return told(r.Unpack(into, r.manifest.Files)) }

// told says what an error of an archive means for a backup.
func told(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, archive.ErrForeign):
		return errForeign
	case errors.Is(err, archive.ErrDamaged):
		return fmt.Errorf("%w: use another backup", err)
	}
	return fmt.Errorf("unpack backup: %w", err)
}

func damaged(why error) error {
	return fmt.Errorf("it is damaged (%w): use another backup", why)
}

// sources lists what is to be kept of a server's folder, in order, but for the
// store's own file.
func sources(dir string) ([]source, error) {
	found, err := list(dir)
	if err != nil {
		return nil, err
	}
	for i := range found {
		if err := found[i].Measure(); err != nil {
			return nil, fmt.Errorf("back up: %w", err)
		}
	}
	return found, nil
}

// list is sources before anything is read.
func list(dir string) ([]source, error) {
	var found []source
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains(leftOut, rel) {
			return fs.SkipDir
		}
		// A name with a dot is a file that is being written.
		if d.Type().IsRegular() && !strings.HasPrefix(d.Name(), ".") {
			found = append(found, source{File: File{Path: filepath.ToSlash(rel)}, From: path})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("back up: %w", err)
	}
	return found, nil
}

// leftOut are folders of a server's: the store, which is copied in another way,
// what was saved of one, what only a running server needs, and logs.
var leftOut = []string{"db", "db.rescued", "run", "logs"}
