package throwaway

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// prepared is what a cluster has in it when it is saved: a Deployment, a pod on the
// agent, a token, a claim with its volume, a label of a node.
const prepared = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: web, image: "knarr.dev/test:1", imagePullPolicy: Never, command: [testbox, serve, --port, "8080", --hostname]}
---
apiVersion: v1
kind: Pod
metadata: {name: far}
spec:
  nodeSelector: {kubernetes.io/hostname: agent-1}
  terminationGracePeriodSeconds: 0
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
  containers:
  - name: far
    image: "knarr.dev/test:1"
    imagePullPolicy: Never
    command: [testbox, serve, --port, "8080"]
    volumeMounts: [{name: data, mountPath: /data}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Mi}}
---
apiVersion: v1
kind: Secret
metadata: {name: token, annotations: {kubernetes.io/service-account.name: default}}
type: kubernetes.io/service-account-token
`

func TestSavedClustersBeginWhereTheyWere(t *testing.T) {
	u := newUser(t)
	kubeconfig := filepath.Join(u.home, "config")
	defer os.Remove(kubeconfig)
	dir := t.TempDir()
	manifests, saved := filepath.Join(dir, "prepared.yaml"), filepath.Join(dir, "seed.knarr")
	if err := os.WriteFile(manifests, []byte(prepared), 0o600); err != nil {
		t.Fatal(err)
	}
	settings := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(settings, []byte("disable: [metrics-server]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	u.knarr(t, "up", "--nodes", "2", "--kubeconfig", kubeconfig, "--image-archive", testImages, "--config", settings)
	kubectl := func(args ...string) string {
		t.Helper()
		return u.knarr(t, append([]string{"kubectl", "--kubeconfig", kubeconfig}, args...)...)
	}
	kubectl("apply", "-f", manifests)
	kubectl("label", "node", "agent-1", "kept=yes")
	kubectl("wait", "deployment/web", "--for=condition=Available", "--timeout=2m")
	kubectl("wait", "pod/far", "--for=condition=Ready", "--timeout=2m")
	kubectl("wait", "secret/token", "--for=jsonpath={.data.token}", "--timeout=1m")
	// What a copy of the cluster has in common with it, and what not.
	const same = `kubectl get namespace kube-system -o jsonpath='{.metadata.uid}{"\n"}'
		kubectl get node agent-1 -o jsonpath='{.metadata.uid} {.metadata.labels.kept}{"\n"}'
		kubectl get pods -o jsonpath='{range .items[*]}{.metadata.name} {.metadata.uid} {.spec.nodeName}{"\n"}{end}'`
	const other = `kubectl get secret token -o jsonpath='{.data.token}{"\n"}'
		kubectl get configmap kube-root-ca.crt -o jsonpath='{.data.ca\.crt}' | sha256sum
		kubectl get node server -o jsonpath='{.status.addresses[0].address}{"\n"}'`
	ask := func(script string) string {
		t.Helper()
		bash := u.command()
		bash.Path, bash.Args = "/bin/bash", []string{"bash", "-ec", strings.ReplaceAll(script, "kubectl ", u.exe+" kubectl --kubeconfig "+kubeconfig+" ")}
		out, err := bash.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	was, theirs := ask(same), ask(other)
	u.knarr(t, "save", "dev", saved)
	if info, err := os.Stat(saved); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info, err)
	}

	t.Run("with their objects, images and identity, and keys and addresses of their own, beside the first", func(t *testing.T) {
		out := u.knarr(t, "run", "--from", saved, "--wait", "all", "--", "bash", "-ec", same+"\necho ---\n"+
			"kubectl wait secret/token --for=jsonpath={.data.token} --timeout=1m >/dev/null\n"+other+"\necho ---\n"+`
			test "$(kubectl get pods -o name | wc -l)" = 3
			kubectl wait pods --all --for=condition=Ready --timeout=1m >/dev/null
			kubectl get --raw "/api/v1/nodes/agent-1/proxy/healthz"
			kubectl --kubeconfig=/dev/null --server="$(kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}')" --insecure-skip-tls-verify \
				--token="$(kubectl get secret token -o jsonpath='{.data.token}' | base64 -d)" auth whoami -o jsonpath='{.status.userInfo.username}'`)
		parts := strings.Split(out, "---\n")
		if len(parts) != 3 {
			t.Fatalf("it wrote %q", out)
		}
		if parts[0] != was {
			t.Errorf("it has\n%s\nand was\n%s", parts[0], was)
		}
		for i, line := range strings.Split(strings.TrimSpace(theirs), "\n") {
			if now := strings.Split(parts[1], "\n")[i]; now == line || now == "" {
				t.Errorf("it has the saved cluster's %q", line)
			}
		}
		if parts[2] != "oksystem:serviceaccount:default:default" {
			t.Errorf("its agent and its token answer %q", parts[2])
		}
	})
	u.knarr(t, "down")

	t.Run("unless the file is damaged, foreign, or of a newer version", func(t *testing.T) {
		text, err := os.ReadFile(saved)
		if err != nil {
			t.Fatal(err)
		}
		damaged := bytes.Clone(text)
		damaged[len(damaged)*2/3] ^= 1
		for what, c := range map[string]struct {
			text []byte
			args []string
			says string
		}{
			"damaged":       {text: damaged, says: "it is damaged"},
			"cut":           {text: text[:len(text)/2], says: "it is damaged"},
			"foreign":       {text: []byte("something else\n"), says: "it is not a cluster that"},
			"newer":         {text: repacked(t, text, `"kubernetes": "v1.`, `"kubernetes": "v1.9`), says: "it is of Kubernetes v1.9"},
			"newer form":    {text: repacked(t, text, `"knarr-cluster/1"`, `"knarr-cluster/2"`), says: "it is of the form knarr-cluster/2"},
			"too few nodes": {text: text, args: []string{"--nodes", "1"}, says: "it has 2 nodes, and 1 are too few"},
		} {
			path := filepath.Join(dir, "bad.knarr")
			if err := os.WriteFile(path, c.text, 0o600); err != nil {
				t.Fatal(err)
			}
			_, errs, code := u.try(append(append([]string{"run", "--from", path}, c.args...), "--", "true")...)
			if code != 1 {
				t.Errorf("%s: exit code %d", what, code)
			}
			one(t, errs, c.says)
			if left, _ := os.ReadDir(u.dir); len(left) > 0 {
				t.Errorf("%s: left is %v", what, left)
			}
		}
	})
}

// repacked changes the text of a saved cluster's manifest. What is longer by it is
// made up for in the spaces of the JSON.
func repacked(t *testing.T, text []byte, from, to string) []byte {
	t.Helper()
	r, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	plain, err := r.DecodeAll(text, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(plain, []byte(from)) {
		t.Fatalf("no %s in the manifest", from)
	}
	plain = bytes.Replace(plain, []byte(from), []byte(to), 1)
	for range len(to) - len(from) {
		plain = bytes.Replace(plain, []byte(`  "cluster"`), []byte(` "cluster"`), 1)
	}
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(plain, nil)
}
