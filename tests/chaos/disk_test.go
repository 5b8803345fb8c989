package chaos

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/chaos/flakydisk"
	"github.com/knarr-dev/knarr/tests/harness"
)

// mountDevice mounts ext4 in the host, where a reboot unmounts it and lets the
// device go.
func mountDevice(t *testing.T, n *harness.Node, device, point string) {
	t.Helper()
	defer func() {
		if err := flakydisk.Detach(device); err != nil {
			t.Error(err)
		}
	}()
	if err := os.MkdirAll(n.Host.Path(point), 0o700); err != nil {
		t.Fatal(err)
	}
	n.Exec(t, "mount", "-t", "ext4", "-o", "noatime,noinit_itable", device, point)
}

// The disk with the store is filled to its last block, and emptied again.
func TestFullDiskIsSurvivedWithoutARestart(t *testing.T) {
	flakydisk.Needs(t)
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-F", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	device, err := flakydisk.Attach(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	n := harness.Prepare(t, harness.Options{Args: []string{"--disable-agent", uncached}})
	mountDevice(t, n, device, dataDir+"/server")
	n.Resume(t)
	load := startLoad(t, n, strict, 2)
	load.acknowledged(t, 50)

	filler := n.Host.Path(dataDir + "/server/filler")
	fill(t, filler)
	writeUntilRefused(t, n)
	if _, err := n.Client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("reading from a full disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	load.acknowledged(t, 100)
	n.Kill(t)
	n.Resume(t)
	load.acknowledged(t, 20)
	load.finish(t)
}

// fill takes all the room there is.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size >= 4096; size /= 2 {
		for chunk := make([]byte, size); ; {
			if _, err := f.Write(chunk); err != nil {
				break
			}
		}
	}
	if err := f.Sync(); err != nil {
		t.Logf("fill: %v", err)
	}
}

// writeUntilRefused writes large objects until an error is answered, which the
// room in the log puts off for a moment.
func writeUntilRefused(t *testing.T, n *harness.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), answerTimeout)
	defer cancel()
	for i := range 200 {
		_, err := n.Client.CoreV1().ConfigMaps("kube-system").Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{GenerateName: fmt.Sprintf("large-%d-", i)},
			Data:       map[string]string{"x": strings.Repeat("x", 500<<10)},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Logf("after %d large objects: %v", i, err)
			if ctx.Err() != nil {
				t.Error("no answer came")
			}
			return
		}
	}
	t.Error("a hundred megabytes went to a disk that takes none")
}

// The disk answers I/O errors, or its file system becomes read-only, as ext4 does
// after an error: the API goes on with what is in memory. Nothing that it
// acknowledged is gone after a reboot.
func TestNothingIsLostByIOErrorsAndAReadOnlyDisk(t *testing.T) {
	flakydisk.Needs(t)
	d := flakydisk.ForTest(t, t.TempDir(), 192<<20)
	n := harness.Prepare(t, harness.Options{Args: []string{"--disable-agent", uncached}})
	point := dataDir + "/server"
	mountInHost(t, n, d, point)
	n.Resume(t)
	load := startLoad(t, n, strict, 2)
	faults := []struct {
		name  string
		begin func()
	}{
		{"I/O errors", func() {
			if err := d.Fail(); err != nil {
				t.Fatal(err)
			}
		}},
		{"a read-only file system", func() { n.Exec(t, "mount", "-o", "remount,abort", point) }},
	}
	for round := range max(len(faults), *rounds/10) {
		fault := faults[round%len(faults)]
		load.acknowledged(t, 50)
		fault.begin()
		writeUntilRefused(t, n)
		if _, err := n.Client.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{ResourceVersion: "0"}); err != nil {
			t.Errorf("%s: what is in memory cannot be read: %v", fault.name, err)
		}
		if said := n.Log(t); !strings.Contains(said, "the disk of the datastore failed") {
			t.Errorf("%s: the log does not say so:\n%s", fault.name, said)
		}
		n.Reboot(t)
		if err := d.Power(); err != nil {
			t.Fatal(err)
		}
		mountInHost(t, n, d, point)
		n.Resume(t)
	}
	load.acknowledged(t, 20)
	load.finish(t)
}

// copyStore copies the store's files that there are, and removes the others. The
// log comes first: a server may be about to open what it finds.
func copyStore(t *testing.T, from, to string) {
	t.Helper()
	for _, suffix := range []string{"-shm", "-wal", ""} {
		data, err := os.ReadFile(from + suffix)
		if errors.Is(err, fs.ErrNotExist) {
			err = os.Remove(to + suffix)
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		} else if err == nil {
			err = errors.Join(os.WriteFile(to+".copy", data, 0o600), os.Rename(to+".copy", to+suffix))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
