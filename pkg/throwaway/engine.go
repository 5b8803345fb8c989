package throwaway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/knarr-dev/knarr/pkg/throwaway/imagecache"
)

// Where the machine's own container engines listen.
const (
	dockerSocket     = "/var/run/docker.sock"
	containerdSocket = "/run/containerd/containerd.sock"
)

// An engine of this machine has images.
type engine interface {
	// version tells the image that a name stands for from others, if it is not empty. It
	// fails with fs.ErrNotExist if the engine does not run.
	version(ctx context.Context, name string) (string, error)
	// export writes an image as an archive.
	export(ctx context.Context, name string, to io.Writer) error
}

type engines []engine

// source is an image of the first engine that has it.
func (all engines) source(name string) imagecache.Source {
	return imagecache.Source{
		Name: name,
		Version: func(ctx context.Context) string {
			_, version, _ := all.find(ctx, name)
			return version
		},
		Read: func(ctx context.Context, to io.Writer) (string, error) {
			e, version, err := all.find(ctx, name)
			if err != nil {
				return "", err
			}
			if err := e.export(ctx, name, to); err != nil {
				return "", err
			}
			if now, err := e.version(ctx, name); err != nil || now != version {
				return "", nil // another image has got the name meanwhile
			}
			return version, nil
		},
	}
}

func (all engines) find(ctx context.Context, name string) (e engine, version string, err error) {
	err = fmt.Errorf("no Docker and no containerd of this machine listens at %s or %s: give an archive", dockerSocket, containerdSocket)
	told := false
	for _, e := range all {
		version, ferr := e.version(ctx, name)
		if ferr == nil {
			return e, version, nil
		}
		if !told && !errors.Is(ferr, fs.ErrNotExist) {
			err, told = ferr, true
		}
	}
	return nil, "", err
}

// docker is the socket of one.
type docker string

func (d docker) version(ctx context.Context, name string) (string, error) {
	answer, err := d.get(ctx, name, "json")
	if err != nil {
		return "", err
	}
	defer answer.Close()
	var image struct{ ID string }
	if err := json.NewDecoder(answer).Decode(&image); err != nil {
		return "", fmt.Errorf("read from Docker: %w", err)
	}
	if image.ID == "" {
		return "", nil
	}
	return "docker " + image.ID, nil
}

func (d docker) export(ctx context.Context, name string, to io.Writer) error {
	answer, err := d.get(ctx, name, "get")
	if err != nil {
		return err
	}
	defer answer.Close()
	if _, err := io.Copy(to, answer); err != nil {
		return fmt.Errorf("read from Docker: %w", err)
	}
	return nil
}

// get asks for something of an image.
func (d docker) get(ctx context.Context, name, what string) (io.ReadCloser, error) {
	if _, err := os.Stat(string(d)); err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", string(d))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/images/"+url.PathEscape(name)+"/"+what, nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask Docker: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		return nil, fmt.Errorf("image %s from Docker: %s", name, answer.Status)
	}
	return answer.Body, nil
}

// otherContainerd is the socket of one that is no node's.
type otherContainerd string

func (c otherContainerd) version(ctx context.Context, name string) (version string, err error) {
	err = c.with(ctx, name, func(_ context.Context, _ *containerd.Client, digest string) error {
		version = "containerd " + digest
		return nil
	})
	return version, err
}

func (c otherContainerd) export(ctx context.Context, name string, to io.Writer) error {
	return c.with(ctx, name, func(ctx context.Context, client *containerd.Client, _ string) error {
		if err := client.Export(ctx, to, archive.WithImage(client.ImageService(), name)); err != nil {
			return fmt.Errorf("export from containerd: %w", err)
		}
		return nil
	})
}

// with calls fn in the namespace in which the image is.
func (c otherContainerd) with(ctx context.Context, name string, fn func(ctx context.Context, client *containerd.Client, digest string) error) error {
	if _, err := os.Stat(string(c)); err != nil {
		return err
	}
	client, err := containerd.New(string(c))
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	defer client.Close()
	for _, namespace := range []string{"default", "k8s.io", "moby"} {
		ctx := namespaces.WithNamespace(ctx, namespace)
		if img, err := client.ImageService().Get(ctx, name); err == nil {
			return fn(ctx, client, img.Target.Digest.String())
		}
	}
	return fmt.Errorf("containerd has no image %s", name)
}
