package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

func (b *bench) size(ctx context.Context, s subject) error {
	files, err := s.executables()
	if err != nil {
		return err
	}
	var size, packed int64
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return err
		}
		size += info.Size()
		n, err := packedSize(ctx, f, filepath.Join(b.work, "packed"))
		if err != nil {
			return err
		}
		packed += n
	}
	b.results.of(s.name()).add("size.file", mebibytes(size))
	b.results.of(s.name()).add("size.zstd", mebibytes(packed))
	return nil
}

// packedSize is what zstd -19 makes of a file. It takes a minute for a big one,
// so the folder keeps the size of each content that it was asked for.
func packedSize(ctx context.Context, file, folder string) (int64, error) {
	sum, err := digest(file)
	if err != nil {
		return 0, err
	}
	known := filepath.Join(folder, sum)
	text, err := os.ReadFile(known)
	if err == nil {
		return strconv.ParseInt(string(text), 10, 64)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	n, err := zstdSize(ctx, file)
	if err != nil {
		return 0, err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return 0, err
	}
	return n, os.WriteFile(known, strconv.AppendInt(nil, n, 10), 0o644)
}

func digest(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func zstdSize(ctx context.Context, file string) (int64, error) {
	c := exec.CommandContext(ctx, "zstd", "-19", "-T0", "-q", "-c", file)
	out, err := c.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := c.Start(); err != nil {
		return 0, fmt.Errorf("compress %s: %w", file, err)
	}
	n, err := io.Copy(io.Discard, out)
	if werr := c.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		return 0, fmt.Errorf("compress %s: %w", file, err)
	}
	return n, nil
}
