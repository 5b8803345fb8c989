package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/imageclient"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// credentialProviders is the kubelet's file of programs that give credentials, and
// credentialProvider the one in it: it knows a password for one image.
const (
	credentialProviders = `
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: lab-provider
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ["*.*.*.*:5000"]
  defaultCacheDuration: 0s
`
	credentialProvider = `#!/bin/sh
case $(cat) in
*/provided/app*) auth='{"*.*.*.*:5000": {"username": "anna", "password": "right"}}' ;;
*) auth='{}' ;;
esac
echo '{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse", "cacheKeyType": "Image", "auth": '"$auth"'}'
`
)

func TestCredentialsComeFromAProvidersProgram(t *testing.T) {
	s := newSpace(t)
	r := s.StartRegistry(t, harness.RegistryOptions{User: "anna", Password: "right"})
	r.Push(t, "provided/app:1")
	r.Push(t, "other/app:1")
	s.create(kube.Pod("provided", image(r.Image("provided/app:1"))), kube.Pod("other", image(r.Image("other/app:1"))))
	s.running("provided")
	s.notPulled("other", "no basic auth credentials")
}

// pushByHTTP sends an image to the node's own registry, as a builder on the node
// does.
func (s *space) pushByHTTP(image, edition string) {
	s.t.Helper()
	repository, tag := imageclient.Parse(image)
	transport := &http.Transport{DialContext: s.Host.DialContext}
	defer transport.CloseIdleConnections()
	repository.Client = &http.Client{Transport: transport}
	if err := repository.Push(s.t.Context(), harness.Build(s.t, edition), tag); err != nil {
		s.t.Fatal(err)
	}
}

// saved writes an image to an archive on the node.
func (s *space) saved(image, edition string) (path string) {
	s.t.Helper()
	path = "/tmp/" + s.ns + ".tar"
	f, err := os.Create(s.Host.Path(path))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = os.Remove(f.Name()) })
	if err := harness.Build(s.t, edition).Save(f, image); err != nil {
		s.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// knarr runs the command line on the node.
func (s *space) knarr(args ...string) string {
	s.t.Helper()
	return s.Exec(s.t, append([]string{s.Exe}, args...)...)
}

// What a tutorial teaches, from the image to the roll-back.
func TestAnImageIsBuiltPushedDeployedExposedScaledUpdatedAndRolledBack(t *testing.T) {
	s := newSpace(t)
	app := "localhost:5000/" + s.ns + "/app"
	s.pushByHTTP(app+":1", "one")

	s.create(kube.Deployment("app", 1, image(app+":1"), kube.Shell(`exec testbox serve --port=8080 --body="$(cat /edition)"`),
		kube.Expose("http", 8080), kube.Ready(kube.HTTP("/", 8080))))
	s.kubectl("expose", "deployment", "app", "--type=NodePort", "--port=80", "--target-port=8080")
	url := "http://" + s.nodeAddr(s.get("service/app", ".spec.ports[0].nodePort"))
	s.kubectl("rollout", "status", "deployment/app", "--timeout=120s")
	answers := func(edition string) {
		t.Helper()
		s.WaitFor(t, "the answer "+edition, func(ctx context.Context) (bool, error) {
			answer, err := s.fetch(ctx, url)
			if err == nil && answer != edition {
				err = fmt.Errorf("it is %q", answer)
			}
			return err == nil, err
		})
	}
	answers("one")

	s.kubectl("scale", "deployment/app", "--replicas=3")
	s.kubectl("rollout", "status", "deployment/app", "--timeout=120s")
	want(t, "the number of replicas that are ready", s.get("deployment/app", ".status.readyReplicas"), "3")

	// The second edition comes by way of the node's own images.
	archive := s.saved("docker.io/tutorial/"+s.ns+":2", "two")
	wantPart(t, "what the import says", s.knarr("image", "import", archive), "imported docker.io/tutorial/"+s.ns+":2")
	wantPart(t, "what the push says", s.knarr("image", "push", "tutorial/"+s.ns+":2", app+":2"), "pushed "+app+":2, sha256:")
	s.kubectl("set", "image", "deployment/app", "app="+app+":2")
	s.kubectl("rollout", "status", "deployment/app", "--timeout=120s")
	answers("two")

	// Both are in the server's registry, and nothing of that is old enough to go.
	list := s.knarr("image", "list", "--registry")
	wantPart(t, "the registry's list", list, s.ns+"/app")
	wantPart(t, "the registry's size", list, "on disk, of which")
	wantPart(t, "what pruning says", s.knarr("image", "prune", "--registry", "--untagged"), "removed 0 images and 0 blobs")
	answers("two")

	s.kubectl("rollout", "undo", "deployment/app")
	s.kubectl("rollout", "status", "deployment/app", "--timeout=120s")
	answers("one")
}

func TestImagesAreListedExportedAndRemovedOnTheNode(t *testing.T) {
	s := newSpace(t)
	image := "localhost:5000/" + s.ns + "/tool:1"
	s.pushByHTTP(image, "tool")
	wantPart(t, "what the pull says", s.knarr("image", "pull", image), "pulled "+image)
	state := func() string {
		t.Helper()
		var list []struct {
			Tags         []string
			Used, Pinned bool
		}
		if err := json.Unmarshal([]byte(s.knarr("image", "list", "-o", "json")), &list); err != nil {
			t.Fatal(err)
		}
		for _, i := range list {
			if len(i.Tags) > 0 && i.Tags[0] == image {
				return fmt.Sprintf("used %t, pinned %t", i.Used, i.Pinned)
			}
		}
		return "none"
	}
	want(t, "the pulled image", state(), "used false, pinned false")
	wantPart(t, "the table", s.knarr("image", "list"), image)

	archive := "/tmp/" + s.ns + "-exported.tar"
	s.knarr("image", "export", image, "-f", archive)
	t.Cleanup(func() { _ = os.Remove(s.Host.Path(archive)) })
	s.knarr("image", "remove", image)
	want(t, "the removed image", state(), "none")
	wantPart(t, "what the import says", s.knarr("image", "import", archive), image)
	want(t, "the imported image", state(), "used false, pinned true")

	for command, words := range map[string]string{
		"image remove no/such:1":                   "this machine has no such image",
		"image push no/such:1":                     "this machine has none of that name",
		"image import /no/such.tar":                "no such file",
		"image export " + image + " -f " + archive: "file exists",
		"image pull UPPER":                         "must be lowercase",
	} {
		out, err := s.ExecErr(t.Context(), append([]string{s.Exe}, strings.Fields(command)...)...)
		if err == nil || !strings.Contains(out+err.Error(), words) {
			t.Errorf("knarr %s says %q, %v; want %q", command, out, err, words)
		}
	}
}

// Others pull images meanwhile, which prune would take from them.
func TestPruneRemovesWhatNoPodUses(t *testing.T) {
	s := newSpaceAlone(t)
	repository := "localhost:5000/" + s.ns + "/"
	for _, name := range []string{"used", "ended", "unused"} {
		s.pushByHTTP(repository+name+":1", name)
		s.knarr("image", "pull", repository+name+":1")
	}
	archive := s.saved("docker.io/pruned/"+s.ns+":1", "imported")
	s.knarr("image", "import", archive)
	s.create(kube.Pod("used", image(repository+"used:1")), kube.Pod("ended", kube.Once, image(repository+"ended:1"), kube.Run("true")))
	s.running("used")
	s.ended("ended", corev1.PodSucceeded)

	wantPart(t, "the dry run", s.knarr("image", "prune", "--dry-run"), "would remove "+repository+"unused:1")
	out := s.knarr("image", "prune")
	wantPart(t, "what was removed", out, "removed "+repository+"unused:1")
	list := s.knarr("image", "list")
	for _, kept := range []string{repository + "used:1", repository + "ended:1", "docker.io/pruned/" + s.ns + ":1", kube.Image} {
		wantPart(t, "what is left", list, kept)
	}
	if strings.Contains(list, repository+"unused:1") {
		t.Errorf("an image that no pod uses is still there:\n%s", list)
	}
}
