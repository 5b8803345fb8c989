// Command knarr-image makes Knarr's container image, from an executable that is
// built and from Debian's packages, with neither a daemon nor a registry:
//
//	go run ./cmd/knarr-image -knarr dist/knarr -o dist/knarr-image-amd64.tar
//
// docker load, podman load, ctr images import and knarr load take the archive.
// With -root it lays the image's files into a folder instead, as the Dockerfile
// wants them.
//
// It needs Debian's apt-get and dpkg-deb. For another processor's image, with
// -arch, package lists are fetched.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/knarr-dev/knarr/pkg/bundle/ocitar"
)

// sources is this program itself: part of the key by which a finished archive is
// known to be up to date.
//
//go:embed *.go
var sources embed.FS

// job is what to make of what.
type job struct {
	knarr, crictl, arch, name string
	out, root                 string // one of them
}

func main() {
	var j job
	flag.StringVar(&j.knarr, "knarr", filepath.Join("dist", "knarr"), "the executable")
	flag.StringVar(&j.crictl, "crictl", "", "knarr-crictl, if the image is to have it")
	flag.StringVar(&j.arch, "arch", runtime.GOARCH, "processor that they are for, as Go calls it")
	flag.StringVar(&j.name, "name", "docker.io/knarr/knarr:latest", "full name of the image")
	flag.StringVar(&j.out, "o", "", "archive to write")
	flag.StringVar(&j.root, "root", "", "folder to lay the image's files into, instead")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := j.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "knarr-image:", err)
		os.Exit(1)
	}
}

func (j job) run(ctx context.Context) error {
	if (j.out == "") == (j.root == "") {
		return errors.New("give -o FILE or -root FOLDER")
	}
	key, err := j.key()
	if err != nil {
		return err
	}
	keyFile := j.out + ".key"
	if have, err := os.ReadFile(keyFile); j.out != "" && err == nil && string(have) == key {
		if _, err := os.Stat(j.out); err == nil {
			return nil
		}
	}
	work, err := os.MkdirTemp("", "knarr-image-")
	if err != nil {
		return fmt.Errorf("make a folder to work in: %w", err)
	}
	defer os.RemoveAll(work)
	files, err := contents(ctx, work, j.arch, j.knarr, j.crictl)
	if err != nil {
		return err
	}
	if j.root != "" {
		return lay(j.root, files)
	}
	img := about()
	img.Name, img.Arch, img.Files, img.Gzip = j.name, j.arch, files, true
	// The key goes first and comes last: what was cut off between the two claims
	// nothing.
	if err := os.Remove(keyFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var archive bytes.Buffer
	if err := ocitar.Write(&archive, img); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(j.out), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(j.out+".new", archive.Bytes(), 0o644); err != nil {
		return err
	}
	if err := os.Rename(j.out+".new", j.out); err != nil {
		return err
	}
	return os.WriteFile(keyFile, []byte(key), 0o644)
}

// key is a digest of all that decides the archive's contents, save the versions
// of Debian's packages.
func (j job) key() (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), j.arch, j.name)
	for _, file := range []string{j.knarr, j.crictl} {
		if file == "" {
			continue
		}
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("%w: run make first", err)
		}
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return "", err
		}
		fmt.Fprintln(h)
	}
	entries, err := sources.ReadDir(".")
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		text, err := sources.ReadFile(e.Name())
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n%s", e.Name(), len(text), text)
	}
	return hex.EncodeToString(h.Sum(nil)) + "\n", nil
}

// lay writes files below a folder.
func lay(root string, files []ocitar.File) error {
	for _, f := range files {
		to := filepath.Join(root, f.Name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		var err error
		switch {
		case f.Link != "":
			err = os.Symlink(f.Link, to)
		case f.Mode.IsDir():
			if err = os.MkdirAll(to, 0o755); err == nil {
				err = os.Chmod(to, f.Mode)
			}
		default:
			err = os.WriteFile(to, f.Data, f.Mode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
