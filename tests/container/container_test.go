// Package container tests Knarr's image: a cluster in a container, which here is
// a pod of a node of the test's own.
package container

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestMain(m *testing.M) { harness.Main(m) }

const (
	volume = "/var/lib/knarr-volume" // of the machine
	tools  = "/var/lib/knarr-tools"  // the image has no shell
)

// sailor is a pod of the cluster in the container. Its volumes need mount(8), and
// mounts that other containers see need a root that is shared.
const sailor = `
apiVersion: v1
kind: Pod
metadata: {name: sailor, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  volumes:
  - {name: memory, emptyDir: {medium: Memory}}
  containers:
  - name: sailor
    image: knarr.dev/test:1
    imagePullPolicy: Never
    command: [testbox, sleep]
    securityContext: {privileged: true}
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    volumeMounts:
    - {name: memory, mountPath: /memory, mountPropagation: Bidirectional}
`

// image is the archive that make image has made, and the name in it.
func image(t *testing.T) (archive, name string) {
	t.Helper()
	archive = filepath.Join("..", "..", "dist", "knarr-image-"+runtime.GOARCH+".tar")
	f, err := os.Open(archive)
	if err != nil {
		t.Fatalf("run make image first: %v", err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			t.Fatalf("%s has no index", archive)
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name != "index.json" {
			continue
		}
		var index struct {
			Manifests []struct{ Annotations map[string]string }
		}
		if err := json.NewDecoder(r).Decode(&index); err != nil || len(index.Manifests) != 1 {
			t.Fatalf("%s: %v, %d manifests", archive, err, len(index.Manifests))
		}
		return archive, index.Manifests[0].Annotations["io.containerd.image.name"]
	}
}

// container is Knarr's image in a pod, on a node of another Knarr.
type container struct {
	*harness.Node
	image string
}

// start runs the image with a read-only root, as `docker run --read-only
// --tmpfs /run --tmpfs /tmp -v volume:/var/lib/knarr` does.
func (c *container) start(t *testing.T, name, volume string, privileged bool) {
	t.Helper()
	memory := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}
	anywhere := corev1.HostPathDirectoryOrCreate
	c.Create(t, "default", kube.Pod(name, kube.Once, kube.Grace(60),
		kube.Mount("run", "/run", memory), kube.Mount("tmp", "/tmp", memory), kube.Mount("tools", "/tools", kube.HostFolder(tools)),
		kube.Mount("data", "/var/lib/knarr", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: volume, Type: &anywhere}}),
		kube.Spec(func(s *corev1.PodSpec) {
			// The node keeps its name, as with docker run --hostname.
			s.Hostname, s.AutomountServiceAccountToken = "ship", new(false)
		}),
		kube.Box(func(b *corev1.Container) {
			b.Image, b.ImagePullPolicy = c.image, corev1.PullNever
			// The ranges of the node around it are taken.
			b.Args = []string{"server", "--cluster-cidr=10.52.0.0/16", "--service-cidr=10.53.0.0/16"}
			b.SecurityContext = &corev1.SecurityContext{Privileged: &privileged, ReadOnlyRootFilesystem: new(true)}
		})))
}

// in runs a program in the container.
func (c *container) in(name string, command ...string) (string, error) {
	out, err := c.KubectlErr(append([]string{"exec", "-n", "default", name, "--"}, command...)...)
	return strings.TrimSpace(out), err
}

// shell runs a script in it.
func (c *container) shell(name, script string) (string, error) {
	return c.in(name, "/tools/busybox", "sh", "-c", script)
}

// sailorRuns waits until the pod of the cluster in the container does, and returns
// its UID.
func (c *container) sailorRuns(t *testing.T, name string) string {
	t.Helper()
	c.WaitFor(t, "the pod of the cluster in the container", func(context.Context) (bool, error) {
		_, err := c.in(name, "kubectl", "wait", "pod/sailor", "--for=condition=Ready", "--timeout=60s")
		if err == nil {
			_, err = c.in(name, "kubectl", "exec", "sailor", "--", "true")
		}
		return err == nil, err
	})
	uid, err := c.in(name, "kubectl", "get", "pod", "sailor", "-o", "jsonpath={.metadata.uid}")
	if err != nil {
		t.Fatal(err)
	}
	return uid
}

// ended waits until the container has, and returns its exit code.
func (c *container) ended(t *testing.T, name string) int32 {
	t.Helper()
	pod := c.WaitPod(t, "default", name, "ended", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Terminated != nil
	})
	return pod.Status.ContainerStatuses[0].State.Terminated.ExitCode
}

func (c *container) logs(t *testing.T, name string) string {
	t.Helper()
	return c.Kubectl(t, "logs", "-n", "default", name)
}

// terminate sends SIGTERM to the first process, as docker stop does.
func (c *container) terminate(t *testing.T, name string) {
	t.Helper()
	if out, err := c.shell(name, "kill -TERM 1"); err != nil {
		t.Fatal(out, err)
	}
	if code := c.ended(t, name); code != 0 {
		t.Errorf("SIGTERM ended the container with %d:\n%s", code, c.logs(t, name))
	}
}

func TestImageRunsAClusterInAContainer(t *testing.T) {
	archive, name := image(t)
	testImage := filepath.Join("..", "..", "build", "images", "test.tar")
	c := &container{image: name, Node: harness.Prepare(t, harness.Options{Images: []string{archive}})}
	harness.CopyFile(t, filepath.Join("..", "..", "build", "images", "busybox"), c.Host.Path(tools+"/busybox"), 0o755)
	harness.CopyFile(t, testImage, c.Host.Path(volume+"/agent/images/test.tar"), 0o644)
	c.Write(t, volume+"/server/manifests/sailor.yaml", sailor)
	c.Resume(t)
	t.Cleanup(func() {
		if t.Failed() {
			for _, pod := range []string{"first", "second"} {
				out, err := c.KubectlErr("logs", "-n", "default", pod)
				t.Log(pod, out, err)
			}
		}
	})

	c.start(t, "first", volume, true)
	c.WaitPodRunning(t, "default", "first")
	uid := c.sailorRuns(t, "first")
	t.Run("the node is that of the image", func(t *testing.T) {
		out, err := c.in("first", "kubectl", "get", "nodes", "-o", "jsonpath={.items[*].status.nodeInfo.osImage} {.items[*].status.conditions[?(@.type=='Ready')].status}")
		if err != nil || out != "Knarr container True" {
			t.Errorf("%q, %v", out, err)
		}
		if out, err := c.in("first", "crictl", "ps", "-q"); err != nil || out == "" {
			t.Errorf("crictl lists %q: %v", out, err)
		}
	})
	t.Run("it does not take its first process for a neighbour", func(t *testing.T) {
		if said := c.logs(t, "first"); strings.Contains(said, "another knarr server") {
			t.Error(said)
		}
	})
	t.Run("the root is read-only", func(t *testing.T) {
		if out, err := c.shell("first", "echo > /usr/bin/new"); err == nil {
			t.Errorf("a file was made in it: %s", out)
		}
	})
	t.Run("orphans are reaped", func(t *testing.T) {
		// The shell ends at once; its child belongs to the first process then.
		orphan, err := c.shell("first", "/tools/busybox sleep 2 >/dev/null 2>&1 & echo $!")
		if err != nil {
			t.Fatal(err)
		}
		status := fmt.Sprintf("/proc/%s/status", orphan)
		if parent, err := c.shell("first", "/tools/busybox grep ^PPid: "+status); err != nil || strings.Fields(parent)[1] != "1" {
			t.Errorf("the orphan has %q: %v", parent, err)
		}
		c.WaitFor(t, "the orphan to be reaped", func(context.Context) (bool, error) {
			left, err := c.shell("first", "if [ -e "+status+" ]; then /tools/busybox grep ^State: "+status+"; fi")
			return left == "", errors.Join(err, errIf(left))
		})
	})
	t.Run("SIGTERM ends it with exit code 0", func(t *testing.T) { c.terminate(t, "first") })
	if t.Failed() {
		return
	}
	c.Kubectl(t, "delete", "pod", "-n", "default", "first")

	t.Run("another container goes on with its volume", func(t *testing.T) {
		c.start(t, "second", volume, true)
		c.WaitPodRunning(t, "default", "second")
		if again := c.sailorRuns(t, "second"); again != uid {
			t.Errorf("the pod is another one: %s, and was %s", again, uid)
		}
		c.terminate(t, "second")
	})
	t.Run("without rights it says so in one line and leaves nothing", func(t *testing.T) {
		const empty = "/var/lib/knarr-empty"
		c.start(t, "poor", empty, false)
		if code := c.ended(t, "poor"); code != 1 {
			t.Errorf("exit code %d", code)
		}
		if said := c.logs(t, "poor"); strings.Count(said, "\n") != 1 || !strings.Contains(said, "--privileged") {
			t.Errorf("it said %q", said)
		}
		if files, err := os.ReadDir(c.Host.Path(empty)); err != nil || len(files) > 0 {
			t.Errorf("left are %v, %v", files, err)
		}
	})
}

func errIf(text string) error {
	if text == "" {
		return nil
	}
	return errors.New(text)
}
