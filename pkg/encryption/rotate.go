package encryption

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/knarr-dev/knarr/pkg/datastore"
)

const (
	// secretsPrefix is what the keys of Secrets begin with in the store.
	secretsPrefix = "/registry/secrets/"
	// writers re-encrypt at a time.
	writers = 8
	// loadTimeout bounds the wait for the server to read the configuration.
	loadTimeout = 30 * time.Second
	// underWay is how long a write to the store may take after it was encrypted.
	underWay = 2 * time.Second
	// rounds are made at most until all Secrets are as they should be: those written
	// with the old key while the configuration changed are found in the next one.
	rounds = 5
)

// Status is how Secrets are kept.
type Status struct {
	// Enabled tells whether Secrets that are written are encrypted.
	Enabled bool `json:"enabled"`
	// Key is the name of the one that they are encrypted with.
	Key string `json:"key,omitempty"`
	// Keys are all that the server reads with.
	Keys []string `json:"keys"`
	// Secrets are counted by the key that each is encrypted with; "" is none.
	Secrets map[string]int `json:"secrets"`
	// Pending is how many of them are not as they would be written now.
	Pending int `json:"pending"`
	// Loaded tells whether a server works by the configuration as it is.
	Loaded bool `json:"loaded"`
}

// Manager changes how a server's Secrets are kept. It runs on the server's machine.
type Manager struct {
	// ServerDir is <data-dir>/server.
	ServerDir string
	// Client is an administrator's. Only Status does without one.
	Client kubernetes.Interface
	// Step is told what begins. May be nil.
	Step func(what string)
	// Progress is told how many of so many Secrets are written. May be nil.
	Progress func(done, of int)
}

func (m *Manager) store() string { return filepath.Join(m.ServerDir, "db", "state.db") }

// Status reads the configuration and the store.
func (m *Manager) Status(ctx context.Context) (Status, error) {
	c, err := Load(Path(m.ServerDir))
	if errors.Is(err, fs.ErrNotExist) {
		return Status{}, fmt.Errorf("%w: a server makes it at its start: give --data-dir as the server gets it", err)
	}
	if err != nil {
		return Status{}, err
	}
	s := Status{Enabled: c.Enabled, Keys: []string{}, Secrets: map[string]int{}}
	for _, k := range c.Keys {
		s.Keys = append(s.Keys, k.Name)
	}
	s.Key = c.writesWith()
	stored, err := m.stored(ctx)
	if err != nil {
		return s, err
	}
	for _, key := range stored {
		s.Secrets[key]++
		if key != s.Key {
			s.Pending++
		}
	}
	s.Loaded = m.loaded() == nil
	return s, nil
}

// stored tells of each Secret what it is encrypted with.
func (m *Manager) stored(ctx context.Context) (map[types.NamespacedName]string, error) {
	i, err := datastore.Inspect(ctx, m.store())
	if err != nil {
		return nil, err
	}
	defer i.Close()
	living, err := i.Living(ctx)
	if err != nil {
		return nil, err
	}
	found := map[types.NamespacedName]string{}
	for key, row := range living {
		name, is := strings.CutPrefix(key, secretsPrefix)
		ns, name, ok := strings.Cut(name, "/")
		if !is || !ok {
			continue
		}
		value, err := i.Value(ctx, row.Revision)
		if err != nil {
			return nil, err
		}
		found[types.NamespacedName{Namespace: ns, Name: name}] = keyOf(value)
	}
	return found, nil
}

// Rotate makes a new key, has all Secrets written with it, and forgets the others.
// It goes on where an attempt before was interrupted.
func (m *Manager) Rotate(ctx context.Context) error {
	return m.change(ctx, func(c *Config) (string, error) {
		if !c.Enabled {
			return "", errors.New("rotate keys: Secrets are not encrypted: \"knarr secrets-encrypt enable\" has them so")
		}
		if len(c.Keys) > 1 {
			return "go on with an earlier rotation, to " + c.Keys[0].Name, nil
		}
		k, err := c.NewKey()
		c.Keys = slices.Insert(c.Keys, 0, k)
		return "use a new key, " + k.Name, err
	}, func(c *Config) { c.Keys = c.Keys[:1] })
}

// Enable has all Secrets encrypted.
func (m *Manager) Enable(ctx context.Context) error {
	return m.change(ctx, func(c *Config) (string, error) {
		if len(c.Keys) == 0 {
			k, err := c.NewKey()
			if err != nil {
				return "", err
			}
			c.Keys = []Key{k}
		}
		c.Enabled = true
		return "encrypt what is written, with " + c.Keys[0].Name, nil
	}, nil)
}

// Disable has all Secrets written in the clear. The key stays, for backups and for
// Enable.
func (m *Manager) Disable(ctx context.Context) error {
	return m.change(ctx, func(c *Config) (string, error) {
		c.Enabled = false
		return "write in the clear", nil
	}, nil)
}

// change has the server work by another configuration, writes all Secrets anew that
// are not as they should be, and then settles the configuration.
func (m *Manager) change(ctx context.Context, edit func(*Config) (string, error), settle func(*Config)) error {
	path := Path(m.ServerDir)
	c, err := Load(path)
	if err != nil {
		return err
	}
	what, err := edit(&c)
	if err != nil {
		return err
	}
	// Before anything changes: a server that does not read the file never will.
	if err := m.loaded(); err != nil {
		return err
	}
	m.step(what)
	if err := c.save(path); err != nil {
		return err
	}
	if err := m.await(ctx); err != nil {
		return err
	}
	if err := m.rewrite(ctx, c.writesWith()); err != nil || settle == nil {
		return err
	}
	// A write that was under way when the configuration changed may have used a key
	// that is about to go.
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(underWay):
	}
	if err := m.rewrite(ctx, c.writesWith()); err != nil {
		return err
	}
	settle(&c)
	m.step("forget the keys of before")
	if err := c.save(path); err != nil {
		return err
	}
	return m.await(ctx)
}

// rewrite writes Secrets that are not encrypted with that key. The API server
// writes an object that does not change if it would be encrypted otherwise.
func (m *Manager) rewrite(ctx context.Context, key string) error {
	for range rounds {
		stored, err := m.stored(ctx)
		if err != nil {
			return err
		}
		var old []types.NamespacedName
		for name, with := range stored {
			if with != key {
				old = append(old, name)
			}
		}
		if len(old) == 0 {
			return nil
		}
		m.step(fmt.Sprintf("write %d of %d Secrets anew", len(old), len(stored)))
		if err := m.rewriteAll(ctx, old); err != nil {
			return fmt.Errorf("write Secrets anew: %w: run the same command again to go on", err)
		}
	}
	return errors.New("write Secrets anew: some are still not as they should be: is another server at work? Run the same command again to go on")
}

func (m *Manager) rewriteAll(ctx context.Context, names []types.NamespacedName) error {
	var mu sync.Mutex
	done := 0
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for _, n := range names {
		g.Go(func() error {
			_, err := m.Client.CoreV1().Secrets(n.Namespace).Patch(ctx, n.Name, types.MergePatchType, []byte("{}"), metav1.PatchOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("%s/%s: %w", n.Namespace, n.Name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if done++; m.Progress != nil {
				m.Progress(done, len(names))
			}
			return nil
		})
	}
	return g.Wait()
}

func (m *Manager) step(what string) {
	if m.Step != nil {
		m.Step(what)
	}
}

// loaded is an error unless the server works by the configuration that is in the
// file.
func (m *Manager) loaded() error {
	text, err := os.ReadFile(Path(m.ServerDir))
	if err != nil {
		return fmt.Errorf("read encryption configuration: %w", err)
	}
	has, err := os.ReadFile(LoadedPath(m.ServerDir))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the server does not work by %s: start it, and without an encryption-provider-config of your own", Path(m.ServerDir))
	}
	if err != nil {
		return fmt.Errorf("find what the server works by: %w", err)
	}
	if string(has) != Hash(text) {
		return fmt.Errorf("the server works by another configuration than %s has: is it running? Its log tells of mistakes in the file", Path(m.ServerDir))
	}
	return nil
}

// Hash names a configuration's content.
func Hash(text []byte) string { return fmt.Sprintf("sha256:%x\n", sha256.Sum256(text)) }

// await waits until the server has read the configuration, which it does at once.
func (m *Manager) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	for {
		err := m.loaded()
		if err == nil {
			return m.answers(ctx)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond): // for a file of another process
		}
	}
}

// answers tells whether the server can read what it has, by the new configuration.
func (m *Manager) answers(ctx context.Context) error {
	if _, err := m.Client.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
		return fmt.Errorf("read a Secret by the new configuration: %w", err)
	}
	return nil
}
