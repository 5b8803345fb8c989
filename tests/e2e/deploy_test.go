package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
)

// manifests is the folder that is applied; each test has one of its own in it.
const manifests = "/var/lib/knarr/server/manifests/"

// manifestFolder is the test's own in the folder of manifests. It goes with the test.
func (s *space) manifestFolder() string {
	s.t.Helper()
	dir := manifests + s.ns
	s.t.Cleanup(func() { _ = os.RemoveAll(s.Host.Path(dir)) })
	return dir + "/"
}

func (s *space) removeFile(path string) {
	s.t.Helper()
	if err := os.Remove(s.Host.Path(path)); err != nil {
		s.t.Fatal(err)
	}
}

// noteIn is a ConfigMap of the test's namespace.
func (s *space) noteIn(name, text string) string {
	return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + name + ", namespace: " + s.ns + "}\ndata: {text: " + text + "}\n"
}

// wantNote waits until a ConfigMap says so; empty is for none.
func (s *space) wantNote(name, text string) {
	s.t.Helper()
	s.WaitFor(s.t, fmt.Sprintf("ConfigMap %s to say %q", name, text), func(context.Context) (bool, error) {
		out, err := s.kubectlErr("get", "configmap", name, "--ignore-not-found", "-o", "jsonpath={.data.text}")
		if err == nil && out != text {
			err = fmt.Errorf("it says %q", out)
		}
		return err == nil, err
	})
}

func TestManifestsAreAppliedChangedAndPruned(t *testing.T) {
	s := newSpace(t)
	dir := s.manifestFolder()
	s.Write(t, dir+"two.yaml", s.noteIn("one", "a")+"---\n# nothing\n---\n"+s.noteIn("two", "b"))
	s.Write(t, dir+"below/deep/three.json", `{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "three", "namespace": "`+s.ns+`"}, "data": {"text": "c"}}`)
	s.wantNote("one", "a")
	s.wantNote("two", "b")
	s.wantNote("three", "c")

	// A document that goes takes its object along, one that changes changes it.
	s.Write(t, dir+"two.yaml", s.noteIn("one", "changed"))
	s.wantNote("one", "changed")
	s.wantNote("two", "")

	// A link is followed, and what it leads to is watched.
	s.Write(t, "/root/"+s.ns+"/four.yaml", s.noteIn("four", "d"))
	if err := os.Symlink("/root/"+s.ns+"/four.yaml", s.Host.Path(dir+"four.yaml")); err != nil {
		t.Fatal(err)
	}
	s.wantNote("four", "d")
	s.Write(t, "/root/"+s.ns+"/four.yaml", s.noteIn("four", "e"))
	s.wantNote("four", "e")
	s.removeFile(dir + "four.yaml")
	s.wantNote("four", "")

	// An object that moved to another file stays.
	s.Write(t, dir+"moved.yaml", s.noteIn("one", "changed"))
	s.WaitFor(t, "the object to be the other file's", func(context.Context) (bool, error) {
		out, err := s.kubectlErr("get", "configmap", "one", "-o", `jsonpath={.metadata.annotations.knarr\.dev/manifest}`)
		return out == s.ns+"/moved.yaml", err
	})
	s.removeFile(dir + "two.yaml")
	s.removeFile(dir + "below/deep/three.json")
	s.wantNote("three", "")
	s.wantNote("one", "changed")

	// A mark has a file left alone, whatever happens to it.
	s.Write(t, dir+"moved.yaml.skip", "")
	s.Write(t, dir+"moved.yaml", s.noteIn("one", "not this"))
	s.Write(t, dir+"after.yaml", s.noteIn("after", "x"))
	s.wantNote("after", "x")
	s.wantNote("one", "changed")
	s.removeFile(dir + "moved.yaml.skip")
	s.wantNote("one", "not this")
	s.removeFile(dir + "moved.yaml")
	s.wantNote("one", "")
}

func TestManifestsWaitForTheirTypes(t *testing.T) {
	s := newSpace(t)
	dir := s.manifestFolder()
	group := s.ns + ".example.org"
	s.Write(t, dir+"10-thing.yaml", "apiVersion: "+group+"/v1\nkind: Thing\nmetadata: {name: first, namespace: "+s.ns+"}\nspec: {}\n")
	s.Write(t, dir+"20-type.yaml", `
apiVersion: `+group+`/v1
kind: Thing
metadata: {name: second, namespace: `+s.ns+`}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.`+group+`}
spec:
  group: `+group+`
  scope: Namespaced
  names: {kind: Thing, plural: things}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`)
	s.WaitFor(t, "both things", func(context.Context) (bool, error) {
		out, err := s.kubectlErr("get", "things."+group, "-o", "name")
		return strings.Contains(out, "/first") && strings.Contains(out, "/second"), err
	})
	s.removeFile(dir + "20-type.yaml")
	s.WaitFor(t, "the type to go", func(context.Context) (bool, error) {
		out, err := s.KubectlErr("get", "crd", "things."+group, "--ignore-not-found", "-o", "name")
		return out == "", err
	})
}

func TestKustomizationInTheFolderIsApplied(t *testing.T) {
	s := newSpace(t)
	dir := s.manifestFolder()
	s.Write(t, dir+"app/note.yaml", s.noteIn("note", "plain"))
	s.Write(t, dir+"app/kustomization.yaml", "namePrefix: my-\nresources: [note.yaml]\n")
	s.wantNote("my-note", "plain")
	s.Write(t, dir+"app/note.yaml", s.noteIn("note", "other"))
	s.wantNote("my-note", "other")
	s.wantNote("note", "")
	if err := os.RemoveAll(s.Host.Path(dir + "app")); err != nil {
		t.Fatal(err)
	}
	s.wantNote("my-note", "")
}

func TestMistakesInManifestsAreTold(t *testing.T) {
	s := newSpace(t)
	dir := s.manifestFolder()
	s.Write(t, dir+"good.yaml", s.noteIn("note", "kept"))
	s.wantNote("note", "kept")

	// What can't be read changes nothing.
	s.Write(t, dir+"good.yaml", "kind: ConfigMap\n  broken: [\n")
	s.Write(t, dir+"bad.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Bad_Name, namespace: "+s.ns+"}\n")
	s.WaitFor(t, "the troubles in the status", func(ctx context.Context) (bool, error) {
		out, err := s.ExecErr(ctx, s.Exe, "status")
		ok := strings.Contains(out, s.ns+"/good.yaml") && strings.Contains(out, s.ns+"/bad.yaml") && strings.Contains(out, "document 1:")
		if err == nil && !ok {
			err = fmt.Errorf("it says:\n%s", out)
		}
		return ok, err
	})
	s.WaitFor(t, "an event about it", func(context.Context) (bool, error) {
		out, err := s.KubectlErr("get", "events", "-n", "kube-system", "--field-selector", "reason=ApplyFailed", "-o", "jsonpath={range .items[*]}{.message}{'\\n'}{end}")
		return strings.Contains(out, s.ns+"/bad.yaml: apply ConfigMap") && strings.Contains(out, "Bad_Name"), err
	})
	s.wantNote("note", "kept")
	s.Write(t, dir+"good.yaml", s.noteIn("note", "mended"))
	s.removeFile(dir + "bad.yaml")
	s.wantNote("note", "mended")
	s.WaitFor(t, "no troubles", func(ctx context.Context) (bool, error) {
		out, err := s.ExecErr(ctx, s.Exe, "status")
		return !strings.Contains(out, s.ns), err
	})
}
