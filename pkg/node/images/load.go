package images

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	ctrimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
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
	ctx = namespaces.WithNamespace(ctx, namespace)
	ctx, done, err := c.WithLease(ctx)
	if err != nil {
		return nil, fmt.Errorf("hold content in containerd: %w", err)
	}
	// What a failed import leaves behind is garbage once the lease is gone,
	// also when ctx has ended meanwhile.
	defer done(context.WithoutCancel(ctx))

	index, err := readIndex(ctx, c.ContentStore(), r)
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

// readIndex stores every blob of the archive and returns its top-level index.
func readIndex(ctx context.Context, store content.Store, r io.Reader) (ocispec.Index, error) {
	var index ocispec.Index
	stream, err := compression.DecompressStream(r)
	if err != nil {
		return index, fmt.Errorf("decompress: %w", err)
	}
	defer stream.Close()

	ingest := &ingester{Store: store, prefix: "knarr-" + rand.Text() + "-"}
	desc, err := archive.ImportIndex(ctx, ingest, stream)
	if err == nil {
		// The compressed stream's checksum stands behind the end of the tar.
		_, err = io.Copy(io.Discard, stream)
	}
	if err != nil {
		ingest.abort(context.WithoutCancel(ctx))
		return index, fmt.Errorf("read archive: %w", err)
	}
	blob, err := content.ReadBlob(ctx, store, desc)
	if err != nil {
		return index, fmt.Errorf("read index of archive: %w", err)
	}
	if err := json.Unmarshal(blob, &index); err != nil {
		return index, fmt.Errorf("read index of archive: %w", err)
	}
	return index, nil
}

// unpackAll unpacks the images of an archive that have a name and suit this
// machine, and returns them under all their names, not yet recorded.
func unpackAll(ctx context.Context, c *containerd.Client, snapshotter string, index ocispec.Index) ([]ctrimages.Image, error) {
	var (
		found   []ctrimages.Image
		foreign []string
		machine = platforms.Default()
	)
	for _, desc := range index.Manifests {
		named, err := imageName(desc.Annotations)
		if err != nil {
			return nil, err
		}
		if named == nil {
			continue
		}
		if desc.Platform != nil && !machine.Match(*desc.Platform) {
			foreign = append(foreign, fmt.Sprintf("%s (%s)", named, platforms.Format(*desc.Platform)))
			continue
		}
		if err := unpack(ctx, c, snapshotter, ctrimages.Image{Name: named.String(), Target: desc}, machine); err != nil {
			return nil, fmt.Errorf("image %s: %w", named, err)
		}
		// The annotations name the image inside its archive; containerd would
		// keep them and show them beside a name given later.
		desc.Annotations = nil
		found = append(found,
			ctrimages.Image{Name: named.String(), Target: desc},
			ctrimages.Image{Name: named.Name() + "@" + desc.Digest.String(), Target: desc})
	}
	if len(found) > 0 {
		return found, nil
	}
	if len(foreign) > 0 {
		return nil, fmt.Errorf("no image for %s in it, only %s: save it with --platform %[1]s",
			platforms.Format(platforms.DefaultSpec()), strings.Join(foreign, ", "))
	}
	return nil, errors.New("no image with a name in it: save it by name and tag, as in `docker save example/app:1.0`")
}

// unpack checks that an image is complete, ties its parts together for
// containerd's garbage collection and makes its snapshots. Applying a layer
// verifies its digest.
func unpack(ctx context.Context, c *containerd.Client, snapshotter string, img ctrimages.Image, machine platforms.MatchComparer) error {
	store := c.ContentStore()
	complete, _, _, missing, err := ctrimages.Check(ctx, store, img.Target, machine)
	if err != nil {
		return fmt.Errorf("read manifest: %w", err)
	}
	if !complete || len(missing) > 0 {
		return fmt.Errorf("not complete: %s missing, or not what its digest says", digests(missing))
	}
	handler := ctrimages.FilterPlatforms(ctrimages.ChildrenHandler(store), machine)
	handler = ctrimages.SetChildrenLabels(store, ctrimages.LimitManifests(handler, machine, 1))
	if err := ctrimages.Walk(ctx, handler, img.Target); err != nil {
		return fmt.Errorf("read manifest: %w", err)
	}
	if err := containerd.NewImageWithPlatform(c, img, machine).Unpack(ctx, snapshotter); err != nil {
		return fmt.Errorf("unpack for snapshotter %s: %w", snapshotter, err)
	}
	return nil
}

func digests(descs []ocispec.Descriptor) string {
	var b strings.Builder
	for i, d := range descs {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(d.Digest.String())
	}
	return b.String()
}

// imageName reads an image's full name from its entry in an archive's index;
// nil when it has none. A bare word without tag or path is taken for the tag
// that the OCI layout allows there, which names nothing.
func imageName(annotations map[string]string) (reference.Named, error) {
	if _, refers := annotations[ctrimages.AnnotationManifestSubject]; refers {
		return nil, nil
	}
	name := annotations[ctrimages.AnnotationImageName]
	if name == "" {
		if name = annotations[ocispec.AnnotationRefName]; !strings.ContainsAny(name, "/:@") {
			return nil, nil
		}
	}
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return nil, fmt.Errorf("image name %q in archive: %w", name, err)
	}
	return named, nil
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

// ingester gives each import's uploads names of their own: containerd resumes
// an upload by its name, and would continue a damaged file's half with the
// other half of the good one that replaced it.
type ingester struct {
	content.Store
	prefix string
	refs   []string
}

func (in *ingester) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	ref := in.prefix + o.Ref
	if !slices.Contains(in.refs, ref) {
		in.refs = append(in.refs, ref)
	}
	return in.Store.Writer(ctx, append(slices.Clip(opts), content.WithRef(ref))...)
}

// abort frees what unfinished uploads hold. Finished ones are no longer known
// by their names, which is no error.
func (in *ingester) abort(ctx context.Context) {
	for _, ref := range in.refs {
		_ = in.Abort(ctx, ref)
	}
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
