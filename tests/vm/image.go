package vm

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

//go:embed image.sh
var recipe []byte

// makeImage makes the machine's disk in a folder, unless it is there already.
func makeImage(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	lock, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("wait for who makes the image: %w", err)
	}
	sum := sha256.Sum256(recipe)
	key, keyFile := hex.EncodeToString(sum[:]), filepath.Join(dir, "key")
	if have, err := os.ReadFile(keyFile); err == nil && string(have) == key {
		return nil
	}
	c := exec.Command("./image.sh", dir)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("make the machine's disk: %w\n%s", err, out[max(0, len(out)-4000):])
	}
	return os.WriteFile(keyFile, []byte(key), 0o644)
}

// makePayload makes a disk with files, name to source.
func makePayload(disk string, files map[string]string) error {
	root, err := os.MkdirTemp(filepath.Dir(disk), "payload-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	size := int64(16 << 20)
	for name, from := range files {
		info, err := os.Stat(from)
		if err != nil {
			return err
		}
		size += info.Size() + info.Size()/20
		if err := tool("cp", "--", from, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	f, err := os.Create(disk)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return tool("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", root, disk)
}
