package images

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	ctrimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
)

// ExportAll writes the images that pods can use to an archive that [Import] takes, and
// returns their names: those that came with Knarr are left out, and those that
// except names. Nothing is written if there are none.
func ExportAll(ctx context.Context, c *containerd.Client, to io.Writer, except []string) ([]string, error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	// Nothing is collected as garbage meanwhile.
	ctx, done, err := c.WithLease(ctx)
	if err != nil {
		return nil, fmt.Errorf("hold content in containerd: %w", err)
	}
	defer done(context.WithoutCancel(ctx))
	all, err := c.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images in containerd: %w", err)
	}
	all = slices.DeleteFunc(worthSaving(all), func(i ctrimages.Image) bool { return slices.Contains(except, i.Name) })
	if len(all) == 0 {
		return nil, nil
	}
	err = archive.Export(ctx, c.ContentStore(), to, archive.WithImages(all), archive.WithPlatform(platforms.DefaultStrict()), archive.WithSkipDockerManifest())
	if err != nil {
		return nil, fmt.Errorf("export images from containerd: %w", err)
	}
	return namesOf(all), nil
}

// worthSaving leaves out what comes with Knarr, names that are the ids of images, and
// those by digest that an import gives an image beside its tag.
func worthSaving(all []ctrimages.Image) []ctrimages.Image {
	tagged := map[string]bool{}
	for _, i := range all {
		if named, err := reference.ParseNamed(i.Name); err == nil && !strings.Contains(i.Name, "@") {
			tagged[named.Name()+"@"+i.Target.Digest.String()] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(i ctrimages.Image) bool {
		return i.Labels[embeddedLabel] != "" || strings.HasPrefix(i.Name, "sha256:") || tagged[i.Name]
	})
}
