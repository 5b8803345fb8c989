package peers

import (
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

const (
	// askTimeout bounds the search for a node that has something; one that has it
	// answers within milliseconds.
	askTimeout = 2 * time.Second
	// askAtOnce is how many nodes are asked at the same time.
	askAtOnce = 32
)

// Host stands for all other nodes in the URLs of a pull.
const Host = "nodes.knarr.invalid"

// Pull carries the requests of one pull from a registry, as images name it, to
// whichever other node has what is asked for. Where none has it, the answer is
// that of a registry without it, and so are those to the rest of the pull.
func (p *Peers) Pull(registry string) http.RoundTripper {
	return &pull{peers: p, registry: registry}
}

type pull struct {
	peers    *Peers
	registry string

	mu     sync.Mutex
	holder string // the node that had the last thing
	missed bool   // nobody had something
}

// RoundTrip implements http.RoundTripper.
func (t *pull) RoundTrip(r *http.Request) (*http.Response, error) {
	t.mu.Lock()
	holder, missed := t.holder, t.missed
	t.mu.Unlock()
	if missed || r.Method != http.MethodGet && r.Method != http.MethodHead {
		return notThere(r), nil
	}
	if holder != "" {
		resp, err := t.ask(r.Context(), r, r.Method, holder)
		if err == nil && found(resp) {
			return resp, nil
		}
		discard(resp)
	}
	holder = t.search(r)
	t.mu.Lock()
	t.holder, t.missed = holder, t.missed || holder == ""
	t.mu.Unlock()
	if holder == "" {
		return notThere(r), nil
	}
	resp, err := t.ask(r.Context(), r, r.Method, holder)
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// search returns the first node that says that it has what r is about; empty if
// there is none.
func (t *pull) search(r *http.Request) string {
	ctx, cancel := context.WithTimeout(r.Context(), askTimeout)
	defer cancel()
	others := slices.DeleteFunc(slices.Clone(t.peers.nodes(ctx, membersFor)), func(n Node) bool {
		return n.Name == t.peers.cfg.Name || !n.Addr.IsValid()
	})
	// So that not all ask the same one.
	rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	next := make(chan string, len(others))
	for _, n := range others {
		next <- n.Name
	}
	close(next)
	first := make(chan string, len(others))
	var asking sync.WaitGroup
	for range min(askAtOnce, len(others)) {
		asking.Go(func() {
			for name := range next {
				if ctx.Err() != nil {
					return
				}
				resp, err := t.ask(ctx, r, http.MethodHead, name)
				if err == nil && found(resp) {
					first <- name
					cancel()
				}
				discard(resp)
			}
		})
	}
	asking.Wait()
	select {
	case name := <-first:
		return name
	default:
		return ""
	}
}

// ask sends a request like r to a node.
func (t *pull) ask(ctx context.Context, r *http.Request, method, node string) (*http.Response, error) {
	q := r.Clone(ctx)
	q.Method = method
	q.Host = ""
	q.URL = &url.URL{Scheme: "https", Host: node, Path: r.URL.Path, RawQuery: url.Values{"ns": {t.registry}}.Encode()}
	// Those are for registries.
	q.Header.Del("Authorization")
	q.Header.Del("Cookie")
	return t.peers.client.RoundTrip(q)
}

func found(r *http.Response) bool {
	return r.StatusCode == http.StatusOK || r.StatusCode == http.StatusPartialContent
}

func discard(r *http.Response) {
	if r != nil {
		_ = r.Body.Close()
	}
}

func notThere(r *http.Request) *http.Response {
	return &http.Response{
		Status: "404 Not Found", StatusCode: http.StatusNotFound,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(http.NoBody), Request: r,
	}
}
