package e2e

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// mounting edits the container's last mount.
func mounting(edit func(*corev1.VolumeMount)) kube.Option {
	return kube.Box(func(c *corev1.Container) { edit(&c.VolumeMounts[len(c.VolumeMounts)-1]) })
}

// folder makes a folder of the test's own on the node.
func (s *space) folder() string {
	s.t.Helper()
	path := "/root/" + s.ns
	s.Exec(s.t, "mkdir", "-p", path)
	return path
}

func privileged(_ *corev1.PodTemplateSpec, c *corev1.Container) {
	c.SecurityContext = &corev1.SecurityContext{Privileged: new(true)}
}

func TestEmptyDirsLiveAsLongAsTheirPod(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("lasting", kube.Mount("disk", "/disk", kube.Scratch()),
		kube.Mount("memory", "/memory", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{
			Medium: corev1.StorageMediumMemory, SizeLimit: new(resource.MustParse("4Mi")),
		}}),
		kube.Shell("if [ -e /disk/seen ]; then testbox sleep; fi; touch /disk/seen /memory/seen; exit 1")))
	pod := s.pod("lasting", "restarted", func(p *corev1.Pod) bool {
		c := p.Status.ContainerStatuses
		return len(c) == 1 && c[0].RestartCount == 1 && c[0].State.Running != nil
	})
	want(t, "what is left from before", s.in("lasting", "sh", "-c", "ls /disk /memory | grep -c seen"), "2")
	out, err := s.inErr("lasting", "dd", "if=/dev/zero", "of=/memory/much", "bs=1M", "count=5")
	if err == nil || !strings.Contains(err.Error(), "No space left on device") {
		t.Errorf("5 MiB written to a volume of 4 in memory: %v\n%s", err, out)
	}
	s.kubectl("delete", "pod", "lasting")
	s.WaitFor(t, "the pod's folder to be gone", func(context.Context) (bool, error) {
		_, err := os.Stat(s.Host.Path("/var/lib/kubelet/pods/" + string(pod.UID)))
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		return false, err
	})
}

func TestHostPathIsOfTheTypeItSays(t *testing.T) {
	s := newSpace(t)
	dir := s.folder()
	s.Exec(t, "sh", "-ec", "cd "+dir+`
mkdir folder; touch file
mknod chars c 1 3; mknod blocks b 7 250`)
	socket, err := net.Listen("unix", s.Host.Path(dir+"/socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	hostPath := func(name string, kind corev1.HostPathType) kube.Option {
		return kube.Mount(name, "/v/"+name, corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir + "/" + name, Type: &kind}})
	}
	s.create(
		kube.Pod("right",
			hostPath("folder", corev1.HostPathDirectory), hostPath("file", corev1.HostPathFile),
			hostPath("new-folder", corev1.HostPathDirectoryOrCreate), hostPath("new-file", corev1.HostPathFileOrCreate),
			hostPath("socket", corev1.HostPathSocket), hostPath("chars", corev1.HostPathCharDev), hostPath("blocks", corev1.HostPathBlockDev)),
		kube.Pod("missing", hostPath("nothing", corev1.HostPathDirectory)),
		kube.Pod("wrong-file", hostPath("folder", corev1.HostPathFile)),
		kube.Pod("wrong-socket", hostPath("file", corev1.HostPathSocket)),
		kube.Pod("wrong-device", hostPath("file", corev1.HostPathBlockDev)))
	s.running("right")
	want(t, "what the pod sees", strings.ReplaceAll(s.in("right", "sh", "-c", `cd /v; stat -c "%n %F" *`), "\n", ", "), strings.Join([]string{
		"blocks block special file", "chars character special file", "file regular empty file", "folder directory",
		"new-file regular empty file", "new-folder directory", "socket socket",
	}, ", "))
	want(t, "the mode of a folder that was made", strings.TrimSpace(s.Exec(t, "stat", "-c", "%a", dir+"/new-folder")), "755")
	for pod, words := range map[string]string{
		"missing": "nothing is not a directory", "wrong-file": "folder is not a file",
		"wrong-socket": "file is not a socket file", "wrong-device": "file is not a block device",
	} {
		s.event(pod, "FailedMount", "hostPath type check failed: "+dir+"/"+words)
	}
}

func TestContainersMountPartsOfAVolume(t *testing.T) {
	s := newSpace(t)
	work := kube.Mount("work", "/work", kube.Scratch())
	part := func(path, sub, expr string) kube.Option {
		return func(t *corev1.PodTemplateSpec, c *corev1.Container) {
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "work", MountPath: path, SubPath: sub, SubPathExpr: expr})
		}
	}
	s.create(kube.ConfigMap("settings", "mode", "quick", "other", "unseen"))
	s.create(
		kube.Pod("parts",
			kube.Init("maker", work, kube.Shell("mkdir -p /work/a/b; echo deep > /work/a/b/file")),
			kube.Env("WHO", "parts"), part("/b", "a/b", ""), part("/mine", "", "logs/$(WHO)"), part("/one", "a/b/file", ""),
			kube.Mount("settings", "/etc/mode", kube.Settings("settings")), mounting(func(m *corev1.VolumeMount) { m.SubPath = "mode" }),
			kube.Container("whole", work)),
		kube.Pod("escaping", kube.Init("maker", work, kube.Run("ln", "-s", "/etc", "/work/link")), part("/link", "link", "")))
	s.running("parts")
	want(t, "a folder of it, a file of it, a file of a ConfigMap", s.in("parts", "sh", "-c", "cat /b/file /one /etc/mode; touch /mine/seen"), "deep\ndeep\nquick")
	want(t, "what the whole has", s.kubectl("exec", "parts", "-c", "whole", "--", "ls", "/work/logs/parts"), "seen\n")
	s.event("escaping", "Failed", `failed to prepare subPath for volumeMount "work"`)
	if out, err := s.kubectlErr("exec", "escaping", "--", "ls", "/link"); err == nil {
		t.Errorf("a link leads out of its volume: %s", out)
	}
}

func TestMountsSpreadAsTheirPropagationSays(t *testing.T) {
	s := newSpace(t)
	dir := s.folder()
	s.Exec(t, "mkdir", dir+"/given", dir+"/host")
	spreading := func(how corev1.MountPropagationMode) kube.Option {
		return func(t *corev1.PodTemplateSpec, c *corev1.Container) {
			kube.Mount("shared", "/shared", kube.HostFolder(dir))(t, c)
			mounting(func(m *corev1.VolumeMount) { m.MountPropagation = &how })(t, c)
		}
	}
	s.create(
		kube.Pod("giver", privileged, spreading(corev1.MountPropagationBidirectional)),
		kube.Pod("taker", spreading(corev1.MountPropagationHostToContainer)),
		kube.Pod("private", spreading(corev1.MountPropagationNone)))
	for _, pod := range []string{"giver", "taker", "private"} {
		s.running(pod)
	}
	mount := func(name, at string) string {
		return "mount -t tmpfs " + name + " " + at + "/" + name + "; echo " + name + " > " + at + "/" + name + "/file"
	}
	s.in("giver", "sh", "-ec", mount("given", "/shared"))
	s.Exec(t, "sh", "-ec", mount("host", dir))
	t.Cleanup(func() { _, _ = s.ExecErr(context.Background(), "umount", dir+"/host", dir+"/given") }) // the host takes the rest along
	for pod, sees := range map[string]string{"giver": "given host", "taker": "given host", "private": ""} {
		out := s.in(pod, "sh", "-c", "cat /shared/*/file 2>/dev/null || true")
		want(t, "what "+pod+" sees", strings.Join(strings.Fields(out), " "), sees)
	}
	want(t, "what the node sees", s.Exec(t, "cat", dir+"/given/file"), "given\n")
	s.in("giver", "umount", "/shared/given", "/shared/host")
	want(t, "what the node sees after all is unmounted", s.Exec(t, "ls", dir+"/given", dir+"/host"), dir+"/given:\n\n"+dir+"/host:\n")
}

func TestReadOnlyMountsAreSoToTheirDepthWhenAskedFor(t *testing.T) {
	s := newSpace(t)
	dir := s.folder()
	s.Exec(t, "sh", "-ec", "mkdir "+dir+"/inner; mount -t tmpfs inner "+dir+"/inner")
	t.Cleanup(func() { _, _ = s.ExecErr(context.Background(), "umount", dir+"/inner") }) // the host takes it along
	s.create(kube.Pod("reader",
		kube.Mount("folder", "/plain", kube.HostFolder(dir)), mounting(func(m *corev1.VolumeMount) { m.ReadOnly = true }),
		kube.Mount("folder", "/deep", kube.HostFolder(dir)), mounting(func(m *corev1.VolumeMount) {
			m.ReadOnly, m.RecursiveReadOnly = true, new(corev1.RecursiveReadOnlyEnabled)
		})))
	s.running("reader")
	want(t, "what can't be written to", s.in("reader", "sh", "-c", "for d in /plain /plain/inner /deep /deep/inner; do touch $d/file 2>/dev/null || echo $d; done"),
		"/plain\n/deep\n/deep/inner")
	want(t, "how the mount is in the status", s.get("pod/reader", ".status.containerStatuses[0].volumeMounts[?(@.mountPath=='/deep')].recursiveReadOnly"), "Enabled")
}

func TestProjectedVolumeGathersItsSources(t *testing.T) {
	s := newSpace(t)
	s.create(kube.ConfigMap("settings", "mode", "quick", "other", "unseen"), kube.Secret("keys", "pin", "1234"))
	sources := []corev1.VolumeProjection{
		{ConfigMap: &corev1.ConfigMapProjection{
			LocalObjectReference: corev1.LocalObjectReference{Name: "settings"},
			Items:                []corev1.KeyToPath{{Key: "mode", Path: "conf/mode"}},
		}},
		{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "absent"}, Optional: new(true)}},
		{Secret: &corev1.SecretProjection{
			LocalObjectReference: corev1.LocalObjectReference{Name: "keys"},
			Items:                []corev1.KeyToPath{{Key: "pin", Path: "secret/pin", Mode: new(int32(0o400))}},
		}},
		{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "about/name", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}},
		}}},
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "vault", ExpirationSeconds: new(int64(600)), Path: "token"}},
	}
	s.create(kube.Pod("gatherer", kube.Mount("all", "/all", corev1.VolumeSource{
		Projected: &corev1.ProjectedVolumeSource{Sources: sources, DefaultMode: new(int32(0o440))},
	})))
	s.running("gatherer")
	out := s.in("gatherer", "sh", "-c", `cd /all; cat conf/mode secret/pin about/name | tr -d '\n'; echo; ls conf
stat -Lc %a conf/mode secret/pin; touch conf/new 2>&1; cut -d. -f2 token | tr _- /+ | base64 -d 2>/dev/null | grep -o '"aud":\["vault"\]'`)
	want(t, "what the pod sees", out, strings.Join([]string{
		"quick1234gatherer", "mode", "440", "400", "touch: conf/new: Read-only file system", `"aud":["vault"]`,
	}, "\n"))
}
