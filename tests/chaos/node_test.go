package chaos

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/pkg/bundle/ocitar"
	"github.com/knarr-dev/knarr/tests/chaos/chance"
	"github.com/knarr-dev/knarr/tests/chaos/flakydisk"
	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

const dataDir = "/var/lib/knarr"

// A control plane is killed at its start, at work and while it stops. Objects
// are written all the time; watches go on after each restart with the revision
// they had.
func TestKilledControlPlaneKeepsWhatItAcknowledged(t *testing.T) {
	random := chance.New(t, *seed)
	count := 4
	if *rounds > 0 {
		count = *rounds
	}
	n := harness.Start(t, harness.Options{Args: []string{"--disable-agent", uncached}})
	loads := []*apiLoad{startLoad(t, n, strict, 2), startLoad(t, n, cached, 1)}
	for round := range count {
		switch round % 4 {
		case 0, 1: // at work
			loads[0].acknowledged(t, 20+random.IntN(200))
			n.Kill(t)
		case 2: // while it stops
			loads[0].acknowledged(t, 20)
			n.Signal(t, syscall.SIGTERM)
			time.Sleep(chance.UpTo(random, 500*time.Millisecond))
			kill(t, n)
		case 3: // while it starts
			n.Kill(t)
			launch(t, n)
			time.Sleep(chance.UpTo(random, 1200*time.Millisecond))
			n.Kill(t)
		}
		n.Resume(t)
	}
	for _, l := range loads {
		l.acknowledged(t, 20)
		l.finish(t)
	}
}

// A node is killed while it unpacks its bundle, imports an image and starts a
// pod. It comes back, and with it all of that.
func TestKilledNodeFinishesWhatItHadBegun(t *testing.T) {
	random := chance.New(t, *seed)
	count := 3
	if *rounds > 0 {
		count = max(3, *rounds/6)
	}
	n := harness.Start(t, harness.Options{})
	load := startLoad(t, n, strict, 1)
	n.Create(t, "default", kube.Pod("steady", kube.Serve("steady")))
	steady := n.WaitPodRunning(t, "default", "steady")
	for round := range count {
		switch round % 3 {
		case 0:
			n.Kill(t)
			if err := os.RemoveAll(n.Host.Path(dataDir + "/bundle")); err != nil {
				t.Fatal(err)
			}
			launch(t, n)
			time.Sleep(chance.UpTo(random, 400*time.Millisecond))
		case 1:
			dropImage(t, n, round)
			time.Sleep(chance.UpTo(random, 150*time.Millisecond))
		case 2:
			n.Create(t, "default", kube.Pod(fmt.Sprintf("pod-%d", round), kube.Serve("pod")))
			time.Sleep(chance.UpTo(random, 700*time.Millisecond))
		}
		n.Kill(t)
		n.Resume(t)
		switch round % 3 {
		case 0:
			n.Exec(t, dataDir+"/bundle/current/bin/runc", "--version")
		case 1:
			name := fmt.Sprintf("imported-%d", round)
			n.Create(t, "default", kube.Pod(name, kube.Box(func(c *corev1.Container) {
				c.Image, c.ImagePullPolicy = image(round), corev1.PullNever
			})))
			n.WaitPodRunning(t, "default", name)
		case 2:
			n.WaitPodRunning(t, "default", fmt.Sprintf("pod-%d", round))
		}
	}
	load.finish(t)
	now, err := n.Client.CoreV1().Pods("default").Get(t.Context(), "steady", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if was, is := steady.Status.ContainerStatuses[0].ContainerID, now.Status.ContainerStatuses[0].ContainerID; was != is {
		t.Errorf("a pod that nobody touched was in container %s and is in %s", was, is)
	}
}

// The power of the disk with the control plane's data goes, and with it the
// machine.
func TestNodeSurvivesPowerCuts(t *testing.T) {
	long(t)
	flakydisk.Needs(t)
	random := chance.New(t, *seed)
	count := max(2, *cuts/5)
	d := flakydisk.ForTest(t, t.TempDir(), 192<<20)
	n := harness.Prepare(t, harness.Options{Args: []string{"--disable-agent", uncached}})
	var load *apiLoad
	for cut := range count {
		mountInHost(t, n, d, dataDir+"/server")
		n.Resume(t)
		if load == nil {
			load = startLoad(t, n, strict, 2)
		}
		load.acknowledged(t, 50+random.IntN(300))
		if cut%3 == 2 { // or it is cut in its start
			n.Kill(t)
			launch(t, n)
			time.Sleep(chance.UpTo(random, 1200*time.Millisecond))
		}
		if err := d.Cut(chance.Keep(random), random.Uint64()); err != nil {
			t.Fatal(err)
		}
		n.Reboot(t)
		if err := d.Power(); err != nil {
			t.Fatal(err)
		}
	}
	mountInHost(t, n, d, dataDir+"/server")
	n.Resume(t)
	load.acknowledged(t, 20)
	load.finish(t)
}

// kill is Kill for a server that may have ended.
func kill(t *testing.T, n *harness.Node) {
	t.Helper()
	if n.Ended() {
		return
	}
	n.Kill(t)
}

func launch(t *testing.T, n *harness.Node) {
	t.Helper()
	if err := n.Launch(); err != nil {
		t.Fatal(err)
	}
}

// dropImage puts an archive where the server imports it from.
func dropImage(t *testing.T, n *harness.Node, round int) {
	t.Helper()
	testbox, err := os.ReadFile(harness.Testbox(t))
	if err != nil {
		t.Fatal(err)
	}
	var archive strings.Builder
	err = ocitar.Write(&archive, ocitar.Image{
		Name: image(round), Arch: runtime.GOARCH, Cmd: []string{"/testbox", "sleep"},
		Files: []ocitar.File{{Name: "testbox", Mode: 0o755, Data: testbox}, {Name: "round", Mode: 0o644, Data: fmt.Append(nil, round)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Write(t, fmt.Sprintf("%s/agent/images/round-%d.tar", dataDir, round), archive.String())
}

func image(round int) string { return fmt.Sprintf("example.org/chaos:%d", round) }

// mountInHost mounts a disk in the host, where a reboot unmounts it.
func mountInHost(t *testing.T, n *harness.Node, d *flakydisk.Disk, point string) {
	t.Helper()
	device, err := d.Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mountDevice(t, n, device, point)
}
