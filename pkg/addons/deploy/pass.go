package deploy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/pkg/manifest"
)

// pass brings the cluster in line with the folder, as often as it is asked to.
type pass struct {
	*Deployer
	rest    *rest.Config
	client  kubernetes.Interface
	records map[string]*record // by path, as they are in the cluster
}

// settle applies what is new and what is due, until nothing more comes of it,
// and prunes what is gone. An error means that the API server did not answer or
// that ctx has ended; what is wrong with sources is kept in their states.
func (p *pass) settle(ctx context.Context, t *tree) error {
	var a *applier // made when there is something to do
	get := func() (*applier, error) {
		if a != nil {
			return a, nil
		}
		var err error
		a, err = newApplier(p.rest)
		return a, err
	}
	// A file may need a type that comes in one after it.
	for first := true; ; first = false {
		progress := false
		for _, s := range t.sources {
			if ctx.Err() != nil {
				return nil
			}
			if !p.due(s, first) {
				continue
			}
			if s.err != nil {
				p.failed(ctx, s, s.err)
				continue
			}
			a, err := get()
			if err != nil {
				return err
			}
			if err := p.source(ctx, a, s); err != nil {
				p.failed(ctx, s, err)
				continue
			}
			progress = true
			p.succeeded(s)
		}
		if !progress || p.nextTry().IsZero() {
			break
		}
	}
	for _, path := range slices.Sorted(maps.Keys(p.records)) {
		r := p.records[path]
		here := slices.ContainsFunc(t.sources, func(s source) bool { return s.path == path })
		if here || t.skips(path) || !slices.Contains(r.servers, p.cfg.Server) || ctx.Err() != nil {
			continue
		}
		a, err := get()
		if err != nil {
			return err
		}
		if err := p.gone(ctx, a, path); err != nil {
			p.failed(ctx, source{path: path}, err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for path := range p.states { // of files that went before they could be applied
		if p.records[path] == nil && !slices.ContainsFunc(t.sources, func(s source) bool { return s.path == path }) {
			delete(p.states, path)
		}
	}
	return nil
}

// due tells whether a source has to be applied now. In the first round that is
// one whose time has come; later, any that has failed.
func (p *pass) due(s source, first bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.states[s.path]
	if s.err != nil {
		return st == nil || st.err.Error() != s.err.Error()
	}
	if st != nil && st.sum == s.sum {
		return !st.next.IsZero() && (!first || !time.Now().Before(st.next))
	}
	r := p.records[s.path]
	if r == nil || r.sum != s.sum || !slices.Contains(r.servers, p.cfg.Server) {
		return true
	}
	delete(p.states, s.path) // it is again as it was when it was applied
	return false
}

// unreadable is an error that only another content can mend.
type unreadable struct{ error }

// source applies one, and prunes what it no longer has.
func (p *pass) source(ctx context.Context, a *applier, s source) error {
	// Another server may have written it since.
	r, err := load(ctx, p.client, s.path)
	if err != nil {
		return err
	}
	isNew := r == nil
	if isNew {
		r = &record{path: s.path}
	}
	if r.sum == s.sum { // another server has applied it
		next := *r
		next.servers = append(slices.Clone(r.servers), p.cfg.Server)
		return p.save(ctx, &next)
	}
	objects, err := manifest.Parse(s.text)
	if err != nil {
		return unreadable{err}
	}
	// Remembered before it is made: whatever happens then, it can be pruned.
	intent := &record{path: s.path, servers: append(slices.Clone(r.servers), p.cfg.Server), objects: slices.Clone(r.objects)}
	for _, o := range objects {
		if !slices.ContainsFunc(intent.objects, objectOf(o).same) {
			intent.objects = append(intent.objects, objectOf(o))
		}
	}
	if isNew || len(intent.objects) > len(r.objects) {
		if err := p.save(ctx, intent); err != nil {
			return err
		}
	}
	if err := a.applyAll(ctx, s.path, objects); err != nil {
		return err
	}
	stale, err := a.stale(intent.objects, objects)
	if err == nil {
		err = a.pruneAll(ctx, s.path, stale)
	}
	if err != nil {
		return err
	}
	done := &record{path: s.path, sum: s.sum, servers: intent.servers, objects: objectsOf(objects)}
	if err := p.save(ctx, done); err != nil {
		return err
	}
	p.cfg.Log.Info("manifest applied", "file", s.path, "objects", len(done.objects), "pruned", len(stale))
	message := fmt.Sprintf("%s: %d objects applied", s.path, len(done.objects))
	if len(stale) > 0 {
		message += fmt.Sprintf(", %d deleted", len(stale))
	}
	p.event(ctx, s.path, corev1.EventTypeNormal, "Applied", message)
	return nil
}

func objectsOf(objects []*unstructured.Unstructured) []object {
	all := make([]object, len(objects))
	for i, o := range objects {
		all[i] = objectOf(o)
	}
	return all
}

// gone prunes what a source made that is no longer there.
func (p *pass) gone(ctx context.Context, a *applier, path string) error {
	r, err := load(ctx, p.client, path)
	if err != nil {
		return err
	}
	if r == nil {
		r = p.records[path] // somebody deleted it
	}
	others := slices.DeleteFunc(slices.Clone(r.servers), func(s string) bool { return s == p.cfg.Server })
	if len(others) > 0 {
		next := *r
		next.servers = others
		return p.save(ctx, &next)
	}
	if r.sum != "" {
		// Should it come back before all is deleted, it has to be applied anew.
		r.sum = ""
		if err := p.save(ctx, r); err != nil {
			return err
		}
	}
	if err := a.pruneAll(ctx, r.path, r.objects); err != nil {
		return err
	}
	p.event(ctx, r.path, corev1.EventTypeNormal, "Pruned", fmt.Sprintf("%s is gone: %d objects deleted", r.path, len(r.objects)))
	if err := r.remove(ctx, p.client); err != nil {
		return err
	}
	delete(p.records, r.path)
	p.mu.Lock()
	delete(p.states, r.path)
	p.mu.Unlock()
	p.cfg.Log.Info("manifest is gone, and what it made", "file", r.path, "objects", len(r.objects))
	return nil
}

// disown keeps what the files of this server made when their folder is not
// there. Should they come back, all is theirs again.
func (p *pass) disown(ctx context.Context) error {
	for _, r := range p.records {
		if !slices.Contains(r.servers, p.cfg.Server) {
			continue
		}
		next := *r
		next.servers = slices.DeleteFunc(slices.Clone(r.servers), func(s string) bool { return s == p.cfg.Server })
		if err := p.save(ctx, &next); err != nil {
			return err
		}
		p.cfg.Log.Warn("the folder of manifests is missing: what this file made is kept", "folder", p.cfg.Folder, "file", r.path)
	}
	return nil
}

func (p *pass) save(ctx context.Context, r *record) error {
	if err := r.save(ctx, p.client); err != nil {
		return err
	}
	p.records[r.path] = r
	return nil
}

// failed notes an error, and when to try again. It is told once.
func (p *pass) failed(ctx context.Context, s source, err error) {
	if ctx.Err() != nil {
		return // so it was to be
	}
	p.mu.Lock()
	st := p.states[s.path]
	if st == nil || st.sum != s.sum {
		st = &state{since: time.Now(), sum: s.sum}
		p.states[s.path] = st
	}
	isNew := st.err == nil || st.err.Error() != err.Error()
	st.err = err
	st.next = time.Time{}
	if !errors.As(err, new(unreadable)) && s.err == nil {
		st.next = time.Now().Add(min(lastRetry, firstRetry<<min(st.tries, 10)))
		st.tries++
	}
	p.mu.Unlock()
	if isNew {
		p.cfg.Log.Warn("manifest can't be applied", "file", s.path, "err", oneLine(err))
		p.event(ctx, s.path, corev1.EventTypeWarning, "ApplyFailed", s.path+": "+oneLine(err))
	}
}

func (p *pass) succeeded(s source) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.states, s.path)
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// event tells of a source, as an event about its record. It is no matter if it
// can't: the log and the status tell it too.
func (p *pass) event(ctx context.Context, path, kind, reason, message string) {
	now := metav1.Now()
	if len(message) > 1000 {
		message = message[:1000] + "…"
	}
	_, err := p.client.CoreV1().Events(recordNamespace).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: recordName(path) + ".", Namespace: recordNamespace},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: recordNamespace, Name: recordName(path)},
		Type:           kind, Reason: reason, Message: message,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
		Source: corev1.EventSource{Component: manager}, ReportingController: manager, ReportingInstance: p.cfg.Server, Action: reason,
	}, metav1.CreateOptions{})
	if err != nil {
		p.cfg.Log.Debug("event not written", "file", path, "err", err)
	}
}
