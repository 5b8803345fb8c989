package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	ctrimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// importedLabel marks an image that a user imported by hand.
const importedLabel = "knarr.dev/imported"

// connectTimeout bounds the wait for a containerd that does not answer.
const connectTimeout = 5 * time.Second

// Store is a node's images, for the user who manages them. It asks as the kubelet
// does wherever the kubelet has a word for it.
type Store struct {
	client *containerd.Client
	cri    runtime.ImageServiceClient
	pods   runtime.RuntimeServiceClient
}

// Image is one of them, under all its names.
type Image struct {
	// ID is the digest of its configuration.
	ID string `json:"id"`
	// Tags and Digests are its names, in full.
	Tags    []string `json:"tags,omitempty"`
	Digests []string `json:"digests,omitempty"`
	// Size is what it takes as it was pulled, compressed, in bytes.
	Size uint64 `json:"size"`
	// Pinned images are never removed to make room: those that Knarr brought, that
	// lie in the folder of archives, or that were imported by hand.
	Pinned bool `json:"pinned"`
	// Used is set while a container of a pod, running or ended, was made of it.
	Used bool `json:"used"`
}

// Name is what a user would call the image.
func (i Image) Name() string {
	if len(i.Tags) > 0 {
		return i.Tags[0]
	}
	if len(i.Digests) > 0 {
		return i.Digests[0]
	}
	return i.ID
}

// Open connects to the containerd that listens on the unix socket at address.
func Open(ctx context.Context, address string) (*Store, error) {
	dialer := net.Dialer{Timeout: connectTimeout}
	conn, err := dialer.DialContext(ctx, "unix", address)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("connect to containerd at %s: %w; run this as root", address, err)
	case err != nil:
		return nil, fmt.Errorf("connect to containerd at %s: %w; is Knarr running on this machine?", address, err)
	}
	_ = conn.Close() // it was for the error only
	client, err := Dial(address)
	if err != nil {
		return nil, err
	}
	grpcConn, ok := client.Conn().(*grpc.ClientConn)
	if !ok {
		return nil, fmt.Errorf("connect to containerd at %s: its client has no connection", address)
	}
	return &Store{client: client, cri: runtime.NewImageServiceClient(grpcConn), pods: runtime.NewRuntimeServiceClient(grpcConn)}, nil
}

// Close ends the connection.
func (s *Store) Close() error { return s.client.Close() }

// List returns all images, by name.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	answer, err := s.cri.ListImages(ctx, &runtime.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	used, err := s.used(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]Image, 0, len(answer.Images))
	for _, i := range answer.Images {
		img := Image{ID: i.Id, Tags: i.RepoTags, Digests: i.RepoDigests, Size: i.Size, Pinned: i.Pinned}
		slices.Sort(img.Tags)
		slices.Sort(img.Digests)
		for _, name := range slices.Concat([]string{i.Id}, img.Tags, img.Digests) {
			img.Used = img.Used || used[name]
		}
		list = append(list, img)
	}
	slices.SortFunc(list, func(a, b Image) int { return cmp.Compare(a.Name(), b.Name()) })
	return list, nil
}

// used are the names, of any kind, of images that containers are made of or have
// as volumes.
func (s *Store) used(ctx context.Context) (map[string]bool, error) {
	answer, err := s.pods.ListContainers(ctx, &runtime.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	used := map[string]bool{}
	for _, c := range answer.Containers {
		for _, name := range []string{c.ImageId, c.ImageRef, c.Image.GetImage(), c.Image.GetUserSpecifiedImage()} {
			used[name] = true
		}
		detail, err := s.pods.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: c.Id})
		if err != nil {
			continue // gone since
		}
		for _, m := range detail.GetStatus().GetMounts() {
			used[m.GetImage().GetImage()] = true
		}
	}
	delete(used, "")
	return used, nil
}

// Credentials are what a registry wants to know.
type Credentials struct {
	Username, Password string
	// IdentityToken stands in the place of both, if it is set.
	IdentityToken string
}

// Pull fetches an image as the kubelet would, and returns its ID.
func (s *Store) Pull(ctx context.Context, name string, creds Credentials) (string, error) {
	ref, err := fullName(name)
	if err != nil {
		return "", err
	}
	req := &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref.String()}}
	if creds != (Credentials{}) {
		req.Auth = &runtime.AuthConfig{Username: creds.Username, Password: creds.Password, IdentityToken: creds.IdentityToken}
	}
	answer, err := s.cri.PullImage(ctx, req)
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", ref, err)
	}
	return answer.ImageRef, nil
}

// Push sends an image to the registry that the name target begins with, through
// resolver, and returns the digest that it has there. Of an image for several
// kinds of machines, of which containerd has only this machine's, that one is sent.
func (s *Store) Push(ctx context.Context, name, target string, resolver remotes.Resolver) (string, error) {
	to, err := fullName(target)
	if err != nil {
		return "", err
	}
	img, err := s.find(ctx, name)
	if err != nil {
		return "", err
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	desc, err := s.complete(ctx, img.Target)
	if err != nil {
		return "", fmt.Errorf("push %s: %w", img.Name, err)
	}
	if err := s.client.Push(ctx, to.String(), desc, containerd.WithResolver(resolver)); err != nil {
		return "", fmt.Errorf("push %s to %s: %w", img.Name, to, err)
	}
	return desc.Digest.String(), nil
}

// complete returns target if all of it is here, else its part for this machine.
func (s *Store) complete(ctx context.Context, target ocispec.Descriptor) (ocispec.Descriptor, error) {
	store := s.client.ContentStore()
	_, _, _, missing, err := ctrimages.Check(ctx, store, target, platforms.All)
	if err == nil && len(missing) == 0 {
		return target, nil
	}
	if !ctrimages.IsIndexType(target.MediaType) {
		return target, fmt.Errorf("not complete: %s missing", digests(missing))
	}
	parts, err := ctrimages.Children(ctx, store, target)
	if err != nil {
		return target, fmt.Errorf("read index: %w", err)
	}
	machine := platforms.Default()
	parts = slices.DeleteFunc(parts, func(d ocispec.Descriptor) bool {
		return d.Platform == nil || !machine.Match(*d.Platform)
	})
	slices.SortStableFunc(parts, func(a, b ocispec.Descriptor) int {
		if machine.Less(*a.Platform, *b.Platform) {
			return -1
		}
		return 1
	})
	for _, p := range parts {
		if _, _, _, missing, err := ctrimages.Check(ctx, store, p, platforms.All); err == nil && len(missing) == 0 {
			return p, nil
		}
	}
	return target, fmt.Errorf("no part of it is complete for %s", platforms.Format(platforms.DefaultSpec()))
}

// Import reads an archive as [Import] does. The images are pinned until they are
// removed by name.
func (s *Store) Import(ctx context.Context, r io.Reader) ([]string, error) {
	snapshotter, err := s.snapshotter(ctx)
	if err != nil {
		return nil, err
	}
	list, err := Import(ctx, s.client, snapshotter, r, map[string]string{importedLabel: "true"})
	if err != nil {
		return nil, err
	}
	return tags(namesOf(list)), nil
}

// snapshotter is the one that this containerd unpacks for: Knarr's own images
// remember it.
func (s *Store) snapshotter(ctx context.Context) (string, error) {
	list, err := s.client.ImageService().List(ctx, fmt.Sprintf("labels.%q", embeddedLabel))
	if err != nil {
		return "", fmt.Errorf("list images: %w", err)
	}
	for _, img := range list {
		if words := strings.Fields(img.Labels[embeddedLabel]); len(words) == 3 {
			return words[2], nil
		}
	}
	return "", errors.New("this containerd has none of Knarr's images yet, so that it is not known how it keeps layers: is the server still starting?")
}

// Export writes images to w, as an archive that Docker and every OCI tool read.
func (s *Store) Export(ctx context.Context, w io.Writer, names ...string) error {
	ctx = namespaces.WithNamespace(ctx, namespace)
	opts := []archive.ExportOpt{archive.WithPlatform(platforms.DefaultStrict())}
	for _, name := range names {
		img, err := s.find(ctx, name)
		if err != nil {
			return err
		}
		opts = append(opts, archive.WithImage(s.client.ImageService(), img.Name))
	}
	if err := s.client.Export(ctx, w, opts...); err != nil {
		return fmt.Errorf("export %s: %w", strings.Join(names, ", "), err)
	}
	return nil
}

// Remove removes an image under all its names. Containers that were made of it go
// on.
func (s *Store) Remove(ctx context.Context, name string) error {
	ref := name
	if full, err := fullName(name); err == nil {
		ref = full.String()
	}
	for _, n := range []string{ref, name} { // the second may be an ID
		answer, err := s.cri.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: n}})
		if err != nil || answer.Image == nil {
			continue
		}
		if _, err := s.cri.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: answer.Image.Id}}); err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
		return nil
	}
	return fmt.Errorf("remove %s: this machine has no such image; \"knarr image list\" shows all", name)
}

// Prune removes the images that no container of a pod was made of and that are not
// pinned, and returns them. With dry it only returns them.
func (s *Store) Prune(ctx context.Context, dry bool) ([]Image, error) {
	list, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(i Image) bool { return i.Used || i.Pinned })
	if dry {
		return list, nil
	}
	for n, i := range list {
		if _, err := s.cri.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: i.ID}}); err != nil {
			return list[:n], fmt.Errorf("remove %s: %w", i.Name(), err)
		}
	}
	return list, nil
}

// find returns the image of a name.
func (s *Store) find(ctx context.Context, name string) (ctrimages.Image, error) {
	ref, err := fullName(name)
	if err != nil {
		return ctrimages.Image{}, err
	}
	img, err := s.client.ImageService().Get(ctx, ref.String())
	if errdefs.IsNotFound(err) {
		return img, fmt.Errorf("image %s: this machine has none of that name; \"knarr image list\" shows all", ref)
	}
	if err != nil {
		return img, fmt.Errorf("look for image %s: %w", ref, err)
	}
	return img, nil
}

// fullName writes an image's name in full, as in docker.io/library/nginx:latest.
func fullName(name string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return nil, fmt.Errorf("image name %q: %w", name, err)
	}
	return named, nil
}

// Registry is the host of the registry that an image's name begins with.
func Registry(name string) (string, error) {
	ref, err := fullName(name)
	if err != nil {
		return "", err
	}
	return reference.Domain(ref), nil
}
