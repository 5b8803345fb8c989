package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"
)

// review is what an API server asks a webhook, an AdmissionReview or a
// ConversionReview, and what it is answered.
type review struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Request    *request `json:"request,omitempty"`
	Response   any      `json:"response,omitempty"`
}

type request struct {
	UID       string `json:"uid"`
	Operation string `json:"operation"`
	Resource  struct {
		Resource string `json:"resource"`
	} `json:"resource"`
	SubResource string `json:"subResource"`
	Name        string `json:"name"`
	Object      struct {
		Metadata struct {
			Labels map[string]string `json:"labels"`
		} `json:"metadata"`
	} `json:"object"`
	// The rest is of conversions.
	DesiredAPIVersion string           `json:"desiredAPIVersion"`
	Objects           []map[string]any `json:"objects"`
}

// webhook answers API servers by TLS, with the tls.crt and tls.key of a folder,
// and writes a line for each question. Its paths:
//
//	/deny    refuses everything
//	/warn    allows everything, with a warning
//	/label   adds the label touched=webhook
//	/fill    gives an object the data kept=webhook and pruned=webhook
//	/stall   answers when the asker has given up
//	/convert makes spec.name of v1 into spec.first and spec.last of v2, and back
func webhook(ctx context.Context, fs *flag.FlagSet, args []string) error {
	port := fs.Int("port", 8443, "")
	dir := fs.String("dir", "/tls", "")
	if _, err := parse(fs, args, 0, 0); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/deny", answer(func(r *request) (map[string]any, error) {
		return map[string]any{"allowed": false, "status": map[string]any{"code": 403, "message": "the webhook forbids to " + what(r)}}, nil
	}))
	mux.HandleFunc("/warn", answer(func(r *request) (map[string]any, error) {
		return map[string]any{"allowed": true, "warnings": []string{"the webhook frowns on " + what(r)}}, nil
	}))
	mux.HandleFunc("/label", answer(func(r *request) (map[string]any, error) {
		op := map[string]any{"op": "add", "path": "/metadata/labels/touched", "value": "webhook"}
		if r.Object.Metadata.Labels == nil {
			op["path"], op["value"] = "/metadata/labels", map[string]string{"touched": "webhook"}
		}
		patch, err := json.Marshal([]any{op})
		return map[string]any{"allowed": true, "patchType": "JSONPatch", "patch": patch}, err
	}))
	mux.HandleFunc("/fill", answer(func(*request) (map[string]any, error) {
		data := map[string]string{"kept": "webhook", "pruned": "webhook"}
		patch, err := json.Marshal([]any{map[string]any{"op": "add", "path": "/data", "value": data}})
		return map[string]any{"allowed": true, "patchType": "JSONPatch", "patch": patch}, err
	}))
	mux.HandleFunc("/stall", func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // the asker's end is seen only behind it
		<-r.Context().Done()
	})
	mux.HandleFunc("/convert", answer(func(r *request) (map[string]any, error) {
		for _, o := range r.Objects {
			if err := convert(o, r.DesiredAPIVersion); err != nil {
				return map[string]any{"result": map[string]string{"status": "Failure", "message": err.Error()}}, nil
			}
		}
		return map[string]any{"convertedObjects": r.Objects, "result": map[string]string{"status": "Success"}}, nil
	}))
	return serveTLS(ctx, *port, *dir, mux, &tls.Config{})
}

// what is asked for, in words.
func what(r *request) string {
	resource := r.Resource.Resource
	if r.SubResource != "" {
		resource += "/" + r.SubResource
	}
	return strings.ToLower(r.Operation) + " " + resource
}

// answer decodes a review, and encodes it with its response.
func answer(respond func(*request) (map[string]any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var v review
		if err := json.NewDecoder(r.Body).Decode(&v); err != nil || v.Request == nil {
			http.Error(w, fmt.Sprint("no review: ", err), http.StatusBadRequest)
			return
		}
		fmt.Println(r.URL.Path, what(v.Request), v.Request.Name)
		response, err := respond(v.Request)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		response["uid"] = v.Request.UID
		v.Request, v.Response = nil, response
		writeJSON(w, http.StatusOK, v)
	}
}

// convert changes an object to another version in place.
func convert(o map[string]any, version string) error {
	spec, ok := o["spec"].(map[string]any)
	if !ok {
		return fmt.Errorf("the object has no spec")
	}
	text := func(key string) string {
		s, _ := spec[key].(string)
		return s
	}
	switch {
	case o["apiVersion"] == version:
		return nil
	case strings.HasSuffix(version, "/v2"):
		first, last, found := strings.Cut(text("name"), " ")
		if !found {
			return fmt.Errorf("%q is no first and last name", text("name"))
		}
		o["spec"] = map[string]any{"first": first, "last": last}
	default:
		o["spec"] = map[string]any{"name": text("first") + " " + text("last")}
	}
	o["apiVersion"] = version
	return nil
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client is gone
}

// serveTLS serves with the certificate in a folder until ctx ends.
func serveTLS(ctx context.Context, port int, dir string, h http.Handler, c *tls.Config) error {
	srv := &http.Server{Addr: fmt.Sprintf(":%d", port), Handler: h, TLSConfig: c}
	done := make(chan error, 1)
	context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		done <- srv.Shutdown(end)
	})
	if err := srv.ListenAndServeTLS(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")); err != http.ErrServerClosed {
		return err
	}
	return <-done
}
