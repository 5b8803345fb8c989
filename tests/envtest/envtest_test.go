// Package envtest tests that controller-runtime's envtest takes Knarr for what it
// usually downloads.
package envtest

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

const knarr = "../../dist/knarr"

var ships = schema.GroupVersionResource{Group: "knarr.dev", Version: "v1", Resource: "ships"}

// use makes an object of the CRD in testdata, and sees it by a watch.
func use(t *testing.T, access *rest.Config) {
	t.Helper()
	client, err := dynamic.NewForConfig(access)
	if err != nil {
		t.Fatal(err)
	}
	of := client.Resource(ships).Namespace("default")
	w, err := of.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	ship := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "knarr.dev/v1", "kind": "Ship",
		"metadata": map[string]any{"name": "ottar"}, "spec": map[string]any{"oars": int64(8)},
	}}
	if _, err := of.Create(t.Context(), ship, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-w.ResultChan():
		u, ok := e.Object.(*unstructured.Unstructured)
		if oars, _, _ := unstructured.NestedInt64(u.Object, "spec", "oars"); !ok || u.GetName() != "ottar" || oars != 8 {
			t.Errorf("watched %+v", e)
		}
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
	version, err := discovery.NewDiscoveryClientForConfigOrDie(access).ServerVersion()
	if err != nil || !strings.HasPrefix(version.GitVersion, "v1.36.4") {
		t.Errorf("version %v, %v", version, err)
	}
}

// TestEnvtestRunsOnLinksToKnarr: unchanged envtest, with its own flags.
func TestEnvtestRunsOnLinksToKnarr(t *testing.T) {
	out, err := exec.Command(knarr, "assets", filepath.Join(t.TempDir(), "bin")).Output()
	if err != nil {
		t.Fatalf("%v; run make first", err)
	}
	dir := strings.TrimSpace(string(out))
	t.Setenv("KUBEBUILDER_ASSETS", dir)
	env := &envtest.Environment{CRDDirectoryPaths: []string{"testdata"}, ErrorIfCRDPathMissing: true}
	access, err := env.Start()
	if err != nil {
		t.Fatal(err)
	}
	use(t, access)

	// A user of envtest's, who may do nothing.
	user, err := env.AddUser(envtest.User{Name: "leif"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(user.Config())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a user reads Secrets: %v", err)
	}
	kubectl, err := user.Kubectl()
	if err != nil {
		t.Fatal(err)
	}
	stdout, _, err := kubectl.Run("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
	if err != nil {
		t.Fatal(err)
	}
	if name, err := io.ReadAll(stdout); err != nil || string(name) != "leif" {
		t.Errorf("kubectl is %q, %v", name, err)
	}
	began := time.Now()
	if err := env.Stop(); err != nil {
		t.Error(err)
	}
	t.Logf("stopped in %s", time.Since(began).Round(time.Millisecond))
}

// TestEnvtestUsesAControlPlaneOfKnarr: started by an ordinary user, with nothing of
// the machine's.
func TestEnvtestUsesAControlPlaneOfKnarr(t *testing.T) {
	dir, exe, attr := asAnyUser(t)
	cmd := exec.Command(exe, "server", "--control-plane-only")
	cmd.Env, cmd.Dir, cmd.SysProcAttr = []string{"TMPDIR=" + dir}, "/", attr
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }() // if it has not ended
	kubeconfig, log := "", ""
	lines := bufio.NewScanner(said)
	for kubeconfig == "" && lines.Scan() {
		log += lines.Text() + "\n"
		_, kubeconfig, _ = strings.Cut(lines.Text(), "kubeconfig=")
	}
	if kubeconfig == "" {
		t.Fatalf("%v\n%s", cmd.Wait(), log)
	}
	// The root that runs this test may read it; to others it is closed.
	if info, err := os.Stat(kubeconfig); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	access, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	existing := true
	env := &envtest.Environment{UseExistingCluster: &existing, Config: access, CRDDirectoryPaths: []string{"testdata"}}
	if _, err := env.Start(); err != nil {
		t.Fatal(err)
	}
	use(t, access)
	hasControllers(t, access)
	if err := env.Stop(); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(said)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		t.Errorf("stop: %v\n%s%s", err, log, rest)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// hasControllers shows what envtest's own control plane lacks: a new namespace gets
// its ServiceAccount, and a deleted one goes.
func hasControllers(t *testing.T, access *rest.Config) {
	t.Helper()
	client, err := kubernetes.NewForConfig(access)
	if err != nil {
		t.Fatal(err)
	}
	ctx, namespaces := t.Context(), client.CoreV1().Namespaces()
	accounts, err := client.CoreV1().ServiceAccounts("crew").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer accounts.Stop()
	if _, err := namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "crew"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	<-accounts.ResultChan()
	gone, err := namespaces.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=crew"})
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Stop()
	if err := namespaces.Delete(ctx, "crew", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for e := range gone.ResultChan() {
		if e.Type == "DELETED" {
			return
		}
	}
	t.Error("a deleted namespace stays")
}

// asAnyUser gives a folder, the executable and how to start it as the one who owns the
// folder: nobody, if this is root.
func asAnyUser(t *testing.T) (dir, exe string, attr *syscall.SysProcAttr) {
	t.Helper()
	exe, err := filepath.Abs(knarr)
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		return t.TempDir(), exe, nil
	}
	// Folders of tests and of the repository may be closed to others.
	open, err := os.MkdirTemp("", "knarr-any-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(open) })
	const nobody = 65534
	dir = filepath.Join(open, "tmp")
	err = errors.Join(os.Chmod(open, 0o755), os.Mkdir(dir, 0o700), os.Chown(dir, nobody, nobody), copyTo(filepath.Join(open, "knarr"), exe))
	if err != nil {
		t.Fatalf("%v; run make first", err)
	}
	return dir, filepath.Join(open, "knarr"), &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

func copyTo(path, exe string) error {
	from, err := os.Open(exe)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}
