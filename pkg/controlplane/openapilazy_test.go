package controlplane

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/emicklei/go-restful/v3"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

type planet struct{}

func planets(t *testing.T, args ...string) (*lazyV3, *int) {
	t.Helper()
	ws := new(restful.WebService).Path("/apis/planets.example.org/v1")
	ws.Route(ws.GET("planets").Operation("listPlanets").Returns(http.StatusOK, "OK", planet{}).To(func(*restful.Request, *restful.Response) {}))
	built := 0
	l, err := newLazyV3([]*restful.WebService{ws}, &common.OpenAPIV3Config{
		Info: &spec.Info{},
		GetDefinitions: func(common.ReferenceCallback) map[string]common.OpenAPIDefinition {
			built++
			return map[string]common.OpenAPIDefinition{"github.com/knarr-dev/knarr/pkg/controlplane.planet": {}}
		},
	}, args)
	if err != nil {
		t.Fatal(err)
	}
	return l, &built
}

func (l *lazyV3) get(h func(http.ResponseWriter, *http.Request), url string) *http.Response {
	w := httptest.NewRecorder()
	h(w, httptest.NewRequest(http.MethodGet, url, nil))
	return w.Result()
}

func TestGroupVersionsAreDescribedWhenTheyAreAskedFor(t *testing.T) {
	l, built := planets(t)
	const gv = "apis/planets.example.org/v1"
	var index handler3.OpenAPIV3Discovery
	if err := json.NewDecoder(l.get(l.serveIndex, openAPIv3).Body).Decode(&index); err != nil {
		t.Fatal(err)
	}
	url := index.Paths[gv].ServerRelativeURL
	if *built != 0 || !strings.HasPrefix(url, openAPIv3+"/"+gv+"?hash=") {
		t.Fatalf("the index leads to %q and took %d descriptions", url, *built)
	}
	for _, c := range []struct {
		url, cached string
		status      int
	}{
		{url, "public, immutable", http.StatusOK},
		{openAPIv3 + "/" + gv, "", http.StatusOK},
		{openAPIv3 + "/" + gv + "?hash=other", "", http.StatusMovedPermanently},
		{openAPIv3 + "/apis/moons.example.org/v1", "", http.StatusNotFound},
	} {
		r := l.get(l.serveGroupVersion, c.url)
		if r.StatusCode != c.status || r.Header.Get("Cache-Control") != c.cached {
			t.Errorf("%s: %s, to be cached %q", c.url, r.Status, r.Header.Get("Cache-Control"))
		}
		if to := r.Header.Get("Location"); r.StatusCode == http.StatusMovedPermanently && to != url {
			t.Errorf("%s leads to %s", c.url, to)
		}
		var doc struct{ Paths map[string]any }
		if err := json.NewDecoder(r.Body).Decode(&doc); r.StatusCode == http.StatusOK && (err != nil || doc.Paths["/"+gv+"/planets"] == nil) {
			t.Errorf("%s describes %v: %v", c.url, doc.Paths, err)
		}
	}
	if *built != 1 {
		t.Errorf("the description was made %d times", *built)
	}
}

func TestTheHashOfADescriptionIsThatOfWhatItIsMadeFrom(t *testing.T) {
	a, _ := planets(t)
	same, _ := planets(t)
	other, _ := planets(t, "feature-gates=AllAlpha=true")
	if a.etag != same.etag {
		t.Error("the same server has another index")
	}
	if a.etag == other.etag {
		t.Error("a server with other features has the same index")
	}
}
