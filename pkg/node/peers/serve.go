package peers

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Store finds what a node has of images. Errors of what it has not are
// errdefs.ErrNotFound.
type Store interface {
	// Tag returns what an image's full name, such as
	// docker.io/library/nginx:1.29, stands for.
	Tag(ctx context.Context, name string) (ocispec.Descriptor, error)
	// Part returns what has a digest in any image of a repository, such as
	// docker.io/library/nginx. What other images are made of is not found.
	Part(ctx context.Context, repository string, d digest.Digest) (ocispec.Descriptor, error)
	// Open reads a blob. The caller closes it.
	Open(ctx context.Context, d ocispec.Descriptor) (io.ReadSeekCloser, error)
}

// serve answers another node, by the pull half of the OCI distribution
// specification. The registry that the image is of is in the query, as containerd
// asks mirrors: ns=docker.io.
func (p *Peers) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "images are only read here", http.StatusMethodNotAllowed)
		return
	}
	// The handshake has shown that it is a node; one may have been deleted since.
	who, err := p.verify(*r.TLS)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	if _, ok := p.member(r.Context(), who); !ok {
		http.Error(w, "node "+who+" is not in the cluster", http.StatusForbidden)
		return
	}
	ask, ok := parse(r.URL.Path, r.URL.Query().Get("ns"))
	if !ok || !p.cfg.Shared(ask.registry) {
		http.NotFound(w, r)
		return
	}
	d, err := ask.find(r.Context(), p.cfg.Store)
	var blob io.ReadSeekCloser
	if err == nil {
		blob, err = p.cfg.Store.Open(r.Context(), d)
	}
	if err != nil {
		if !errdefs.IsNotFound(err) && !errors.Is(err, context.Canceled) {
			p.cfg.Log.Debug("serve an image to another node", "node", who, "path", r.URL.Path, "err", err)
		}
		http.NotFound(w, r)
		return
	}
	defer blob.Close()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	if !ask.blob {
		h.Set("Content-Type", d.MediaType)
	}
	h.Set("Docker-Content-Digest", d.Digest.String())
	http.ServeContent(w, r, "", time.Time{}, blob)
}

// request is what a path of the protocol asks for.
type request struct {
	registry, repository string
	reference            string // a tag or a digest
	blob                 bool
}

// parse reads /v2/<repository>/manifests/<tag or digest> and …/blobs/<digest>.
func parse(path, registry string) (request, bool) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok || registry == "" || strings.Contains(registry, "/") {
		return request{}, false
	}
	for _, what := range []string{"/manifests/", "/blobs/"} {
		i := strings.LastIndex(rest, what)
		if i <= 0 {
			continue
		}
		q := request{registry: registry, repository: rest[:i], reference: rest[i+len(what):], blob: what == "/blobs/"}
		return q, q.reference != "" && !strings.Contains(q.reference, "/")
	}
	return request{}, false
}

func (q request) find(ctx context.Context, s Store) (ocispec.Descriptor, error) {
	name := q.registry + "/" + q.repository
	d, err := digest.Parse(q.reference)
	if err == nil {
		return s.Part(ctx, name, d)
	}
	if q.blob || strings.ContainsAny(q.reference, ":@") {
		return ocispec.Descriptor{}, errdefs.ErrNotFound
	}
	return s.Tag(ctx, name+":"+q.reference)
}
