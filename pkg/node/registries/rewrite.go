package registries

import (
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// rewritten is an image's repository by the first rewrite that matches.
func rewritten(repository string, rewrites []rewrite) string {
	for _, r := range rewrites {
		if r.pattern.MatchString(repository) {
			return r.pattern.ReplaceAllString(repository, r.replacement)
		}
	}
	return repository
}

// rewritePaths asks an endpoint for repositories by their rewritten names.
type rewritePaths struct {
	next     http.RoundTripper
	endpoint endpoint
	rewrites []rewrite
}

func (t rewritePaths) RoundTrip(req *http.Request) (*http.Response, error) {
	rest, ours := strings.CutPrefix(req.URL.Path, t.endpoint.path+"/")
	// Another host is one that the endpoint has sent us on to.
	if !ours || req.URL.Host != t.endpoint.host {
		return t.next.RoundTrip(req)
	}
	for _, what := range []string{"/manifests/", "/blobs/", "/referrers/"} {
		i := strings.LastIndex(rest, what)
		if i < 0 {
			continue
		}
		req = req.Clone(req.Context())
		req.URL.Path = t.endpoint.path + "/" + rewritten(rest[:i], t.rewrites) + rest[i:]
		req.URL.RawPath = ""
		break
	}
	return t.next.RoundTrip(req)
}

// rewriteScopes asks for tokens that are for repositories by their rewritten
// names: some registries give none at all when one of the names is not theirs.
type rewriteScopes struct {
	next     http.RoundTripper
	rewrites []rewrite
}

func (t rewriteScopes) RoundTrip(req *http.Request) (*http.Response, error) {
	if query := req.URL.Query(); len(query["scope"]) > 0 {
		query["scope"] = t.scopes(query["scope"])
		req = req.Clone(req.Context())
		req.URL.RawQuery = query.Encode()
	}
	if req.Body == nil || !strings.HasPrefix(req.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		return t.next.RoundTrip(req)
	}
	body, err := io.ReadAll(req.Body)
	req.Body.Close()
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	// A form has all scopes in one value.
	if scope := form.Get("scope"); scope != "" {
		form.Set("scope", strings.Join(t.scopes(strings.Fields(scope)), " "))
	}
	req = req.Clone(req.Context())
	text := form.Encode()
	req.ContentLength = int64(len(text))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }
	req.Body = io.NopCloser(strings.NewReader(text))
	return t.next.RoundTrip(req)
}

// scopes are of the form repository:NAME:ACTIONS. The registry itself has asked
// for the rewritten one, which then comes twice.
func (t rewriteScopes) scopes(list []string) []string {
	var out []string
	for _, scope := range list {
		if rest, ok := strings.CutPrefix(scope, "repository:"); ok {
			if i := strings.LastIndex(rest, ":"); i >= 0 {
				scope = "repository:" + rewritten(rest[:i], t.rewrites) + rest[i:]
			}
		}
		if !slices.Contains(out, scope) {
			out = append(out, scope)
		}
	}
	return out
}
