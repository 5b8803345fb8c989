package e2e

import (
	"strings"
	"testing"
)

const note = `
apiVersion: v1
kind: ConfigMap
metadata:
  name: note
data:
  text: first
`

func TestUserAppliesComparesAndDeletesManifests(t *testing.T) {
	s := newSpace(t)
	s.Write(t, "/root/"+s.ns+"/note.yaml", note)
	file := "/root/" + s.ns + "/note.yaml"
	wantPart(t, "the first time", s.kubectl("apply", "-f", file), "configmap/note created")
	wantPart(t, "the second time", s.kubectl("apply", "-f", file), "configmap/note unchanged")
	want(t, "the difference", s.kubectl("diff", "-f", file), "")

	s.Write(t, file, strings.Replace(note, "first", "second", 1))
	diff, err := s.kubectlErr("diff", "-f", file)
	if err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("kubectl diff found no difference: %v", err)
	}
	wantPart(t, "the difference", diff, "-  text: first\n+  text: second")
	wantPart(t, "the third time", s.kubectl("apply", "-f", file), "configmap/note configured")
	want(t, "the text", s.get("configmap/note", ".data.text"), "second")

	s.Write(t, file, strings.Replace(note, "text: first", "title: third", 1))
	s.kubectl("apply", "-f", file)
	want(t, "the data", s.get("configmap/note", ".data"), `{"title":"third"}`)

	wantPart(t, "the deletion", s.kubectl("delete", "-f", file), `configmap "note" deleted`)
	if _, err := s.kubectlErr("get", "configmap", "note"); err == nil || !strings.Contains(err.Error(), "NotFound") {
		t.Errorf("after its deletion: %v", err)
	}
}

func TestServerSideApplyKnowsWhoOwnsAField(t *testing.T) {
	s := newSpace(t)
	s.Write(t, "/root/"+s.ns+"/note.yaml", note)
	file := "/root/" + s.ns + "/note.yaml"
	s.kubectl("apply", "--server-side", "--field-manager=anna", "-f", file)
	s.Write(t, file, strings.Replace(note, "first", "second", 1))
	_, err := s.kubectlErr("apply", "--server-side", "--field-manager=ben", "-f", file)
	if err == nil || !strings.Contains(err.Error(), `conflict with "anna"`) {
		t.Errorf("two managers of one field do not conflict: %v", err)
	}
	s.kubectl("apply", "--server-side", "--field-manager=ben", "--force-conflicts", "-f", file)
	want(t, "the text", s.get("configmap/note", ".data.text"), "second")
}

func TestMistakesInAManifestAreNamed(t *testing.T) {
	s := newSpace(t)
	s.Write(t, "/root/"+s.ns+"/wrong.yaml", `
apiVersion: v1
kind: Pod
metadata:
  name: wrong
spec:
  containers:
  - name: wrong
    imagee: knarr.dev/test:1
`)
	_, err := s.kubectlErr("apply", "-f", "/root/"+s.ns+"/wrong.yaml")
	if err == nil || !strings.Contains(err.Error(), `unknown field "spec.containers[0].imagee"`) {
		t.Errorf("a misspelled field is not named: %v", err)
	}
}

func TestKustomizationIsApplied(t *testing.T) {
	s := newSpace(t)
	dir := "/root/" + s.ns
	s.Write(t, dir+"/note.yaml", note)
	s.Write(t, dir+"/kustomization.yaml", `
namePrefix: my-
resources: [note.yaml]
configMapGenerator:
- name: more
  literals: [a=b]
`)
	out := s.kubectl("apply", "-k", dir)
	wantPart(t, "what was applied", out, "configmap/my-note created")
	wantPart(t, "what was applied", out, "configmap/my-more-")
}

func TestOrphansOutliveTheirOwner(t *testing.T) {
	s := newSpace(t)
	s.create(web("here")...)
	s.pods("app=web", 2)
	s.kubectl("delete", "deployment", "web", "--cascade=orphan")
	wantPart(t, "what is left", s.kubectl("get", "replicasets", "-o", "name"), "replicaset.apps/web-")
	s.pods("app=web", 2)
}
