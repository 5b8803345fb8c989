package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/knarr-dev/knarr/pkg/durable"
)

// CheckStoreVersion refuses, with a NewerStoreError, a store that a newer
// Kubernetes minor version than ours has written to: its objects may have forms that ours can't read. Dir is
// the server's folder, version ours (v1.36.4+knarr1). A store without a record
// is a new one.
func CheckStoreVersion(dir, version string) error {
	path := filepath.Join(dir, "version")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the store's version: %w", err)
	}
	recorded := strings.TrimSpace(string(b))
	theirs, err := minor(recorded)
	if err != nil {
		return fmt.Errorf("read the store's version from %s: %w", path, err)
	}
	ours, err := minor(version)
	if err != nil {
		return fmt.Errorf("compare with the store's version %s: %w", recorded, err)
	}
	if theirs > ours {
		return &NewerStoreError{Dir: dir, Recorded: recorded, Version: version}
	}
	return nil
}

// NewerStoreError says that a newer version than ours has written to a store.
type NewerStoreError struct {
	// Dir is the server's folder, Recorded the version that used it, Version ours.
	Dir, Recorded, Version string
}

func (e *NewerStoreError) Error() string {
	return fmt.Sprintf("the store in %s was last used by %s: %s; %s", e.Dir, e.Recorded, e.why(), e.advice())
}

func (e *NewerStoreError) why() string {
	return "this is " + e.Version + ", which may not be able to read its objects"
}

func (e *NewerStoreError) advice() string {
	ours, _ := minor(e.Version) // it was read before
	text := fmt.Sprintf("install %s or newer, or restore a backup made by v1.%d or older", e.Recorded, ours)
	// Package upgrade's folder, beside the server's.
	if made, _ := filepath.Glob(filepath.Join(filepath.Dir(e.Dir), "upgrades", "*", "backup.json")); len(made) > 0 {
		text += " (knarr rollback puts back the one that was made at the last upgrade)"
	}
	return text
}

// RecordStoreVersion notes which version works on the store from now on. Call
// it after CheckStoreVersion and before the first write to the store. It
// writes only if the record differs.
func RecordStoreVersion(dir, version string) error {
	path := filepath.Join(dir, "version")
	if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == version {
		return nil
	}
	if err := durable.Replace(path, 0o600, strings.NewReader(version+"\n")); err != nil {
		return fmt.Errorf("record the store's version: %w", err)
	}
	return nil
}

// minor returns the second number of a Kubernetes version; the first is 1.
func minor(version string) (int, error) {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 || parts[0] != "1" {
		return 0, fmt.Errorf("%q is not a Kubernetes version", version)
	}
	n, err := strconv.Atoi(parts[1])
	if err != nil {
		return 0, fmt.Errorf("%q is not a Kubernetes version", version)
	}
	return n, nil
}
