package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	addon "github.com/knarr-dev/knarr/pkg/addons/registry"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/status"
)

// registryTimeout is for a registry of many thousand images on a slow disk.
const registryTimeout = 10 * time.Minute

// askRegistry asks the registry in the server on this machine.
func askRegistry(ctx context.Context, cfg *config.Config, method, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, registryTimeout)
	defer cancel()
	text, err := status.Ask(ctx, cfg.StatusSocket(), method, path)
	if err != nil {
		return fmt.Errorf("ask the registry: %w", err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read what the registry says: %w", err)
	}
	return nil
}

func listRegistry(ctx context.Context, w io.Writer, cfg *config.Config, format string) error {
	var c addon.Contents
	if err := askRegistry(ctx, cfg, http.MethodGet, addon.ContentsPath, &c); err != nil {
		return err
	}
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(c)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "REPOSITORY\tTAGS\tDIGEST\tSIZE")
	for _, i := range c.Images {
		tags := strings.Join(i.Tags, ",")
		if tags == "" {
			tags = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", i.Repository, tags, shortID(i.Digest), bytesOf(i.Size))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%s on disk, of which %s belong to no image\n", bytesOf(c.Size), bytesOf(c.Unreferenced))
	return err
}

func pruneRegistry(ctx context.Context, w io.Writer, cfg *config.Config, untagged, dry bool) error {
	query := url.Values{"untagged": {strconv.FormatBool(untagged)}, "dry-run": {strconv.FormatBool(dry)}}
	var gone addon.Pruned
	if err := askRegistry(ctx, cfg, http.MethodPost, addon.PrunePath+"?"+query.Encode(), &gone); err != nil {
		return err
	}
	done := "removed"
	if dry {
		done = "would remove"
	}
	for _, i := range gone.Images {
		fmt.Fprintf(w, "%s %s@%s\n", done, i.Repository, i.Digest)
	}
	_, err := fmt.Fprintf(w, "%s %d images and %d blobs, %s\n", done, len(gone.Images), gone.Blobs, bytesOf(gone.Size))
	return err
}
