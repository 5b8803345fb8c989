package seed

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/client/v3/kubernetes"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/knarr-dev/knarr/pkg/archive"
	"github.com/knarr-dev/knarr/pkg/datastore"
)

// object is one that a saved cluster has, and the API version that it is stored in.
type object struct {
	gv schema.GroupVersion
	o  runtime.Object
}

func core(o runtime.Object) object { return object{corev1.SchemeGroupVersion, o} }

func named(ns, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID("uid-of-" + name)}
}

func pod(name string, status corev1.PodStatus) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: named("default", name), Spec: corev1.PodSpec{NodeName: "agent-1"}, Status: status}
}

// objects are what the store of a cluster has that ran on other machines.
func objects() map[string]object {
	running := corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: "10.42.1.7", HostIP: "10.99.0.3", QOSClass: corev1.PodQOSBurstable,
		Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: corev1.PodScheduled, Status: corev1.ConditionTrue}},
		ContainerStatuses: []corev1.ContainerStatus{{Name: "web", RestartCount: 3, Ready: true}},
	}
	now := metav1.Now()
	mirror, deleted, leaving := pod("static-agent-1", running), pod("deleted", running), pod("leaving", running)
	mirror.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "hash"}
	deleted.DeletionTimestamp, leaving.DeletionTimestamp = &now, &now
	leaving.Finalizers = []string{"example.org/wait"}
	node := &corev1.Node{ObjectMeta: named("", "agent-1"), Status: corev1.NodeStatus{
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.99.0.3"}}, Images: []corev1.ContainerImage{{Names: []string{"a"}}},
	}}
	node.Labels = map[string]string{"kept": "yes"}
	node.Annotations = map[string]string{"flannel.alpha.coreos.com/public-ip": "10.99.0.3", "kept": "yes"}
	holder, api := "web-0", coordinationv1.Lease{ObjectMeta: named("kube-system", "apiserver-1")}
	api.Labels = map[string]string{"apiserver.kubernetes.io/identity": "kube-apiserver"}
	lease := schema.GroupVersion(coordinationv1.SchemeGroupVersion)
	volume := &corev1.PersistentVolume{ObjectMeta: named("", "data"), Spec: corev1.PersistentVolumeSpec{
		PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/var/lib/knarr/storage/data"}},
		NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"agent-1"}}},
		}}}},
	}}
	record := &corev1.ConfigMap{ObjectMeta: named("kube-system", "knarr-node.agent-1"), Data: map[string]string{
		"node.json": `{"node":"agent-1","uid":"uid-of-agent-1","since":"2026-01-01T00:00:00Z","credentials":[{"key":"` + strings.Repeat("ab", 32) + `"}]}`,
	}}
	return map[string]object{
		"pods/default/web":            core(pod("web", running)),
		"pods/default/done":           core(pod("done", corev1.PodStatus{Phase: corev1.PodSucceeded, PodIP: "10.42.1.8"})),
		"pods/default/static-agent-1": core(mirror),
		"pods/default/deleted":        core(deleted),
		"pods/default/leaving":        core(leaving),
		"minions/agent-1":             core(node),
		"namespaces/kube-system":      core(&corev1.Namespace{ObjectMeta: named("", "kube-system")}),
		"persistentvolumes/data":      core(volume),
		"secrets/default/plain":       core(&corev1.Secret{ObjectMeta: named("default", "plain"), Data: map[string][]byte{"a": []byte("b")}}),
		"secrets/default/token": core(&corev1.Secret{ObjectMeta: named("default", "token"), Type: corev1.SecretTypeServiceAccountToken,
			Data: map[string][]byte{"token": []byte("signed by the old key"), "ca.crt": []byte("old"), "namespace": []byte("default")}}),
		"secrets/kube-system/bootstrap-token-abcdef":                       core(&corev1.Secret{ObjectMeta: named("kube-system", "bootstrap-token-abcdef"), Type: corev1.SecretTypeBootstrapToken, Data: map[string][]byte{"token-secret": []byte("lets machines join")}}),
		"configmaps/default/kube-root-ca.crt":                              core(&corev1.ConfigMap{ObjectMeta: named("default", "kube-root-ca.crt"), Data: map[string]string{"ca.crt": "old"}}),
		"configmaps/default/mine":                                          core(&corev1.ConfigMap{ObjectMeta: named("default", "mine"), Data: map[string]string{"ca.crt": "mine"}}),
		"configmaps/kube-system/extension-apiserver-authentication":        core(&corev1.ConfigMap{ObjectMeta: named("kube-system", "extension-apiserver-authentication")}),
		"configmaps/kube-system/extension-apiserver-authentication-reader": core(&corev1.ConfigMap{ObjectMeta: named("kube-system", "extension-apiserver-authentication-reader")}),
		"configmaps/kube-system/knarr-cluster":                             core(&corev1.ConfigMap{ObjectMeta: named("kube-system", "knarr-cluster")}),
		"configmaps/kube-system/knarr-node.agent-1":                        core(record),
		"events/default/old":                                               {eventsv1.SchemeGroupVersion, &eventsv1.Event{ObjectMeta: named("default", "old")}},
		"leases/kube-node-lease/agent-1":                                   {lease, &coordinationv1.Lease{ObjectMeta: named("kube-node-lease", "agent-1")}},
		"leases/kube-system/apiserver-1":                                   {lease, &api},
		"leases/default/leader":                                            {lease, &coordinationv1.Lease{ObjectMeta: named("default", "leader"), Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder}}},
		"endpointslices/default/kubernetes":                                {discoveryv1.SchemeGroupVersion, &discoveryv1.EndpointSlice{ObjectMeta: named("default", "kubernetes")}},
		"endpointslices/default/kubernetes-dashboard-x":                    {discoveryv1.SchemeGroupVersion, &discoveryv1.EndpointSlice{ObjectMeta: named("default", "kubernetes-dashboard-x")}},
	}
}

// source makes the data dir of a server that has stopped.
func source(t *testing.T) Source {
	t.Helper()
	dir := t.TempDir()
	s, err := datastore.Open(t.Context(), datastore.Config{Path: filepath.Join(dir, "server", "db", "state.db"), Seed: func() ([]datastore.KeyValue, error) {
		var all []datastore.KeyValue
		for key, o := range objects() {
			value, err := encode(o.o, o.gv)
			if err != nil {
				return nil, err
			}
			all = append(all, datastore.KeyValue{Key: "/registry/" + key, Value: value})
		}
		return all, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	put(t, filepath.Join(dir, "server", "manifests", "mine.yaml"), "kind: List")
	put(t, filepath.Join(dir, "server", "tls", "server-ca.key"), "the saved cluster's secret")
	put(t, filepath.Join(dir, "agent-1", "agent", "network", "subnet"), "{}")
	put(t, filepath.Join(dir, "images.tar"), "images")
	return Source{
		Name: "dev", DataDir: dir, ServerConfig: []byte("disable: [dns]\n"),
		Nodes: []Node{{Name: "server", DataDir: dir}, {Name: "agent-1", DataDir: filepath.Join(dir, "agent-1"), Archive: filepath.Join(dir, "images.tar"), Images: []string{"app:1"}}},
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// saved is the file of source's cluster.
func saved(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dev.knarr")
	if err := Save(t.Context(), source(t), t.TempDir(), path); err != nil {
		t.Fatal(err)
	}
	return path
}

// contents are the objects of a store that was opened by nobody else.
func contents(t *testing.T, dataDir string) map[string]runtime.Object {
	t.Helper()
	all := map[string]runtime.Object{}
	err := edit(t.Context(), filepath.Join(dataDir, "server", "db", "state.db"), func(e *editor) error {
		list, err := e.kv.List(context.Background(), "/registry/", kubernetes.ListOptions{})
		if err != nil {
			return err
		}
		for _, kv := range list.Kvs {
			if string(kv.Key) == "/registry/health" {
				continue // the store's own
			}
			o, _, err := scheme.Codecs.UniversalDeserializer().Decode(kv.Value, nil, nil)
			if err != nil {
				return err
			}
			all[strings.TrimPrefix(string(kv.Key), "/registry/")] = o
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestANewClusterHasWhatHoldsForIt(t *testing.T) {
	file := saved(t)
	s, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "dev" || s.Cluster != "uid-of-kube-system" || string(s.ServerConfig) != "disable: [dns]\n" || len(s.Nodes) != 2 {
		t.Errorf("the manifest says %+v", s.Manifest)
	}
	disks := t.TempDir()
	disk := func(node string) string { return filepath.Join(disks, node) }
	if err := s.Plant(t.Context(), t.TempDir(), disk, "/var/lib/knarr"); err != nil {
		t.Fatal(err)
	}
	server, agent := filepath.Join(disk("server"), "var/lib/knarr"), filepath.Join(disk("agent-1"), "var/lib/knarr")
	for path, want := range map[string]string{
		filepath.Join(server, "server/manifests/mine.yaml"):     "kind: List",
		filepath.Join(server, "agent/images/saved-agent-1.tar"): "images",
		filepath.Join(agent, "agent/images/saved-agent-1.tar"):  "images",
		filepath.Join(agent, "agent/network/subnet"):            "{}",
	} {
		if text, err := os.ReadFile(path); err != nil || string(text) != want {
			t.Errorf("%s: %q, %v", path, text, err)
		}
	}
	if info, err := os.Stat(filepath.Join(agent, "storage/data")); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("the folder of a volume: %v, %v", info, err)
	}
	if key, err := os.ReadFile(filepath.Join(server, "server/tls/server-ca.key")); err != nil || strings.Contains(string(key), "saved cluster") {
		t.Errorf("the key of the authority: %v", err)
	}
	ca, err := os.ReadFile(filepath.Join(server, "server/tls/server-ca.crt"))
	if err != nil {
		t.Fatal(err)
	}

	all := contents(t, server)
	for _, key := range []string{
		"pods/default/static-agent-1", "pods/default/deleted", "secrets/kube-system/bootstrap-token-abcdef", "events/default/old",
		"configmaps/kube-system/extension-apiserver-authentication", "configmaps/kube-system/knarr-cluster",
		"leases/kube-node-lease/agent-1", "leases/kube-system/apiserver-1", "endpointslices/default/kubernetes",
	} {
		if all[key] != nil {
			t.Errorf("%s is still there", key)
		}
		delete(all, key)
	}
	if want := len(objects()) - 9; len(all) != want {
		t.Errorf("%d objects are there, want %d", len(all), want)
	}
	web, ok := all["pods/default/web"].(*corev1.Pod)
	if !ok || web.UID != "uid-of-web" || web.Spec.NodeName != "agent-1" || web.Status.Phase != corev1.PodPending || web.Status.PodIP != "" ||
		web.Status.ContainerStatuses != nil || len(web.Status.Conditions) != 1 || web.Status.QOSClass != corev1.PodQOSBurstable {
		t.Errorf("a pod that ran: %+v", web)
	}
	if done := all["pods/default/done"].(*corev1.Pod); done.Status.Phase != corev1.PodSucceeded || done.Status.PodIP == "" {
		t.Errorf("a pod that has ended: %+v", done.Status)
	}
	node := all["minions/agent-1"].(*corev1.Node)
	if node.UID != "uid-of-agent-1" || node.Labels["kept"] != "yes" || len(node.Annotations) != 1 || node.Status.Addresses != nil {
		t.Errorf("a node: %+v", node)
	}
	if token := all["secrets/default/token"].(*corev1.Secret); len(token.Data) != 1 {
		t.Errorf("a ServiceAccount's Secret: %q", token.Data)
	}
	if plain := all["secrets/default/plain"].(*corev1.Secret); string(plain.Data["a"]) != "b" {
		t.Errorf("another Secret: %q", plain.Data)
	}
	if leader := all["leases/default/leader"].(*coordinationv1.Lease); leader.Spec.HolderIdentity != nil {
		t.Errorf("the leader is %s", *leader.Spec.HolderIdentity)
	}
	for key, want := range map[string]string{"kube-root-ca.crt": string(ca), "mine": "mine"} {
		if cm := all["configmaps/default/"+key].(*corev1.ConfigMap); cm.Data["ca.crt"] != want {
			t.Errorf("ConfigMap %s: %q", key, cm.Data)
		}
	}
	if record := all["configmaps/kube-system/knarr-node.agent-1"].(*corev1.ConfigMap).Data["node.json"]; strings.Contains(record, "abab") || !strings.Contains(record, "uid-of-agent-1") {
		t.Errorf("the record of a node: %s", record)
	}
}

func TestAControlPlaneAloneLeavesNodesAndPodsOut(t *testing.T) {
	s, err := Open(saved(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := s.PlantControlPlane(t.Context(), t.TempDir(), dir); err != nil {
		t.Fatal(err)
	}
	for key := range contents(t, dir) {
		if strings.HasPrefix(key, "pods/") || strings.HasPrefix(key, "minions/") || strings.Contains(key, "knarr-node") {
			t.Errorf("%s is there", key)
		}
	}
}

func TestNothingSecretOfAnAuthorityIsSaved(t *testing.T) {
	s, err := Open(saved(t))
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	if err := s.unpack(t.Context(), work); err != nil {
		t.Fatal(err)
	}
	for _, f := range s.Files {
		text, err := os.ReadFile(filepath.Join(work, f.Path))
		if err != nil {
			t.Fatal(err)
		}
		// Also not in what the database has of the past.
		for _, secret := range []string{"signed by the old key", "the saved cluster's secret", "lets machines join"} {
			if strings.Contains(string(text), secret) {
				t.Errorf("%s has %q in it", f.Path, secret)
			}
		}
	}
}

func TestFilesThatCannotBeBegunWithAreTold(t *testing.T) {
	good := saved(t)
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(good)
	if err != nil {
		t.Fatal(err)
	}
	// packed is a file with another manifest and nothing else.
	packed := func(change func(m *Manifest)) string {
		var m Manifest
		raw, err := json.Marshal(s.Manifest)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		change(&m)
		var out strings.Builder
		if err := archive.Write(&out, m, m.Created, nil); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	for what, c := range map[string]struct{ text, says string }{
		"nothing":                    {"", "it is not a cluster that"},
		"another file":               {"something else\n", "it is not a cluster that"},
		"a backup":                   {packed(func(m *Manifest) { m.Format = "knarr-backup/1" }), "it is not a cluster that"},
		"a later form":               {packed(func(m *Manifest) { m.Format = family + "2" }), "or a newer one"},
		"a later Kubernetes":         {packed(func(m *Manifest) { m.Kubernetes = "v1.99.0" }), "v1.99.0"},
		"a node's wrong name":        {packed(func(m *Manifest) { m.Nodes = []string{"server", "../../etc"} }), "damaged"},
		"files that are not in it":   {packed(func(*Manifest) {}), "is missing"},
		"a path to elsewhere":        {packed(func(m *Manifest) { m.Files[0].Path = "../../etc/passwd" }), "damaged"},
		"half":                       {string(text[:len(text)/2]), "damaged"},
		"no end":                     {string(text[:len(text)-1]), "damaged"},
		"a changed byte":             {string(text[:len(text)/2]) + string(text[len(text)/2]^1) + string(text[len(text)/2+1:]), "damaged"},
		"images for another machine": {packed(func(m *Manifest) { m.Architecture = "s390x" }), "s390x"},
	} {
		path, disks, work := filepath.Join(t.TempDir(), "bad.knarr"), t.TempDir(), t.TempDir()
		put(t, path, c.text)
		s, err := Open(path)
		if err == nil {
			err = s.Plant(t.Context(), work, func(node string) string { return filepath.Join(disks, node) }, "/var/lib/knarr")
		}
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", what, err, c.says)
		}
		if made, _ := os.ReadDir(disks); len(made) > 0 {
			t.Errorf("%s: %v was made", what, made)
		}
	}
	if _, err := Open(good + ".missing"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("no file: %v", err)
	}
}
