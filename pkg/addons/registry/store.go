package registry

import (
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// store is a registry's files and who may change them: pushes with each other, or
// a look for what nobody needs, alone.
type store struct {
	files *files
	mu    sync.RWMutex
}

// guard lets pushes and prunes go on beside each other. An upload of a layer may
// take long, and holds nothing up: what it brings is new, and so is not pruned. A
// push that learns that something is there already counts as if it had brought it
// just now.
func (s *store) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			next.ServeHTTP(w, r)
			return
		}
		repository, what, reference := split(r.URL.Path)
		if what == "uploads" {
			s.announce(r.URL.Query())
			next.ServeHTTP(w, r)
			return
		}
		s.mu.RLock()
		defer s.mu.RUnlock()
		switch d, isDigest := asDigest(reference); {
		case what == "blobs" && isDigest && r.Method == http.MethodHead:
			s.refresh(path.Join(blobPath(d), "data"))
		case what == "manifests" && isDigest && r.Method == http.MethodHead:
			s.refresh(path.Join(local(repositories), repository, manifestsFolder, "revisions", d.Algorithm().String(), d.Encoded(), "link"))
		}
		next.ServeHTTP(w, r)
	})
}

// announce keeps what an upload names, which is not stored anew if it is there.
func (s *store) announce(query url.Values) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, key := range []string{"digest", "mount"} {
		if d, ok := asDigest(query.Get(key)); ok {
			s.refresh(path.Join(blobPath(d), "data"))
		}
	}
}

// refresh has a file count as new, if it is there.
func (s *store) refresh(name string) {
	now := time.Now()
	// Where it can't be, the push may fail after a prune; so would it on such a disk.
	_ = s.files.root.Chtimes(name, now, now)
}

// split takes a path of the distribution protocol apart: /v2/NAME/blobs/DIGEST,
// /v2/NAME/blobs/uploads/…, /v2/NAME/manifests/REFERENCE.
func split(p string) (repository, what, reference string) {
	rest := strings.TrimPrefix(p, "/v2/")
	for _, part := range []struct{ mark, what string }{{"/blobs/uploads/", "uploads"}, {"/manifests/", "manifests"}, {"/blobs/", "blobs"}} {
		if i := strings.LastIndex(rest, part.mark); i > 0 {
			return path.Clean("/" + rest[:i])[1:], part.what, rest[i+len(part.mark):]
		}
	}
	return "", "", ""
}

func asDigest(text string) (digest.Digest, bool) {
	d := digest.Digest(text)
	return d, d.Validate() == nil
}
