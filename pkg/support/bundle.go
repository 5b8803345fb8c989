package support

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	// stepTime bounds each program that is run and each request that is made.
	stepTime = 20 * time.Second
	// stepSize bounds what is kept of each, from its end, in bytes.
	stepSize = 4 << 20
)

// Step is one text of a bundle.
type Step struct {
	// Name is the file's in the bundle.
	Name string
	// Get returns the text. What it returns beside an error is kept, with the error
	// at its end: a bundle is made when things are broken.
	Get func(context.Context) ([]byte, error)
}

// Program is a step that runs a program.
func Program(name, program string, args ...string) Step {
	return Step{Name: name, Get: func(ctx context.Context) ([]byte, error) {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.WaitDelay = time.Second
		text, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("run %s: %w", program, err)
		}
		return text, err
	}}
}

// File is a step that reads a file of any kind of text.
func File(name, path string) Step {
	return Step{Name: name, Get: func(context.Context) ([]byte, error) { return os.ReadFile(path) }}
}

// Text is a step that knows its text.
func Text(name string, get func() (string, error)) Step {
	return Step{Name: name, Get: func(context.Context) ([]byte, error) {
		text, err := get()
		return []byte(text), err
	}}
}

// Write writes a gzipped tar archive with a file for each step, all in one folder,
// and nothing in it that scrub knows for a secret. A step that fails says so in
// its file.
func Write(ctx context.Context, w io.Writer, folder string, scrub *Scrubber, steps []Step) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	now := time.Now()
	for _, s := range steps {
		text := scrub.Scrub(s.run(ctx))
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("write the bundle: %w", err)
		}
		h := &tar.Header{Name: filepath.Join(folder, s.Name), Mode: 0o600, Size: int64(len(text)), ModTime: now}
		if err := t.WriteHeader(h); err != nil {
			return fmt.Errorf("write the bundle: %w", err)
		}
		if _, err := io.WriteString(t, text); err != nil {
			return fmt.Errorf("write the bundle: %w", err)
		}
	}
	if err := errors.Join(t.Close(), z.Close()); err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	return nil
}

func (s Step) run(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	text, err := s.Get(ctx)
	if cut := len(text) - stepSize; cut > 0 {
		text = append([]byte("[…]\n"), text[cut:]...)
	}
	if err != nil {
		text = fmt.Appendf(text, "\n[%v]\n", err)
	}
	return string(text)
}
