package cluster

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/knarr-dev/knarr/pkg/join"
	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/pkg/token"
)

// RotateCAPath is where the status socket takes the order, by POST, to replace the
// authorities: with "from", a folder of the user's own, and "finishAfter", a
// duration. FinishCAPath is where it takes the order to let the old ones go; with
// "force" nobody is waited for. Both answer with [Rotated], and the process starts
// anew in place.
const (
	RotateCAPath = "/v1/certificates/rotate-ca"
	FinishCAPath = "/v1/certificates/rotate-ca/finish"
)

// Rotated is the answer to an order to replace the authorities.
type Rotated struct {
	// Started is when the process began that is about to end.
	Started time.Time `json:"started"`
	// Waiting are nodes that have not learned the new authorities.
	Waiting []string `json:"waiting,omitempty"`
}

// errBehind is why the old authorities cannot go yet.
var errBehind = errors.New("nodes have not followed the new authorities yet")

// restarter tells that the process should start anew in place.
type restarter struct {
	once sync.Once
	c    chan struct{}
}

func newRestarter() *restarter { return &restarter{c: make(chan struct{})} }

func (r *restarter) ask() { r.once.Do(func() { close(r.c) }) }

// Restart is closed when what was changed takes effect by a start of the process in
// place, which pods do not notice.
func (c *Cluster) Restart() <-chan struct{} { return c.restart.c }

// rotateCA has new authorities from the next start on.
func (c *Cluster) rotateCA(r *http.Request) error {
	var after time.Time
	now := time.Now()
	if text := r.FormValue("finishAfter"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("finishAfter: %w", err)
		}
		after = now.Add(d)
	}
	return c.certs.alone(r.Context(), func() error {
		return pki.BeginRotation(c.certs.cfg.Dir, r.FormValue("from"), now, after)
	})
}

// finishCA has the old authorities gone from the next start on.
func (c *Cluster) finishCA(ctx context.Context, force bool) error {
	p := c.pki()
	if p == nil {
		return errNotReady
	}
	if p.Leaving == nil {
		return pki.ErrNoRotation
	}
	if !force {
		behind, err := c.behind(ctx, p)
		if err != nil {
			return err
		}
		if len(behind) > 0 {
			return fmt.Errorf("%w: %s; they need their agent running and a server in reach. Those that are left behind need a new token and will have to join anew (--force does it)", errBehind, strings.Join(behind, ", "))
		}
	}
	return c.certs.alone(ctx, func() error { return pki.FinishRotation(c.certs.cfg.Dir) })
}

// behind are the nodes that would be lost without the old authorities.
func (c *Cluster) behind(ctx context.Context, p *pki.PKI) ([]string, error) {
	client, err := c.env.Client()
	if err != nil {
		return nil, fmt.Errorf("create client: %w", err)
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("look which nodes know the new authorities: %w", err)
	}
	want := token.HashCA(p.ServerCA.Cert.Raw)
	var names []string
	for _, n := range nodes.Items {
		if n.Name != c.cfg.Config.Node.Name && n.Annotations[join.AuthorityAnnotation] != want {
			names = append(names, n.Name)
		}
	}
	return names, nil
}

// endRotation ends a rotation when its time is over and all nodes have followed.
func (c *Cluster) endRotation(ctx context.Context, ready chan<- struct{}) error {
	close(ready)
	r, err := pki.ReadRotation(c.certs.cfg.Dir)
	if err != nil {
		return err
	}
	if r == nil || r.FinishAfter.IsZero() {
		<-ctx.Done()
		return nil
	}
	for wait := time.Until(r.FinishAfter); ; wait = time.Hour {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		err := c.finishCA(ctx, false)
		if err == nil {
			c.cfg.Log.Info("the time of the old authorities is over; restarting in place without them")
			c.restart.ask()
			<-ctx.Done()
			return nil
		}
		if ctx.Err() == nil {
			c.cfg.Log.Warn("the old authorities cannot go yet; this is tried again in an hour", "err", err)
		}
	}
}

// authorityRoutes take orders at the status socket.
func (c *Cluster) authorityRoutes(mux *http.ServeMux) {
	answer := func(do func(*http.Request) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if err := do(r); err != nil {
				code := http.StatusInternalServerError
				if errors.Is(err, errBehind) || errors.Is(err, pki.ErrNoRotation) {
					code = http.StatusConflict
				}
				http.Error(w, err.Error(), code)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(Rotated{Started: c.Status().StartedAt}) // it fails only when the client has gone
			_ = http.NewResponseController(w).Flush()
			c.restart.ask()
		}
	}
	mux.HandleFunc("POST "+RotateCAPath, answer(c.rotateCA))
	mux.HandleFunc("POST "+FinishCAPath, answer(func(r *http.Request) error {
		force, _ := strconv.ParseBool(r.FormValue("force"))
		return c.finishCA(r.Context(), force)
	}))
}

func hashes(all []*x509.Certificate) []string {
	var found []string
	for _, c := range all {
		found = append(found, token.HashCA(c.Raw))
	}
	return found
}

// publishedAuthorities are what upstream's API server tells extension API servers
// to trust. It adds to it and takes nothing away.
const publishedAuthorities = "extension-apiserver-authentication"

// forgetRetired takes authorities that were replaced out of it.
func forgetRetired(ctx context.Context, client kubernetes.Interface, retired []string) error {
	if len(retired) == 0 {
		return nil
	}
	configMaps := client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	cm, err := configMaps.Get(ctx, publishedAuthorities, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look which authorities extension API servers trust: %w", err)
	}
	data := maps.Clone(cm.Data)
	for _, key := range []string{"client-ca-file", "requestheader-client-ca-file"} {
		if text, ok := data[key]; ok {
			data[key] = without(text, retired)
		}
	}
	if maps.Equal(data, cm.Data) {
		return nil
	}
	cm.Data = data
	if _, err := configMaps.Update(ctx, cm, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("have extension API servers forget authorities that were replaced: %w", err)
	}
	return nil
}

// without leaves certificates out of a bundle in PEM.
func without(text string, retired []string) string {
	var kept bytes.Buffer
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return kept.String()
		}
		if !slices.Contains(retired, token.HashCA(block.Bytes)) {
			_ = pem.Encode(&kept, block) // to memory
		}
	}
}
