package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// anyClass leaves the choice of a class to the cluster.
func anyClass(c *corev1.PersistentVolumeClaimSpec) { c.StorageClassName = nil }

// class makes a StorageClass of ours that goes with the test, named after it.
func (s *space) class(edit func(*storagev1.StorageClass)) string {
	s.t.Helper()
	c := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: s.ns}, Provisioner: "knarr.dev/local-path",
		VolumeBindingMode: new(storagev1.VolumeBindingWaitForFirstConsumer),
	}
	edit(c)
	s.create(c)
	s.t.Cleanup(func() {
		_ = s.Client.StorageV1().StorageClasses().Delete(context.Background(), c.Name, metav1.DeleteOptions{}) // the cluster goes too
	})
	return c.Name
}

// stored is where a bound claim's folder is on the node.
func (s *space) stored(claim string) string {
	s.t.Helper()
	return s.get("pv/"+s.bound(claim), ".spec.local.path")
}

// gone waits until there is no such path on the node.
func (s *space) gone(path string) {
	s.t.Helper()
	s.WaitFor(s.t, path+" to be gone", func(context.Context) (bool, error) {
		_, err := os.Lstat(s.Host.Path(path))
		if err == nil {
			err = fmt.Errorf("%s is there", path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		return false, err
	})
}

func TestClaimGetsAFolderThatLastsUntilItIsDeleted(t *testing.T) {
	s := newSpace(t)
	precious := s.folder() + "/precious"
	s.Exec(t, "sh", "-c", "mkdir "+precious+" && echo kept > "+precious+"/note")
	data := kube.Mount("data", "/data", kube.Claim("data"))
	user := kube.Spec(func(p *corev1.PodSpec) {
		p.SecurityContext = &corev1.PodSecurityContext{RunAsUser: new(int64(1000)), RunAsNonRoot: new(true)}
	})
	s.create(kube.PersistentVolumeClaim("data", "", "64Mi", anyClass), kube.Pod("first", kube.Grace(0), user, data,
		kube.Shell("echo mine > /data/note; ln -s / /data/root; ln -s "+precious+" /data/link; ln -s ../../.. /data/up; testbox sleep")))
	s.running("first")
	path, volume := s.stored("data"), s.bound("data")
	want(t, "the class", s.get("pvc/data", ".spec.storageClassName"), "local-path")
	want(t, "the volume's size", s.get("pvc/data", ".status.capacity.storage"), "64Mi")
	want(t, "the volume's node", s.get("pv/"+volume, ".spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].values[0]"), "node")
	want(t, "the folder", path, "/var/lib/knarr/storage/"+volume+"_"+s.ns+"_data")
	wantPart(t, "the warning", s.event("data", "SizeNotEnforced", "nothing holds the volume to its 64 MiB"), " free of ")
	want(t, "what the node has", s.Exec(t, "cat", path+"/note"), "mine\n")

	s.kubectl("delete", "pod", "first")
	s.create(kube.Pod("second", kube.Grace(0), user, data))
	s.running("second")
	want(t, "what the next pod finds", s.in("second", "cat", "/data/note"), "mine")
	s.kubectl("delete", "pod/second", "pvc/data")
	s.kubectl("wait", "pv/"+volume, "--for=delete", "--timeout=60s")
	s.gone(path)
	want(t, "what links led to", s.Exec(t, "cat", precious+"/note"), "kept\n")
}

func TestClaimsThatCannotBeFoldersAreRefused(t *testing.T) {
	s := newSpace(t)
	outside := s.class(func(c *storagev1.StorageClass) {
		c.Parameters = map[string]string{"pathPattern": "../{{ .PVC.Namespace }}/{{ .PVC.Name }}"}
	})
	s.create(kube.PersistentVolumeClaim("outside", outside, "1Mi"), kube.Pod("outside", kube.Mount("data", "/data", kube.Claim("outside"))),
		kube.PersistentVolumeClaim("many", "local-path", "1Mi", kube.Access(corev1.ReadWriteMany)), kube.Pod("many", kube.Mount("data", "/data", kube.Claim("many"))))
	s.event("outside", "ProvisioningFailed", `"../`+s.ns+`/outside" is not a folder below the node's path`)
	s.event("many", "ProvisioningFailed", "a folder of one node can't be ReadWriteMany")
	s.gone("/var/lib/knarr/" + s.ns)
}

func TestStoredFolderIsKeptOrDeletedAsItsPolicySays(t *testing.T) {
	s := newSpace(t)
	class := s.class(func(c *storagev1.StorageClass) {
		c.ReclaimPolicy = new(corev1.PersistentVolumeReclaimRetain)
		c.Parameters = map[string]string{"pathPattern": "{{ .PVC.Namespace }}/{{ .PVC.Name }}"}
	})
	pod := func(name string) *corev1.Pod {
		return kube.Pod(name, kube.Once, kube.Mount("data", "/data", kube.Claim(name)), kube.Shell("echo seen > /data/note"))
	}
	s.create(kube.PersistentVolumeClaim("kept", class, "1Mi"), pod("kept"), kube.PersistentVolumeClaim("moved", "local-path", "1Mi"), pod("moved"))
	s.ended("kept", corev1.PodSucceeded)
	s.ended("moved", corev1.PodSucceeded)
	kept, moved := s.bound("kept"), s.stored("moved")
	path := "/var/lib/knarr/storage/" + s.ns + "/kept"
	want(t, "the folder of the class's pattern", s.stored("kept"), path)
	s.kubectl("delete", "pod/kept", "pvc/kept")
	s.waitUntil("pv/"+kept, "jsonpath={.status.phase}=Released")
	s.kubectl("delete", "pv", kept)
	want(t, "what is kept", s.Exec(t, "cat", path+"/note"), "seen\n")

	// Somebody puts a link in the folder's place: what it leads to is not ours.
	target := s.folder()
	s.Exec(t, "sh", "-c", "mv "+moved+"/note "+target+" && rmdir "+moved+" && ln -s "+target+" "+moved)
	volume := s.bound("moved")
	s.kubectl("delete", "pod/moved", "pvc/moved")
	s.WaitFor(t, "an event about the link", func(context.Context) (bool, error) {
		// Those of what has no namespace are in this one.
		out, err := s.KubectlErr("get", "events", "-n", "default", "--field-selector", "involvedObject.name="+volume+",reason=VolumeFailedDelete", "-o", "jsonpath={.items[*].message}")
		return strings.Contains(out, "is a symbolic link, which is not followed"), err
	})
	want(t, "what the link leads to", s.Exec(t, "cat", target+"/note"), "seen\n")
	s.Exec(t, "rm", moved)
	s.kubectl("wait", "pv/"+volume, "--for=delete", "--timeout=60s")
}

func TestStorageGoesWhereItsConfigMapSays(t *testing.T) {
	s := newSpaceAlone(t)
	before := s.Kubectl(t, "get", "configmap", "-n", "kube-system", "local-path-config", "-o", `jsonpath={.data.config\.json}`)
	wantPart(t, "where volumes are by default", before, "/var/lib/knarr/storage")
	say := func(config string) {
		s.Create(t, "kube-system", kube.ConfigMap("local-path-config", "config.json", config))
	}
	defer say(before)
	say(`{"nodePathMap":[{"node":"DEFAULT_PATH_FOR_NON_LISTED_NODES","paths":["/nowhere"]},{"node":"node","paths":["/root/disk"]}]}`)
	s.create(kube.PersistentVolumeClaim("data", "local-path", "1Mi"), kube.Pod("user", kube.Grace(0), kube.Mount("data", "/data", kube.Claim("data"))))
	s.running("user")
	path, volume := s.stored("data"), s.bound("data")
	if !strings.HasPrefix(path, "/root/disk/pvc-") {
		t.Errorf("the folder is %s", path)
	}
	s.kubectl("delete", "pod/user", "pvc/data")
	s.kubectl("wait", "pv/"+volume, "--for=delete", "--timeout=60s")
	s.gone(path)

	// Another class that becomes the default one takes it from ours, while it is.
	is := func(value string) {
		t.Helper()
		s.Kubectl(t, "wait", "storageclass/local-path", `--for=jsonpath={.metadata.annotations.storageclass\.kubernetes\.io/is-default-class}=`+value, "--timeout=60s")
	}
	is("true")
	other := s.class(func(c *storagev1.StorageClass) {
		c.Provisioner, c.Annotations = "example.org/disk", map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}
	})
	is("false")
	s.Kubectl(t, "delete", "storageclass", other)
	is("true")
}
