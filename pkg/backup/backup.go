// Package backup saves all that makes a cluster, and brings it back: the store,
// the authorities with their keys, the tokens, and the keys that Secrets are
// encrypted with.
//
// A backup is one file: a tar archive of what is in <data-dir>/server, a manifest
// with hashes first, compressed by zstd and, if there are keys for it, encrypted
// by age. It is made while the server runs, or does not, and checked as a whole
// before it changes anything.
package backup

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/datastore"
	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/pkg/version"
)

// Config says what is backed up, and where to.
type Config struct {
	// DataDir is the server's. Copies are made in it before they are archived.
	DataDir string
	// Node is the server's, for the manifest.
	Node    string
	Keys    Keys
	Storage Storage
	// Retention is how many backups of a cluster Prune keeps.
	Retention int
	// Now defaults to time.Now.
	Now func() time.Time
}

// New takes the configuration of a server.
func New(c *config.Config) (Config, error) {
	b := c.Backup
	cfg := Config{
		DataDir:   c.DataDir,
		Node:      c.Node.Name,
		Keys:      Keys{PassphraseFile: b.PassphraseFile, RecipientsFile: b.RecipientsFile},
		Storage:   Folder{Path: cmp.Or(b.Dir, filepath.Join(c.DataDir, "backups"))},
		Retention: b.Retention,
	}
	if !b.S3.Enabled {
		return cfg, nil
	}
	var err error
	cfg.Storage, err = bucket(b.S3, b.S3.Bucket, b.S3.Folder)
	return cfg, err
}

// NewReplica takes the configuration of a server that copies its changes to a
// place: a folder, or s3://bucket/folder, reached by the options of backups.
func NewReplica(c *config.Config, to string) (Config, error) {
	cfg := Config{
		DataDir: c.DataDir,
		Node:    c.Node.Name,
		Keys:    Keys{PassphraseFile: c.Backup.PassphraseFile, RecipientsFile: c.Backup.RecipientsFile},
		Storage: Folder{Path: to},
	}
	rest, ok := strings.CutPrefix(to, "s3://")
	if !ok {
		return cfg, nil
	}
	name, folder, _ := strings.Cut(rest, "/")
	var err error
	cfg.Storage, err = bucket(c.Backup.S3, name, folder)
	return cfg, err
}

func bucket(b config.S3, name, folder string) (Storage, error) {
	timeout, err := time.ParseDuration(cmp.Or(b.Timeout, "5m"))
	if err != nil {
		return nil, fmt.Errorf("--backup-s3-timeout: %w", err)
	}
	return NewS3(S3Config{
		Endpoint: b.Endpoint, EndpointCA: b.EndpointCA, SkipSSLVerify: b.SkipSSLVerify, Insecure: b.Insecure,
		Bucket: name, Region: b.Region, Folder: folder, CredentialsFile: b.CredentialsFile, Timeout: timeout,
	})
}

func (c Config) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c Config) serverDir() string { return filepath.Join(c.DataDir, "server") }

func (c Config) store() string { return filepath.Join(c.serverDir(), filepath.FromSlash(storePath)) }

const (
	// storePath is the store's, in an archive and below <data-dir>/server.
	storePath = "db/state.db"
	// caPath is that of the certificate that names a cluster, until it is replaced.
	caPath = "tls/server-ca.crt"
	// attempts are made to copy the store with files that did not change meanwhile.
	attempts = 3
)

// Create makes a backup and returns what is in its manifest and its name.
func Create(ctx context.Context, c Config) (Manifest, Stored, error) {
	if _, err := os.Stat(c.store()); errors.Is(err, fs.ErrNotExist) {
		return Manifest{}, Stored{}, fmt.Errorf("back up: there is no cluster in %s: give --data-dir as the server gets it", c.DataDir)
	}
	if c.Keys.Sealed() {
		if _, err := c.Keys.recipients(); err != nil {
			return Manifest{}, Stored{}, err // before anything is done
		}
	}
	work, err := newWork(c.DataDir)
	if err != nil {
		return Manifest{}, Stored{}, err
	}
	defer work.close()
	m, files, err := c.collect(ctx, work)
	if err != nil {
		return Manifest{}, Stored{}, err
	}
	name := nameOf(m, c.Keys.Sealed())
	file, err := os.OpenFile(filepath.Join(work.dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Manifest{}, Stored{}, fmt.Errorf("back up: %w", err)
	}
	defer file.Close()
	sealed, err := c.Keys.seal(file)
	if err != nil {
		return Manifest{}, Stored{}, err
	}
	if err := errors.Join(writeArchive(sealed, m, files), sealed.Close()); err != nil {
		return Manifest{}, Stored{}, fmt.Errorf("write backup: %w", err)
	}
	size, err := file.Seek(0, 1)
	if err == nil {
		_, err = file.Seek(0, 0)
	}
	if err != nil {
		return Manifest{}, Stored{}, fmt.Errorf("write backup: %w", err)
	}
	if err := c.Storage.Put(ctx, name, file); err != nil {
		return Manifest{}, Stored{}, err
	}
	stored, _ := parseName(name)
	stored.Size = size
	return m, stored, nil
}

// collect copies the store, and finds the files that belong to it. A key for
// Secrets that came or went while the store was copied would be missing: then
// it tries again.
func (c Config) collect(ctx context.Context, work *workDir) (Manifest, []source, error) {
	for try := 1; ; try++ {
		m, files, err := c.collectOnce(ctx, work)
		if err != nil || files != nil {
			return m, files, err
		}
		if try == attempts {
			return m, nil, fmt.Errorf("back up: files in %s changed each time the store was copied: try again", c.serverDir())
		}
	}
}

func (c Config) collectOnce(ctx context.Context, work *workDir) (Manifest, []source, error) {
	before, err := sources(c.serverDir())
	if err != nil {
		return Manifest{}, nil, err
	}
	v := version.Get()
	m := Manifest{Format: format, Created: c.now().UTC(), Node: c.Node, Knarr: v.Knarr, Kubernetes: v.Kubernetes}
	if m.Cluster, err = clusterOf(c.serverDir()); err != nil {
		return m, nil, err
	}
	store := source{File: File{Path: storePath}, From: filepath.Join(work.dir, "state.db")}
	if err := os.Remove(store.From); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return m, nil, fmt.Errorf("back up: %w", err)
	}
	if err := datastore.Copy(ctx, c.store(), store.From); err != nil {
		return m, nil, err
	}
	if err := m.glance(ctx, store.From); err != nil {
		return m, nil, err
	}
	if err := store.Measure(); err != nil {
		return m, nil, fmt.Errorf("back up: %w", err)
	}
	after, err := sources(c.serverDir())
	if err != nil {
		return m, nil, err
	}
	if !slices.Equal(before, after) {
		return m, nil, nil
	}
	files := append([]source{store}, after...)
	for _, f := range files {
		m.Files = append(m.Files, f.File)
	}
	return m, files, nil
}

// glance notes whose a copy of the store is and which revision it has. The copy
// has to be whole, as far as a start of the server would look.
func (m *Manifest) glance(ctx context.Context, path string) error {
	i, err := datastore.Inspect(ctx, path)
	if err != nil {
		return err
	}
	defer i.Close()
	m.Driver = i.Driver
	if m.Revision, err = i.Glance(ctx); err != nil {
		return fmt.Errorf("%w: \"knarr store check\" tells more", err)
	}
	return nil
}

// clusterOf names the cluster of a server's folder: by its first authority, whatever
// has replaced it.
func clusterOf(dir string) (string, error) {
	if first := pki.FirstAuthority(filepath.Join(dir, "tls")); first != "" {
		return first, nil
	}
	text, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(caPath)))
	if err != nil {
		return "", fmt.Errorf("read the cluster's authority: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return "", fmt.Errorf("read the cluster's authority: there is no certificate in %s", filepath.Join(dir, caPath))
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:]), nil
}

// workDir is where one backup or restore at a time has its copies. They are not
// encrypted, as the data dir that they are in is not.
type workDir struct {
	dir  string
	lock *os.File
}

const workName = "backup.work"

func newWork(dataDir string) (*workDir, error) {
	if err := os.MkdirAll(dataDir, 0o755); err != nil {
		return nil, fmt.Errorf("make data dir: %w", err)
	}
	dir := filepath.Join(dataDir, workName)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make room for a backup: %w", err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("make room for a backup: %w", err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		lock.Close()
		return nil, fmt.Errorf("another backup or restore of %s is at work: wait for its end", dataDir)
	}
	w := &workDir{dir: dir, lock: lock}
	if err == nil {
		err = w.empty() // of what a crash left
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("make room for a backup: %w", err)
	}
	return w, nil
}

func (w *workDir) empty() error {
	entries, err := os.ReadDir(w.dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(w.dir, e.Name())))
	}
	return err
}

// close removes the folder's contents. The folder itself is what the lock is on.
func (w *workDir) close() {
	_ = w.empty() // the next one tries again
	w.lock.Close()
}

// List returns the backups that there are, oldest first.
func List(ctx context.Context, c Config) ([]Stored, error) {
	objects, err := c.Storage.List(ctx)
	if err != nil {
		return nil, err
	}
	var all []Stored
	for _, o := range objects {
		if s, ok := parseName(o.Name); ok {
			s.Size = o.Size
			all = append(all, s)
		}
	}
	sortByAge(all)
	return all, nil
}

// Prune deletes all but the latest backups of the server's own cluster, as many as
// Retention says, and returns those deleted.
func Prune(ctx context.Context, c Config) ([]Stored, error) {
	if c.Retention < 1 {
		return nil, fmt.Errorf("prune backups: %d cannot be kept (--backup-retention): give 1 or more", c.Retention)
	}
	cluster, err := clusterOf(c.serverDir())
	if err != nil {
		return nil, fmt.Errorf("prune backups: %w", err)
	}
	all, err := List(ctx, c)
	if err != nil {
		return nil, err
	}
	own := slices.DeleteFunc(all, func(s Stored) bool { return !s.isOf(cluster) })
	old := own[:max(0, len(own)-c.Retention)]
	for n, s := range old {
		if err := c.Storage.Delete(ctx, s.Name); err != nil {
			return old[:n], err
		}
	}
	return old, nil
}

func sortByAge(all []Stored) {
	slices.SortFunc(all, func(a, b Stored) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name)) })
}
