package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strings"

	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/factory"
)

// driverName is what Distribution knows files by. Its own driver for files would
// bring exporters of traces and metrics along, which are larger than the rest of
// the registry; this one has the same layout on disk.
const driverName = "knarr-files"

// rootParameter is the parameter that names the folder.
const rootParameter = "rootdirectory"

// files keeps content in a folder, which no path can lead out of. What has been
// committed or put survives a power cut.
type files struct{ root *os.Root }

var _ driver.StorageDriver = (*files)(nil)

func openFiles(dir string) (*files, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the registry's folder: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the registry's folder: %w", err)
	}
	return &files{root: root}, nil
}

// register makes the driver known to Distribution, once in a process.
func register(ctx context.Context) {
	_, err := factory.Create(ctx, driverName, nil)
	if _, unknown := errors.AsType[factory.InvalidStorageDriverError](err); unknown {
		factory.Register(driverName, filesFactory{})
	}
}

type filesFactory struct{}

// Create implements factory.StorageDriverFactory.
func (filesFactory) Create(_ context.Context, parameters map[string]any) (driver.StorageDriver, error) {
	f, ok := parameters[rootParameter].(*files)
	if !ok {
		return nil, errors.New("the registry's files are not open")
	}
	return f, nil
}

func (f *files) Name() string { return driverName }

func (f *files) GetContent(_ context.Context, name string) ([]byte, error) {
	data, err := f.root.ReadFile(local(name))
	return data, known(name, err)
}

func (f *files) PutContent(ctx context.Context, name string, data []byte) error {
	tmp := name + "." + rand.Text() + ".tmp"
	w, err := f.create(tmp, os.O_EXCL)
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return errors.Join(err, w.Cancel(ctx))
	}
	if err := errors.Join(w.Commit(ctx), w.Close()); err != nil {
		return errors.Join(err, f.root.Remove(local(tmp)))
	}
	return f.Move(ctx, tmp, name)
}

func (f *files) Reader(_ context.Context, name string, offset int64) (io.ReadCloser, error) {
	r, err := f.root.Open(local(name))
	if err != nil {
		return nil, known(name, err)
	}
	if _, err := r.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(driver.InvalidOffsetError{Path: name, Offset: offset, DriverName: driverName}, r.Close())
	}
	return r, nil
}

func (f *files) Writer(_ context.Context, name string, more bool) (driver.FileWriter, error) {
	if more {
		return f.create(name, os.O_APPEND)
	}
	return f.create(name, os.O_TRUNC)
}

func (f *files) create(name string, flags int) (*writer, error) {
	if err := f.root.MkdirAll(path.Dir(local(name)), 0o700); err != nil {
		return nil, err
	}
	w, err := f.root.OpenFile(local(name), os.O_WRONLY|os.O_CREATE|flags, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := w.Stat()
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return &writer{root: f.root, name: local(name), file: w, size: st.Size()}, nil
}

func (f *files) Stat(_ context.Context, name string) (driver.FileInfo, error) {
	st, err := f.root.Stat(local(name))
	if err != nil {
		return nil, known(name, err)
	}
	info := driver.FileInfoFields{Path: name, ModTime: st.ModTime(), IsDir: st.IsDir()}
	if !st.IsDir() {
		info.Size = st.Size()
	}
	return driver.FileInfoInternal{FileInfoFields: info}, nil
}

func (f *files) List(_ context.Context, name string) ([]string, error) {
	dir, err := f.root.Open(local(name))
	if err != nil {
		return nil, known(name, err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	for i, n := range names {
		names[i] = path.Join(name, n)
	}
	return names, nil
}

func (f *files) Move(_ context.Context, from, to string) error {
	folder := path.Dir(local(to))
	if err := f.root.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	if err := f.root.Rename(local(from), local(to)); err != nil {
		return known(from, err)
	}
	dir, err := f.root.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (f *files) Delete(_ context.Context, name string) error {
	if _, err := f.root.Stat(local(name)); err != nil {
		return known(name, err)
	}
	return f.root.RemoveAll(local(name))
}

// RedirectURL implements driver.StorageDriver: nobody else has the files.
func (f *files) RedirectURL(*http.Request, string) (string, error) { return "", nil }

func (f *files) Walk(ctx context.Context, name string, fn driver.WalkFn, options ...func(*driver.WalkOptions)) error {
	return driver.WalkFallback(ctx, f, name, fn, options...)
}

// local is a path below the folder: Distribution's begin with a slash.
func local(name string) string {
	if name = strings.TrimPrefix(path.Clean(name), "/"); name != "" {
		return name
	}
	return "."
}

// known is an error as Distribution expects it.
func known(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return driver.PathNotFoundError{Path: name, DriverName: driverName}
	}
	return err
}

// writer writes a file, which may be gone on with by another one.
type writer struct {
	root *os.Root
	name string
	file *os.File
	size int64
}

var _ driver.FileWriter = (*writer)(nil)

func (w *writer) Write(p []byte) (int, error) {
	n, err := w.file.Write(p)
	w.size += int64(n)
	return n, err
}

func (w *writer) Size() int64 { return w.size }

func (w *writer) Commit(context.Context) error { return w.file.Sync() }

func (w *writer) Close() error { return w.file.Close() }

func (w *writer) Cancel(context.Context) error {
	return errors.Join(w.file.Close(), w.root.Remove(w.name))
}
