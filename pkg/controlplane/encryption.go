package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	encryptionmetrics "k8s.io/apiserver/pkg/server/options/encryptionconfig/metrics"

	"github.com/knarr-dev/knarr/pkg/encryption"
)

// encryptionFlag is the API server's. A user's own file takes the place of ours.
const encryptionFlag = "encryption-provider-config"

// encryptsOurWay tells whether the configuration in the data dir is used.
func encryptsOurWay(userArgs []string) bool {
	for _, arg := range userArgs {
		name, _, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		if strings.ReplaceAll(name, "_", "-") == encryptionFlag {
			return false
		}
	}
	return true
}

// reloadHook is upstream's, which looks at the file each minute.
const reloadHook = "start-encryption-provider-config-automatic-reload"

// reloader has the API server work by the encryption configuration as it is in
// the file, from the moment that it changes.
type reloader struct {
	path   string
	loaded string // where the hash of what is in force is told
	id     string // the API server's, for metrics
	set    *encryptionconfig.DynamicTransformers
	log    *slog.Logger
	has    string // the hash in force
}

// reloadEncryption takes over from upstream's reload, of a server that was
// configured with one.
func reloadEncryption(generic *genericapiserver.Config, serverDir string, log *slog.Logger) (*reloader, error) {
	set, ok := generic.ResourceTransformers.(*encryptionconfig.DynamicTransformers)
	if !ok {
		return nil, fmt.Errorf("reload encryption configuration: the API server has transformers of type %T", generic.ResourceTransformers)
	}
	generic.DisabledPostStartHooks.Insert(reloadHook)
	r := &reloader{path: encryption.Path(serverDir), loaded: encryption.LoadedPath(serverDir), id: generic.APIServerID, set: set, log: log}
	text, err := os.ReadFile(r.path)
	if err != nil {
		return nil, fmt.Errorf("read encryption configuration: %w", err)
	}
	r.has = encryption.Hash(text)
	return r, nil
}

// run follows the file until ctx ends.
func (r *reloader) run(ctx context.Context) {
	if err := r.follow(ctx); err != nil && ctx.Err() == nil {
		r.log.Error("a change of the encryption configuration will need a restart", "err", err)
	}
	// Whoever changes the file then sees that nobody reads it.
	_ = os.Remove(r.loaded)
}

func (r *reloader) follow(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch encryption configuration: %w (raise sysctl fs.inotify.max_user_instances)", err)
	}
	defer w.Close()
	// The file is replaced, so that its folder has to be watched.
	if err := w.Add(filepath.Dir(r.path)); err != nil {
		return fmt.Errorf("watch encryption configuration: %w", err)
	}
	if err := r.tell(); err != nil {
		return err
	}
	r.reload(ctx) // it may have changed since it was read
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Events:
			if !ok {
				return errors.New("watch encryption configuration: it ended")
			}
			if e.Name == r.path && e.Has(fsnotify.Create|fsnotify.Write) {
				r.reload(ctx)
			}
		case err, ok := <-w.Errors:
			if !ok {
				return errors.New("watch encryption configuration: it ended")
			}
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				r.reload(ctx)
			}
		}
	}
}

// reload leaves what is in force as it is when the file has a mistake.
func (r *reloader) reload(ctx context.Context) {
	text, err := os.ReadFile(r.path)
	if err == nil && encryption.Hash(text) == r.has {
		return
	}
	if err == nil {
		err = r.load(ctx)
	}
	if err == nil {
		r.has = encryption.Hash(text)
		err = r.tell()
	}
	if err != nil {
		encryptionmetrics.RecordEncryptionConfigAutomaticReloadFailure(r.id)
		r.log.Error("the encryption configuration is not used: what it said before stays in force", "file", r.path, "err", err)
		return
	}
	r.log.Info("the encryption configuration has changed", "file", r.path)
}

func (r *reloader) load(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	c, err := encryptionconfig.LoadEncryptionConfig(ctx, r.path, true, r.id)
	if err == nil && len(c.HealthChecks) != 1 {
		err = fmt.Errorf("it has %d health checks, not one", len(c.HealthChecks))
	}
	if err != nil {
		cancel()
		return err
	}
	// A provider of before is closed once those who use it have ended.
	r.set.Set(c.Transformers, cancel, c.HealthChecks[0], max(c.KMSCloseGracePeriod, 10*time.Second))
	encryptionmetrics.RecordEncryptionConfigAutomaticReloadSuccess(r.id, c.EncryptionFileContentHash)
	return nil
}

func (r *reloader) tell() error {
	if err := os.WriteFile(r.loaded, []byte(r.has), 0o600); err != nil {
		return fmt.Errorf("tell which encryption configuration is in force: %w", err)
	}
	return nil
}
