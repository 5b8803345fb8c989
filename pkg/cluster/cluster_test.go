package cluster

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/knarr-dev/knarr/pkg/config"
)

// TestControlPlanesRunSideBySideAndOneAfterTheOther: what one does, the other does
// not see, and nothing of either is left.
func TestControlPlanesRunSideBySideAndOneAfterTheOther(t *testing.T) {
	files, goroutines := openFiles(t), goleak.IgnoreCurrent()
	before := countLasting()
	a, b := controlPlane(t), controlPlane(t)
	if a.Host() == b.Host() {
		t.Errorf("both at %s", a.Host())
	}
	ctx := t.Context()
	in := func(c *Cluster) error {
		t.Helper()
		client, err := c.Client()
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.CoreV1().Namespaces().Get(ctx, "mine", metav1.GetOptions{})
		return err
	}
	client, err := a.Client()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "mine"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := in(a); err != nil {
		t.Error(err)
	}
	if err := in(b); !apierrors.IsNotFound(err) {
		t.Errorf("the other has it too: %v", err)
	}
	if v, err := client.Discovery().ServerVersion(); err != nil || !strings.HasPrefix(v.GitVersion, "v1.36.4") {
		t.Errorf("version %v, %v", v, err)
	}

	// The kubeconfig says the same as RESTConfig, as bytes and as a file.
	text, err := a.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	if file, err := os.ReadFile(a.KubeconfigPath()); err != nil || string(file) != string(text) {
		t.Errorf("%s: %v", a.KubeconfigPath(), err)
	}
	if r, err := clientcmd.RESTConfigFromKubeConfig(text); err != nil || r.Host != a.RESTConfig().Host {
		t.Errorf("kubeconfig: %v", err)
	}

	dirs := []string{a.cfg.Config.DataDir, b.cfg.Config.DataDir}
	a.Close()
	a.Close()
	if err := in(b); !apierrors.IsNotFound(err) {
		t.Errorf("the other is disturbed: %v", err)
	}
	b.Close()
	c := controlPlane(t)
	if err := in(c); !apierrors.IsNotFound(err) {
		t.Errorf("a third has what the first had: %v", err)
	}
	c.Close()

	for _, dir := range dirs {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	for _, c := range []*Cluster{a, b, c} {
		lis, err := net.Listen("tcp", strings.TrimPrefix(c.Host(), "https://"))
		if err != nil {
			t.Error(err)
			continue
		}
		lis.Close()
	}
	checkNothingIsLeft(t, goroutines, files)
	if left := lasting(before+3*leftForEach) - before; left > 3*leftForEach {
		t.Errorf("%d goroutines are left of three control planes", left)
	}
}

func openFiles(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("open files are counted on Linux: %v", err)
	}
	var all []string
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil {
			all = append(all, to)
		}
	}
	return all
}

func TestADataDirIsKeptAndItsClusterGoesOn(t *testing.T) {
	dir := t.TempDir()
	var uid string
	for range 2 {
		c, err := New(Config{DataDir: dir, APIServerArgs: []string{"max-requests-inflight=399"}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Client(); err == nil {
			t.Error("a client of a cluster that was not started")
		}
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(t.Context()); err == nil {
			t.Error("it starts twice")
		}
		select {
		case <-c.Ready():
		case err := <-c.Err():
			t.Fatal(err)
		}
		client, err := c.Client()
		if err != nil {
			t.Fatal(err)
		}
		ns, err := client.CoreV1().Namespaces().Get(t.Context(), "kube-system", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if uid != "" && uid != string(ns.UID) {
			t.Error("it is another cluster")
		}
		uid = string(ns.UID)
		c.Close()
		if err, open := <-c.Err(); open || err != nil {
			t.Errorf("Err after Close: %v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "server", "db", "state.db")); err != nil {
		t.Error(err)
	}
}

func TestMistakesInAConfigAreToldByNew(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	for name, c := range map[string]struct {
		cfg  Config
		want string
	}{
		"port":      {Config{Port: 70000}, "port 70000"},
		"both":      {Config{Config: config.Default(), DataDir: "x"}, "says everything"},
		"arguments": {Config{APIServerArgs: []string{"a b"}}, "name=value"},
		"name":      {Config{TLSSANs: []string{"https://x"}}, "DNS name"},
	} {
		c, want := c.cfg, c.want
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What only the start finds out.
	c, err := New(Config{DataDir: file})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "data-dir") {
		t.Errorf("a file as data dir: %v", err)
	}
	c.Close()
	// One that is never started gives all back.
	c, err = New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if lis, err := net.Listen("tcp", strings.TrimPrefix(c.Host(), "https://")); err != nil {
		t.Error(err)
	} else {
		lis.Close()
	}
	if port := strconv.Itoa(taken.Addr().(*net.TCPAddr).Port); strings.HasSuffix(c.Host(), ":"+port) {
		t.Error("it found a port that is taken")
	}
}

// What a node is made of is not linked into a program that wants a control plane.
// Parts of the kubelet that upstream's own controllers and scheduler import are,
// and cadvisor's client of containerd's API with them.
func TestAControlPlaneLinksNoNode(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the list is that of Linux")
	}
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 1000 || !slices.Contains(deps, "k8s.io/kubernetes/cmd/kube-apiserver/app") {
		t.Fatalf("%d packages", len(deps))
	}
	const own = "github.com/knarr-dev/knarr/pkg/"
	for _, pkg := range deps {
		for _, not := range []string{
			"github.com/containerd/containerd/v2", "github.com/flannel-io", "github.com/coredns", "helm.sh",
			"k8s.io/kubernetes/cmd/kubelet", "k8s.io/kubernetes/cmd/kube-proxy", "k8s.io/kubernetes/pkg/proxy/nftables", "k8s.io/kubectl/pkg/cmd",
			own + "node", own + "addons", own + "bundle", own + "host", own + "cli", own + "throwaway",
		} {
			if pkg == not || strings.HasPrefix(pkg, not+"/") {
				t.Errorf("it links %s", pkg)
			}
		}
		if pkg == "k8s.io/kubernetes/pkg/kubelet" {
			t.Error("it links the kubelet")
		}
	}
}
