package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestEmptyDirsTakeFilesOfEveryUserAndMode(t *testing.T) {
	s := newSpace(t)
	disk := kube.Mount("disk", "/disk", kube.Scratch())
	memory := kube.Mount("memory", "/memory", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}})
	s.create(kube.Pod("root", disk, memory, kube.Container("user", disk, memory, secureBox(corev1.SecurityContext{RunAsUser: new(int64(1000))}))))
	s.running("root")
	for box, user := range map[string]string{"root": "0", "user": "1000"} {
		out := s.kubectl("exec", "root", "-c", box, "--", "sh", "-ec", `
for v in /disk /memory; do
	stat -c %a $v
	for m in 644 666 777; do f=$v/`+box+`-$m; echo text > $f; chmod $m $f; stat -c '%u %a' $f; cat $f; done
done
stat -f -c %T /memory`)
		var each strings.Builder
		for _, folder := range []string{"777", "1777"} { // memory's have the sticky bit
			each.WriteString(folder + "\n")
			for _, mode := range []string{"644", "666", "777"} {
				fmt.Fprintf(&each, "%s %s\ntext\n", user, mode)
			}
		}
		want(t, "what "+box+" made", out, each.String()+"tmpfs\n")
	}
}

func TestFilesOfTheDownwardAPIHaveModesAndTheNodesRoom(t *testing.T) {
	s := newSpace(t)
	of := func(resource string) *corev1.ResourceFieldSelector {
		return &corev1.ResourceFieldSelector{ContainerName: "self", Resource: resource}
	}
	name := &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}
	items := []corev1.DownwardAPIVolumeFile{
		{Path: "name", FieldRef: name}, {Path: "secret", FieldRef: name, Mode: new(int32(0o400))},
		{Path: "cpu", ResourceFieldRef: of("limits.cpu")}, {Path: "memory", ResourceFieldRef: of("limits.memory")},
	}
	s.create(kube.Pod("self",
		kube.Mount("plain", "/plain", corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: items, DefaultMode: new(int32(0o440))}}),
		kube.Mount("projected", "/projected", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			DefaultMode: new(int32(0o440)), Sources: []corev1.VolumeProjection{{DownwardAPI: &corev1.DownwardAPIProjection{Items: items}}},
		}}),
		kube.Mount("plain", "/one", corev1.VolumeSource{}), mounting(func(m *corev1.VolumeMount) { m.SubPath = "name" }),
		kube.Mount("projected", "/another", corev1.VolumeSource{}), mounting(func(m *corev1.VolumeMount) { m.SubPath = "name" })))
	s.running("self")
	node, err := s.Client.CoreV1().Nodes().Get(t.Context(), s.node(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	room := fmt.Sprintf("%d %d", node.Status.Allocatable.Cpu().Value(), node.Status.Allocatable.Memory().Value())
	for _, dir := range []string{"/plain", "/projected"} {
		want(t, "the files of "+dir, s.in("self", "sh", "-c", "cd "+dir+"; stat -L -c %a name secret | xargs; cat name; echo; echo $(cat cpu) $(cat memory)"), "440 400\nself\n"+room)
	}
	want(t, "single files of them", s.in("self", "sh", "-c", "cat /one /another"), "selfself")
}

func TestOptionalValuesComeAndGoUnderARunningPod(t *testing.T) {
	s := newSpace(t)
	const looks = "for i in settings key both; do echo $i $(ls /$i) $(cat /$i/* 2>/dev/null); done"
	settings, key := kube.Settings("settings"), kube.Secrets("key")
	settings.ConfigMap.Optional, key.Secret.Optional = new(true), new(true)
	projected := func(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }
	s.create(kube.ConfigMap("settings", "colour", "green"),
		kube.Pod("reader", kube.Mount("settings", "/settings", settings), kube.Mount("key", "/key", key),
			kube.Mount("both", "/both", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: projected("settings"), Optional: new(true)}},
				{Secret: &corev1.SecretProjection{LocalObjectReference: projected("key"), Optional: new(true)}},
			}}})))
	s.running("reader")
	want(t, "what is there", s.in("reader", "sh", "-c", looks), "settings colour green\nkey\nboth colour green")
	s.kubectl("delete", "configmap", "settings")
	s.create(kube.Secret("key", "key", "iron"))
	s.kubectl("annotate", "pod", "reader", "look=now") // the kubelet would look within a minute
	s.WaitFor(t, "the files to follow", func(context.Context) (bool, error) {
		out, err := s.inErr("reader", "sh", "-c", looks)
		return out == "settings\nkey key iron\nboth key iron", err
	})
}

func TestSubPathsOfVariablesStayWithinTheirVolume(t *testing.T) {
	s := newSpace(t)
	part := func(value string) []kube.Option {
		return []kube.Option{kube.Env("PART", value), kube.Mount("work", "/work", kube.Scratch()), mounting(func(m *corev1.VolumeMount) { m.SubPathExpr = "$(PART)" })}
	}
	s.create(kube.Pod("absolute", part("/etc")...), kube.Pod("upward", part("../other")...), kube.Pod("ticks", part("`id`")...),
		kube.Pod("told", kube.Mount("work", "/work", kube.Scratch()), mounting(func(m *corev1.VolumeMount) { m.SubPathExpr = "$(PART)" }),
			kube.Box(func(c *corev1.Container) {
				c.Env = []corev1.EnvVar{{Name: "PART", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations['part']"}}}}
			}), kube.Annotation("part", "/etc")))
	s.event("absolute", "Failed", "must not be an absolute path")
	s.event("upward", "Failed", "must not contain '..'")
	s.event("told", "Failed", "must not be an absolute path")
	s.running("ticks") // no shell reads them
	s.kubectl("annotate", "pod", "told", "part=mine", "--overwrite")
	s.running("told")
	s.in("told", "touch", "/work/file")
}

func TestManyVolumesOfAPodDoNotHinderEachOther(t *testing.T) {
	s := newSpace(t)
	var all []kube.Option
	for i := range 40 {
		name := fmt.Sprintf("note-%02d", i)
		s.note(name, name)
		all = append(all, kube.Mount(name, "/notes/"+name, kube.Settings(name)))
	}
	s.create(kube.Pod("reader", append(all, kube.Once, kube.Shell("cat /notes/*/text | grep -o note- | wc -l"))...))
	want(t, "the notes", s.ended("reader", corev1.PodSucceeded), "40\n")
}

func TestValuesBelongToTheirNamespaceAndHaveNames(t *testing.T) {
	s := newSpace(t)
	other := s.Namespace(t)
	s.create(kube.Secret("key", "key", "mine"), kube.Pod("reader", kube.Once, kube.Run("cat", "/key/key"), kube.Mount("key", "/key", kube.Secrets("key"))))
	s.Create(t, other, kube.Secret("key", "key", "other"), kube.Pod("reader", kube.Once, kube.Run("cat", "/key/key"), kube.Mount("key", "/key", kube.Secrets("key"))))
	want(t, "the Secret of the pod's namespace", s.ended("reader", corev1.PodSucceeded), "mine")
	s.WaitPod(t, other, "reader", "done", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	want(t, "the Secret of the other namespace", s.Kubectl(t, "logs", "-n", other, "reader"), "other")

	for _, empty := range []string{"configmap", "secret"} {
		data := map[string]string{"configmap": `"data": {"": "x"}`, "secret": `"stringData": {"": "x"}`}[empty]
		kind := map[string]string{"configmap": "ConfigMap", "secret": "Secret"}[empty]
		_, err := s.call("POST", "/api/v1/namespaces/"+s.ns+"/"+empty+"s", `{"apiVersion": "v1", "kind": "`+kind+`", "metadata": {"name": "empty"}, `+data+`}`)
		if err == nil || !strings.Contains(err.Error(), "a valid config key must consist of") {
			t.Errorf("a %s with an empty key: %v", empty, err)
		}
	}

	// The authority of the cluster is in each namespace, and comes back.
	authority := s.get("configmap/kube-root-ca.crt", `.data.ca\.crt`)
	wantPart(t, "the authority", authority, "BEGIN CERTIFICATE")
	s.kubectl("patch", "configmap", "kube-root-ca.crt", "--patch", `{"data": {"ca.crt": "forged"}}`)
	s.WaitFor(t, "the authority to be what it was", func(context.Context) (bool, error) {
		return s.get("configmap/kube-root-ca.crt", `.data.ca\.crt`) == authority, nil
	})
	s.kubectl("delete", "configmap", "kube-root-ca.crt")
	s.kubectl("wait", "configmap/kube-root-ca.crt", "--for=create", "--timeout=60s")
}
