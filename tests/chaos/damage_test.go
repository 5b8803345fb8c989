package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

const (
	storeFile = dataDir + "/server/db/state.db"
	// savedStore is where a server saves it when its file goes.
	savedStore = dataDir + "/server/db.rescued/state.db"
	tlsDir     = dataDir + "/server/tls"
)

// damaged is a node with a pod that must not notice what happens to the files of
// its control plane.
type damaged struct {
	n         *harness.Node
	url       string
	container string
}

func TestDamagedFilesAreToldAndKeptAndPodsRunOn(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Create(t, "default", kube.Pod("steady", kube.Serve("steady"), kube.Ready(kube.HTTP("/", 8080))))
	p := n.WaitPodRunning(t, "default", "steady")
	d := &damaged{n: n, url: fmt.Sprintf("http://%s:8080/", p.Status.PodIP), container: p.Status.ContainerStatuses[0].ContainerID}

	t.Run("a truncated database", func(t *testing.T) {
		d.store(t, func(b []byte) []byte { return b[:len(b)/2] })
	})
	t.Run("a database with a bit flipped", func(t *testing.T) {
		long(t) // the parts' own tests show it too
		d.store(t, func(b []byte) []byte { b[4096+3] ^= 0x10; return b })
	})
	t.Run("a database deleted while it is used", d.deleted)
	t.Run("a mangled authority", func(t *testing.T) {
		d.certificate(t, "server-ca.crt", func(b []byte) []byte { return b[:len(b)/2] }, "restore")
	})
	t.Run("an authority's key deleted", func(t *testing.T) {
		long(t) // the parts' own tests show it too
		d.certificate(t, "client-ca.key", nil, "missing")
	})
	t.Run("a mangled key of service accounts", func(t *testing.T) {
		long(t) // the parts' own tests show it too
		d.certificate(t, "service-account.key", func(b []byte) []byte { return append(b[:40], b[60:]...) }, "restore")
	})
	t.Run("a half-written configuration", d.configuration)

	now := n.WaitPodRunning(t, "default", "steady")
	if is := now.Status.ContainerStatuses[0].ContainerID; is != d.container {
		t.Errorf("the pod was in container %s and is in %s", d.container, is)
	}
}

// answers checks that the pod does.
func (d *damaged) answers(t *testing.T) {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: d.n.Host.DialContext, DisableKeepAlives: true}}
	resp, err := client.Get(d.url)
	if err != nil {
		t.Errorf("the pod: %v", err)
		return
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(body), "steady") {
		t.Errorf("the pod said %q, %v", body, err)
	}
}

// failing waits until a component is told as failed, and retried, for a reason.
func failing(t *testing.T, n *harness.Node, name string, want ...string) {
	t.Helper()
	n.WaitFor(t, name+" to be told as failed", func(ctx context.Context) (bool, error) {
		r, err := n.StatusErr(ctx)
		if err != nil {
			return false, err
		}
		for _, c := range r.Components {
			if c.Name != name {
				continue
			}
			if c.State != component.StateRetrying {
				return false, fmt.Errorf("it is %s", c.State)
			}
			for _, w := range want {
				if !strings.Contains(c.LastError, w) {
					return false, fmt.Errorf("no %q in %q", w, c.LastError)
				}
			}
			return true, nil
		}
		return false, errors.New("it is not there")
	})
	if n.Ended() {
		t.Error("the server has ended")
	}
}

// store damages the database while the server is away.
func (d *damaged) store(t *testing.T, damage func([]byte) []byte) {
	n, path, good := d.n, d.n.Host.Path(storeFile), filepath.Join(t.TempDir(), "good.db")
	n.Stop(t)
	copyStore(t, path, good)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := damage(whole)
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	// The log, which has the last changes, may mend what it covers.
	if err := os.Truncate(path+"-wal", 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	launch(t, n)
	failing(t, n, "apiserver", storeFile, "backup")
	d.answers(t)
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, bad) {
		t.Errorf("the damaged file was changed (%v)", err)
	}
	if n.Said("READY=1") {
		t.Error("READY=1 was said without a store")
	}
	copyStore(t, good, path)
	n.WaitReady(t)
	d.answers(t)
}

// deleted removes the database of a running server, and goes on as it is told.
func (d *damaged) deleted(t *testing.T) {
	n, path := d.n, d.n.Host.Path(storeFile)
	if _, err := n.Client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	failing(t, n, "apiserver", savedStore, "mv")
	d.answers(t)
	n.Stop(t)
	launch(t, n)
	failing(t, n, "apiserver", savedStore, "mv")
	d.answers(t)
	n.Stop(t)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.Rename(n.Host.Path(savedStore), path)); err != nil {
		t.Fatal(err)
	}
	n.Resume(t)
	d.answers(t)
	if _, err := n.Client.CoreV1().ConfigMaps("default").Get(t.Context(), "kept", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

// certificate damages a file while it is used, or deletes it, which is told at
// the next start.
func (d *damaged) certificate(t *testing.T, file string, damage func([]byte) []byte, want string) {
	n, path := d.n, d.n.Host.Path(tlsDir+"/"+file)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var bad []byte
	if damage == nil {
		err = os.Remove(path)
	} else {
		bad = damage(bytes.Clone(whole))
		err = os.WriteFile(path, bad, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Client.CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
		t.Errorf("a running server: %v", err)
	}
	n.Stop(t)
	launch(t, n)
	failing(t, n, "pki", tlsDir+"/"+file, want)
	d.answers(t)
	if now, err := os.ReadFile(path); err == nil && !bytes.Equal(now, bad) || err != nil && damage != nil {
		t.Errorf("the file was changed (%v)", err)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	n.WaitReady(t)
	d.answers(t)
}

// configuration leaves half of a file, as an editor does on a full disk.
func (d *damaged) configuration(t *testing.T) {
	const path = "/etc/knarr/config.yaml"
	n := d.n
	n.Stop(t)
	n.Write(t, path, "node-label: [a=b]\nnode-taint: [\"c=d:NoSch")
	_, err := n.ExecErr(t.Context(), n.Exe, "server")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(err.Error(), path) {
		t.Errorf("the server said: %v", err)
	}
	d.answers(t)
	if err := os.Remove(n.Host.Path(path)); err != nil {
		t.Fatal(err)
	}
	n.Resume(t)
	d.answers(t)
}
