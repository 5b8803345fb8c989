package storage

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// within bounds waits that end at once unless the test fails.
const within = 30 * time.Second

type runner interface {
	Run(ctx context.Context, ready chan<- struct{}) error
}

func begin(t *testing.T, c runner) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended, ready := make(chan error, 1), make(chan struct{})
	go func() { ended <- c.Run(ctx, ready) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case <-time.After(within):
		t.Fatal("not ready")
	}
}

// await waits until a look says so. The API server here is a map in this process.
func await(t *testing.T, what string, look func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !look(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func config(client kubernetes.Interface, node, path string) Config {
	return Config{Client: func() (kubernetes.Interface, error) { return client, nil }, Node: node, Path: path, Log: slog.New(slog.DiscardHandler)}
}

func onNodes(names ...string) *fake.Clientset {
	client := fake.NewClientset()
	for _, n := range names {
		_ = client.Tracker().Add(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n, Labels: map[string]string{corev1.LabelHostname: "host-" + n}}})
	}
	return client
}

// scheduled is a claim whose pod was placed.
func scheduled(name, node string) *corev1.PersistentVolumeClaim {
	c := claim(name)
	c.Annotations = map[string]string{"volume.kubernetes.io/storage-provisioner": Provisioner, "volume.kubernetes.io/selected-node": node}
	c.Spec.StorageClassName = new(ClassName)
	c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	c.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}
	return c
}

func TestControllerAndAgentMakeAndRemoveAVolume(t *testing.T) {
	for _, where := range []string{"server", "agent"} {
		t.Run("on the "+where, func(t *testing.T) {
			client, path := onNodes("server", "agent"), t.TempDir()
			begin(t, New(config(client, "server", path)))
			begin(t, NewAgent(AgentConfig{Client: func() (kubernetes.Interface, error) { return client, nil }, Node: "agent"}))
			ctx := t.Context()
			if _, err := client.CoreV1().PersistentVolumeClaims("ns").Create(ctx, scheduled("c", where), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			var v *corev1.PersistentVolume
			await(t, "the volume", func() (ok bool) {
				var err error
				v, err = client.CoreV1().PersistentVolumes().Get(ctx, "pvc-1", metav1.GetOptions{})
				return err == nil
			})
			folder := filepath.Join(path, "pvc-1_ns_c")
			isThere(t, folder, true)
			host := v.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0]
			if v.Spec.Local.Path != folder || host != "host-"+where || v.Spec.ClaimRef.Name != "c" || v.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
				t.Errorf("the volume is %+v", v.Spec)
			}
			v = v.DeepCopy()
			v.Status.Phase = corev1.VolumeReleased
			if _, err := client.CoreV1().PersistentVolumes().Update(ctx, v, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			await(t, "the volume's end", func() bool {
				_, err := client.CoreV1().PersistentVolumes().Get(ctx, "pvc-1", metav1.GetOptions{})
				return err != nil
			})
			isThere(t, folder, false)
			if m, err := client.CoreV1().ConfigMaps("kube-system").Get(ctx, jobsConfigMap, metav1.GetOptions{}); err == nil && len(m.Data) > 0 {
				t.Errorf("left of the jobs: %v", m.Data)
			}
			n, err := client.CoreV1().Nodes().Get(ctx, "agent", metav1.GetOptions{})
			if err != nil || len(n.Annotations) > 0 {
				t.Errorf("left of the answers: %v, %v", n.Annotations, err)
			}
		})
	}
}

func TestAgentDoesNothingOutsideOfItsPaths(t *testing.T) {
	client := onNodes("agent")
	_, path, precious := disk(t)
	text, err := defaultPaths(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = client.Tracker().Add(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: PathsConfigMap}, Data: map[string]string{pathsKey: text}})
	// The fake tracker applies patches that meet each other one over the other, so
	// that what the agent says is read on its way.
	said := make(chan string, 8)
	client.PrependReactor("patch", "nodes", func(action clienttesting.Action) (bool, runtime.Object, error) {
		said <- string(action.(clienttesting.PatchAction).GetPatch())
		return false, nil, nil
	})
	jobs := map[string]string{"junk": "{", "other": `{"id":"1","node":"another","op":"remove","volume":"other","path":"/x"}`}
	for name, j := range map[string]job{"a": {Op: opRemove, Path: precious}, "b": {Op: opMake, Path: precious + "/in"}} {
		j.ID, j.Node, j.Volume = "id-"+name, "agent", name
		data, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		jobs[name] = string(data)
	}
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: jobsConfigMap}, Data: jobs}
	if _, err := client.CoreV1().ConfigMaps("kube-system").Create(t.Context(), m, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// A fake's watch begins with what comes after it: the jobs are there before.
	begin(t, NewAgent(AgentConfig{Client: func() (kubernetes.Interface, error) { return client, nil }, Node: "agent"}))
	timeout := time.After(within)
	waiting := map[string]bool{"a": true, "b": true}
	for len(waiting) > 0 {
		select {
		case text := <-said:
			if !strings.Contains(text, "is in none of the node's paths") {
				t.Errorf("said: %s", text)
			}
			for name := range waiting {
				if strings.Contains(text, answerKey(name)) && strings.Contains(text, "id-"+name) {
					delete(waiting, name)
				}
			}
		case <-timeout:
			t.Fatalf("no answer for %v", waiting)
		}
	}
	isThere(t, precious, true)
	isThere(t, precious+"/in", false)
}

func TestOurClassIsTheDefaultOneUntilThereIsAnother(t *testing.T) {
	client := onNodes()
	another := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "mine", Annotations: map[string]string{isDefault: "true"}}, Provisioner: "example.org/disk"}
	begin(t, New(config(client, "", t.TempDir())))
	classes, ctx := client.StorageV1().StorageClasses(), t.Context()
	is := func(value string) {
		t.Helper()
		await(t, "is-default-class "+value, func() bool {
			c, err := classes.Get(ctx, ClassName, metav1.GetOptions{})
			return err == nil && c.Annotations[isDefault] == value
		})
	}
	is("true")
	if _, err := classes.Create(ctx, another, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	is("false")
	if err := classes.Delete(ctx, "mine", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	is("true")
	// What the user says stands.
	c, err := classes.Get(ctx, ClassName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.Annotations[isDefault] = "false"
	if _, err := classes.Update(ctx, c, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := classes.Create(ctx, another, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := classes.Delete(ctx, "mine", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	is("false")
}

func TestOurClassStepsAsideFromTheBeginning(t *testing.T) {
	client := onNodes()
	_ = client.Tracker().Add(&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "mine", Annotations: map[string]string{isDefault: "true"}}, Provisioner: "example.org/disk"})
	begin(t, New(config(client, "", t.TempDir())))
	c, err := client.StorageV1().StorageClasses().Get(t.Context(), ClassName, metav1.GetOptions{})
	if err != nil || c.Annotations[isDefault] != "false" {
		t.Errorf("%+v, %v", c, err)
	}
}
