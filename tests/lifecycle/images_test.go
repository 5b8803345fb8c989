package lifecycle

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/pkg/bundle/ocitar"
	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// The disk of images, and how much of it the kubelet wants free.
const (
	imageDisk = "/var/lib/knarr/agent/containerd"
	diskSize  = "700M"
	wantFree  = 150 << 20
	ballast   = 96 << 20 // an image that nobody uses
)

// Images and containers lie on a disk of their own, which a file fills until the
// kubelet wants some of it back.
func TestUnusedImagesAndContainersGoWhenTheDiskIsFull(t *testing.T) {
	n := harness.Prepare(t, harness.Options{Args: []string{
		fmt.Sprintf("--kubelet-arg=eviction-hard=imagefs.available<%d,nodefs.available<1Mi,memory.available<1Mi", wantFree),
		"--kubelet-arg=eviction-pressure-transition-period=1s",
		"--kubelet-arg=minimum-image-ttl-duration=1s",
	}})
	n.Exec(t, "sh", "-c", "mkdir -p "+imageDisk+" && truncate -s "+diskSize+" /var/images.ext4 && "+
		"mkfs.ext4 -q -F -m 0 /var/images.ext4 && mount -o loop /var/images.ext4 "+imageDisk)
	pinned := "/var/lib/knarr/agent/images/"
	n.Write(t, pinned+"kept.tar", archive(t, "example.org/kept:1", 1<<10))
	n.Write(t, pinned+"unused.tar", archive(t, "example.org/unused:1", ballast))
	n.Resume(t)
	has := func(image string, want bool) {
		t.Helper()
		n.WaitFor(t, fmt.Sprintf("image %s to be there: %t", image, want), func(ctx context.Context) (bool, error) {
			there, err := images(ctx, n)
			return there[image] == want, err
		})
	}
	has("example.org/kept:1", true)
	has("example.org/unused:1", true)
	n.Exec(t, "rm", pinned+"unused.tar") // which protected it
	// The kubelet leaves images alone that it has not known for a while, and it
	// looks at its start.
	n.Restart(t)

	n.Create(t, "default", kube.Pod("stays"), kube.Pod("over", kube.Once, kube.Testbox("exit", "0")))
	n.WaitPodRunning(t, "default", "stays")
	n.WaitPod(t, "default", "over", "succeeded", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })

	free := fmt.Sprintf("$(( ($(stat -f -c '%%a * %%S' %s)) - %d ))", imageDisk, wantFree-ballast/2)
	n.Exec(t, "sh", "-c", "fallocate -l "+free+" "+imageDisk+"/filler")
	n.WaitFor(t, "the unused image to be gone", func(ctx context.Context) (bool, error) {
		there, err := images(ctx, n)
		return !there["example.org/unused:1"], err
	})
	n.WaitFor(t, "the dead container to be gone", func(ctx context.Context) (bool, error) {
		out, err := n.ExecErr(ctx, n.Exe, "crictl", "ps", "--all", "--quiet", "--state", "exited")
		return strings.TrimSpace(out) == "", err
	})
	has("example.org/kept:1", true)
	has(harness.TestImage, true)
	has("knarr.dev/pause:1", true)
	if pod := n.WaitPodRunning(t, "default", "stays"); pod.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Error("the running pod was disturbed although the images' room was enough")
	}
	n.WaitFor(t, "the node to be well again", func(ctx context.Context) (bool, error) {
		out, err := n.KubectlErr("get", "node", "node", "-o", "jsonpath={.status.conditions[?(@.type=='DiskPressure')].status}")
		return out == "False", err
	})
}

// Where overlays don't work, images are pulled and unpacked all the same.
func TestImagesArePulledWithTheNativeSnapshotter(t *testing.T) {
	n := harness.Start(t, harness.Options{Args: []string{"--snapshotter=native"}})
	r := n.StartRegistry(t, harness.RegistryOptions{})
	r.Push(t, "app:1")
	n.Create(t, "default", kube.Pod("app", kube.Box(func(c *corev1.Container) { c.Image = r.Image("app:1") })))
	n.WaitPodRunning(t, "default", "app")
	if edition := n.Kubectl(t, "exec", "app", "--", "cat", "/edition"); edition != "app:1\n" {
		t.Errorf("the edition is %q", edition)
	}
}

// archive is an image with so many bytes in it that nothing compresses.
func archive(t *testing.T, name string, size int) string {
	t.Helper()
	data := make([]byte, size)
	rand.Read(data) // never fails, see its documentation
	var buf bytes.Buffer
	if err := ocitar.Write(&buf, ocitar.Image{
		Name: name, Arch: runtime.GOARCH, Files: []ocitar.File{{Name: "data", Mode: 0o644, Data: data}},
	}); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

// images are the names of those on the node.
func images(ctx context.Context, n *harness.Node) (map[string]bool, error) {
	out, err := n.ExecErr(ctx, n.Exe, "crictl", "images", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct{ Images []struct{ RepoTags []string } }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, err
	}
	there := map[string]bool{}
	for _, i := range list.Images {
		for _, tag := range i.RepoTags {
			there[tag] = true
		}
	}
	return there, nil
}
