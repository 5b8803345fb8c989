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

	"github.com/containerd/containerd/v2/core/content"
	ctrimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ReadArchive stores every blob of a Docker or OCI archive and returns its
// top-level index, and the digest by which the store has that.
func ReadArchive(ctx context.Context, store content.Store, r io.Reader) (ocispec.Index, digest.Digest, error) {
	var index ocispec.Index
	stream, err := compression.DecompressStream(r)
	if err != nil {
		return index, "", fmt.Errorf("decompress: %w", err)
	}
	defer stream.Close()

	ingest := newIngester(store)
	desc, err := archive.ImportIndex(ctx, ingest, stream)
	if err == nil {
		// The compressed stream's checksum stands behind the end of the tar.
		_, err = io.Copy(io.Discard, stream)
	}
	if err != nil {
		ingest.abort(context.WithoutCancel(ctx))
		return index, "", fmt.Errorf("read archive: %w", err)
	}
	blob, err := content.ReadBlob(ctx, store, desc)
	if err != nil {
		return index, "", fmt.Errorf("read index of archive: %w", err)
	}
	if err := json.Unmarshal(blob, &index); err != nil {
		return index, "", fmt.Errorf("read index of archive: %w", err)
	}
	return index, desc.Digest, nil
}

// Complete gives the names of the images of an archive that suit this machine. It
// fails if there are none, or if a part of one is not in store.
func Complete(ctx context.Context, store content.Provider, index ocispec.Index) (names []string, err error) {
	list, err := suitable(index)
	for _, img := range list {
		if err := complete(ctx, store, img.Target); err != nil {
			return nil, fmt.Errorf("image %s: %w", img.Name, err)
		}
		names = append(names, img.Name)
	}
	return names, err
}

// archived is an image of an archive.
type archived struct {
	ctrimages.Image
	repository string // its name without the tag
}

// suitable are the images of an archive that have a name and suit this machine. It
// fails if there are none.
func suitable(index ocispec.Index) ([]archived, error) {
	var (
		list    []archived
		foreign []string
	)
	for _, desc := range index.Manifests {
		named, err := imageName(desc.Annotations)
		if err != nil {
			return nil, err
		}
		if named == nil {
			continue
		}
		if desc.Platform != nil && !platforms.Default().Match(*desc.Platform) {
			foreign = append(foreign, fmt.Sprintf("%s (%s)", named, platforms.Format(*desc.Platform)))
			continue
		}
		list = append(list, archived{ctrimages.Image{Name: named.String(), Target: desc}, named.Name()})
	}
	if len(list) > 0 {
		return list, nil
	}
	if len(foreign) > 0 {
		return nil, fmt.Errorf("no image for %s in it, only %s: save it with --platform %[1]s",
			platforms.Format(platforms.DefaultSpec()), strings.Join(foreign, ", "))
	}
	return nil, errors.New("no image with a name in it: save it by name and tag, as in `docker save example/app:1.0`")
}

// complete fails if store lacks a part of an image that this machine needs.
func complete(ctx context.Context, store content.Provider, target ocispec.Descriptor) error {
	there, _, _, missing, err := ctrimages.Check(ctx, store, target, platforms.Default())
	if err != nil {
		return fmt.Errorf("read manifest: %w", err)
	}
	if !there || len(missing) > 0 {
		return fmt.Errorf("not complete: %s missing, or not what its digest says", digests(missing))
	}
	return nil
}

// forThisMachine leaves out the parts of images that are for other machines.
func forThisMachine(h ctrimages.HandlerFunc) ctrimages.HandlerFunc {
	machine := platforms.Default()
	return ctrimages.LimitManifests(ctrimages.FilterPlatforms(h, machine), machine, 1)
}

// copyImage copies what this machine needs of an image and to has not.
func copyImage(ctx context.Context, to content.Store, from content.Provider, target ocispec.Descriptor) error {
	ingest := newIngester(to)
	handler := func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if err := copyBlob(ctx, ingest, from, desc); err != nil {
			return nil, fmt.Errorf("copy %s: %w", desc.Digest, err)
		}
		// Of the two, to is the one that has verified it.
		return ctrimages.Children(ctx, to, desc)
	}
	err := ctrimages.Walk(ctx, forThisMachine(handler), target)
	if err != nil {
		ingest.abort(context.WithoutCancel(ctx))
	}
	return err
}

func copyBlob(ctx context.Context, to content.Ingester, from content.Provider, desc ocispec.Descriptor) error {
	blob, err := from.ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	defer blob.Close()
	return content.WriteBlob(ctx, to, desc.Digest.String(), content.NewReader(blob), desc)
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

// ingester gives each import's uploads names of their own: containerd resumes
// an upload by its name, and would continue a damaged file's half with the
// other half of the good one that replaced it.
type ingester struct {
	content.Store
	prefix string
	refs   []string
}

func newIngester(store content.Store) *ingester {
	return &ingester{Store: store, prefix: "knarr-" + rand.Text() + "-"}
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
