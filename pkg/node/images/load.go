package images

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	ctrimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// namespace is where Kubernetes' images live in containerd.
	namespace = "k8s.io"

	// managedLabel is set by containerd's CRI part on each image it has taken
	// note of; see put for why it is taken away when an image changes.
	managedLabel = "io.cri-containerd.image"
	pinnedLabel  = "io.cri-containerd.pinned"
	pinnedValue  = "pinned"

	// noticeTimeout bounds the wait for the CRI part to notice a new image. It
	// takes a few milliseconds; past this bound a pod may try to pull it.
	noticeTimeout = 10 * time.Second
)

// Dial returns a client of the containerd that listens on the unix socket at
// address, working in the namespace of Kubernetes. It connects at first use;
// the caller closes it.
func Dial(address string) (*containerd.Client, error) {
	c, err := containerd.New(address, containerd.WithDefaultNamespace(namespace))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", address, err)
	}
	return c, nil
}

// Import reads a Docker or OCI archive (tar, plain or compressed with gzip or
// zstd) into containerd, unpacks its images for snapshotter and gives them the
// labels, beside the one that pins them. It returns when the CRI part of
// containerd knows them, so that a pod that starts afterwards does not pull.
//
// An image appears in containerd only once all of it is there and unpacked:
// a damaged archive changes nothing. Names are written in full
// (docker.io/library/…), and each image can also be named by its digest.
func Import(ctx context.Context, c *containerd.Client, snapshotter string, r io.Reader, labels map[string]string) ([]ctrimages.Image, error) {
	return bring(ctx, c, snapshotter, labels, func(ctx context.Context) (ocispec.Index, error) {
		index, _, err := ReadArchive(ctx, c.ContentStore(), r)
		return index, err
	})
}

// ImportFrom is Import of an archive that [ReadArchive] has put into from. Only what
// containerd lacks is copied, and containerd verifies the digest of each blob.
func ImportFrom(ctx context.Context, c *containerd.Client, snapshotter string, from content.Provider, index ocispec.Index) ([]ctrimages.Image, error) {
	return bring(ctx, c, snapshotter, nil, func(ctx context.Context) (ocispec.Index, error) {
		list, err := suitable(index)
		if err != nil {
			return index, err
		}
		for _, img := range list {
			if err := copyImage(ctx, c.ContentStore(), from, img.Target); err != nil {
				return index, fmt.Errorf("image %s: %w", img.Name, err)
			}
		}
		return index, nil
	})
}

// bring unpacks, records and pins the images of an archive whose blobs fill brings
// into containerd.
func bring(ctx context.Context, c *containerd.Client, snapshotter string, labels map[string]string, fill func(context.Context) (ocispec.Index, error)) ([]ctrimages.Image, error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	ctx, done, err := c.WithLease(ctx)
	if err != nil {
		return nil, fmt.Errorf("hold content in containerd: %w", err)
	}
	// What a failed import leaves behind is garbage once the lease is gone,
	// also when ctx has ended meanwhile.
	defer done(context.WithoutCancel(ctx))

	index, err := fill(ctx)
	if err != nil {
		return nil, err
	}
	found, err := unpackAll(ctx, c, snapshotter, index)
	if err != nil {
		return nil, err
	}
	for i := range found {
		if found[i], err = put(ctx, c.ImageService(), found[i], labels); err != nil {
			return nil, fmt.Errorf("record image %s: %w", found[i].Name, err)
		}
	}
	return found, awaitNotice(ctx, c, found)
}

// unpackAll unpacks the images of an archive that have a name and suit this
// machine, and returns them under all their names, not yet recorded.
func unpackAll(ctx context.Context, c *containerd.Client, snapshotter string, index ocispec.Index) ([]ctrimages.Image, error) {
	list, err := suitable(index)
	if err != nil {
		return nil, err
	}
	var found []ctrimages.Image
	for _, img := range list {
		if err := unpack(ctx, c, snapshotter, img.Image); err != nil {
			return nil, fmt.Errorf("image %s: %w", img.Name, err)
		}
		// The annotations name the image inside its archive; containerd would
		// keep them and show them beside a name given later.
		img.Target.Annotations = nil
		found = append(found, img.Image,
			ctrimages.Image{Name: img.repository + "@" + img.Target.Digest.String(), Target: img.Target})
	}
	return found, nil
}

// unpack checks that an image is complete, ties its parts together for
// containerd's garbage collection and makes its snapshots. Applying a layer
// verifies its digest.
func unpack(ctx context.Context, c *containerd.Client, snapshotter string, img ctrimages.Image) error {
	store := c.ContentStore()
	if err := complete(ctx, store, img.Target); err != nil {
		return err
	}
	handler := ctrimages.SetChildrenLabels(store, forThisMachine(ctrimages.ChildrenHandler(store)))
	if err := ctrimages.Walk(ctx, handler, img.Target); err != nil {
		return fmt.Errorf("read manifest: %w", err)
	}
	if err := containerd.NewImageWithPlatform(c, img, platforms.Default()).Unpack(ctx, snapshotter); err != nil {
		return fmt.Errorf("unpack for snapshotter %s: %w", snapshotter, err)
	}
	return nil
}

// put records an image under its name, pinned.
func put(ctx context.Context, store ctrimages.Store, img ctrimages.Image, labels map[string]string) (ctrimages.Image, error) {
	img.Labels = map[string]string{pinnedLabel: pinnedValue}
	fields := []string{"target", "labels." + pinnedLabel}
	for k, v := range labels {
		img.Labels[k] = v
		fields = append(fields, "labels."+k)
	}
	old, err := store.Get(ctx, img.Name)
	if errdefs.IsNotFound(err) {
		made, err := store.Create(ctx, img)
		return orGiven(made, img, err)
	}
	if err != nil {
		return img, err
	}
	if old.Target.Digest != img.Target.Digest {
		// Without this label the CRI part treats the image as new to it, and
		// records the new content under its id too, as it does after a pull.
		fields = append(fields, "labels."+managedLabel)
	}
	made, err := store.Update(ctx, img, fields...)
	return orGiven(made, img, err)
}

// orGiven keeps the image's name for the error message.
func orGiven(made, given ctrimages.Image, err error) (ctrimages.Image, error) {
	if err != nil {
		return given, err
	}
	return made, nil
}

// awaitNotice waits until the CRI part of containerd, which learns of images
// through events of its own, knows all of them. It does not tell anyone, so it
// is asked. A containerd without that part has nobody to wait for.
func awaitNotice(ctx context.Context, c *containerd.Client, list []ctrimages.Image) error {
	conn, _ := c.Conn().(*grpc.ClientConn)
	if conn == nil {
		return nil
	}
	cri := runtime.NewImageServiceClient(conn)
	limit, cancel := context.WithTimeout(ctx, noticeTimeout)
	defer cancel()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for _, img := range list {
		for {
			answer, err := cri.ImageStatus(limit, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: img.Name}})
			if code := status.Code(err); code == codes.Unimplemented {
				return nil
			}
			if err == nil && answer.GetImage() != nil {
				break
			}
			select {
			case <-limit.Done():
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return fmt.Errorf("image %s is imported, but containerd's CRI service has not noticed it in %s: restart Knarr", img.Name, noticeTimeout)
			case <-again.C:
			}
		}
	}
	return nil
}

// Embedded is an archive that comes with Knarr.
type Embedded struct {
	// Image is the name by which the cluster asks for it, written in full.
	Image string
	// ID differs when the archive's bytes differ, as their hash does.
	ID string
	// Open returns the archive. It is not called when the image is there.
	Open func() (io.ReadCloser, error)
}

// embeddedLabel remembers what Ensure imported, and for which snapshotter.
const embeddedLabel = "knarr.dev/embedded"

// Ensure imports an embedded archive unless its image is already there, pinned
// and unpacked for snapshotter, which costs one question to containerd.
func Ensure(ctx context.Context, c *containerd.Client, snapshotter string, e Embedded) error {
	ctx = namespaces.WithNamespace(ctx, namespace)
	mark := func(target digest.Digest) string { return e.ID + " " + target.String() + " " + snapshotter }

	there, err := c.ImageService().Get(ctx, e.Image)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("look for image %s in containerd: %w", e.Image, err)
	}
	if err == nil && there.Labels[pinnedLabel] == pinnedValue && there.Labels[embeddedLabel] == mark(there.Target.Digest) {
		return nil
	}
	r, err := e.Open()
	if err != nil {
		return fmt.Errorf("open embedded image %s: %w", e.Image, err)
	}
	defer r.Close()
	list, err := Import(ctx, c, snapshotter, r, nil)
	if err != nil {
		return fmt.Errorf("import embedded image %s: %w", e.Image, err)
	}
	i := slices.IndexFunc(list, func(img ctrimages.Image) bool { return img.Name == e.Image })
	if i < 0 {
		return fmt.Errorf("import embedded image %s: its archive holds %s instead", e.Image, list[0].Name)
	}
	list[i].Labels = map[string]string{embeddedLabel: mark(list[i].Target.Digest)}
	if _, err := c.ImageService().Update(ctx, list[i], "labels."+embeddedLabel); err != nil {
		return fmt.Errorf("mark embedded image %s: %w", e.Image, err)
	}
	return nil
}
