package edge

import (
	"mime"
	"net/http"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// verb is what a request asks for.
type verb int

const (
	get verb = iota
	list
	watch
	// create and change are writes whose answer is an object.
	create
	change
	remove
	token
	status // a patch of a pod's status
)

// question is what the store understands of a request.
type question struct {
	verb verb
	gv   schema.GroupVersion
	// id has no name if many objects are asked for.
	id objectID
	// selection names the objects that a list or watch is about; it is the same
	// for both.
	selection string
	query     url.Values
	json      bool // what the client would rather have than protobuf
}

// objectID is what tells an object from others.
type objectID struct {
	// resource is group, version and plural: v1/pods, discovery.k8s.io/v1/endpointslices.
	resource        string
	namespace, name string
}

// tokenResource is under which answers to TokenRequests are kept.
const tokenResource = "v1/serviceaccounts/token"

const (
	podResource              = "v1/pods"
	nodeResource             = "v1/nodes"
	pvResource               = "v1/persistentvolumes"
	csiNodeResource          = "storage.k8s.io/v1/csinodes"
	volumeAttachmentResource = "storage.k8s.io/v1/volumeattachments"
	endpointSliceResource    = "discovery.k8s.io/v1/endpointslices"
)

// kept tells whether objects of a resource are: not those that change all the
// time and tell nothing to one who cannot reach a server.
func kept(resource string) bool {
	switch resource {
	case "coordination.k8s.io/v1/leases", "v1/events", "events.k8s.io/v1/events", "v1/componentstatuses":
		return false
	}
	return true
}

// ask reads a request. It returns false for one that the store has no part in.
func ask(req *http.Request) (question, bool) {
	var q question
	parts := strings.Split(strings.TrimPrefix(req.URL.Path, "/"), "/")
	var rest []string
	switch {
	case len(parts) >= 3 && parts[0] == "api":
		q.gv.Version, rest = parts[1], parts[2:]
	case len(parts) >= 4 && parts[0] == "apis":
		q.gv.Group, q.gv.Version, rest = parts[1], parts[2], parts[3:]
	default:
		return q, false
	}
	if rest[0] == "namespaces" && len(rest) >= 3 && rest[2] != "status" && rest[2] != "finalize" {
		q.id.namespace, rest = rest[1], rest[2:]
	}
	q.id.resource = q.gv.String() + "/" + rest[0]
	if len(rest) >= 2 {
		q.id.name = rest[1]
	}
	if rest[0] == "" || rest[0] == "watch" || !kept(q.id.resource) { // /api/v1/watch/pods is how one asked in old times
		return q, false
	}
	var ok bool
	if q.json, ok = prefersJSON(req.Header.Get("Accept")); !ok {
		return q, false
	}
	if len(rest) > 2 {
		switch sub := strings.Join(rest[2:], "/"); {
		case req.Method == http.MethodPost && q.id.resource+"/"+sub == tokenResource:
			q.verb = token
			return q, true
		case req.Method == http.MethodPatch && q.id.resource == podResource && sub == "status":
			q.verb = status
			return q, req.GetBody != nil
		}
		return q, false
	}
	q.query = req.URL.Query()
	switch req.Method {
	case http.MethodGet:
		switch {
		case isTrue(q.query.Get("watch")):
			q.verb = watch
		case q.id.name == "":
			q.verb = list
		}
	case http.MethodPost:
		q.verb = create
	case http.MethodPut, http.MethodPatch:
		q.verb = change
	case http.MethodDelete:
		q.verb = remove
	default:
		return q, false
	}
	if q.verb == watch && q.id.name != "" {
		return q, false
	}
	if q.verb > watch {
		// The kubelet makes its CSINode and asks for it at its next start. What
		// else a client writes it also lists, or never asks for.
		return q, q.id.resource == csiNodeResource
	}
	if q.id.name == "" {
		q.selection = req.URL.Path
		sel := url.Values{}
		for _, name := range []string{"fieldSelector", "labelSelector"} {
			if v := q.query.Get(name); v != "" {
				sel.Set(name, v)
			}
		}
		if len(sel) > 0 {
			q.selection += "?" + sel.Encode()
		}
	}
	return q, true
}

// byName returns the name that the selection is limited to by a field selector.
func byName(selection string) string {
	_, raw, _ := strings.Cut(selection, "?")
	query, err := url.ParseQuery(raw)
	if err != nil {
		return ""
	}
	name, ok := strings.CutPrefix(query.Get("fieldSelector"), "metadata.name=")
	if !ok || strings.ContainsAny(name, ",=!") {
		return ""
	}
	return name
}

func isTrue(v string) bool { return v == "1" || v == "true" }

const (
	jsonType     = "application/json"
	protobufType = "application/vnd.kubernetes.protobuf"
)

// prefersJSON tells which of the two forms that the store speaks the client
// would rather have, by the order of its Accept header; false if it wants
// neither: tables, metadata alone, CBOR.
func prefersJSON(accept string) (json, ok bool) {
	if accept == "" {
		return true, true
	}
	for part := range strings.SplitSeq(accept, ",") {
		name, params, err := mime.ParseMediaType(part)
		if err != nil || params["as"] != "" {
			return false, false
		}
		switch name {
		case protobufType:
			return false, true
		case jsonType, "application/*", "*/*":
			return true, true
		}
	}
	return false, false
}
