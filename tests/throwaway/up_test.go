package throwaway

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/knarr-dev/knarr/tests/harness"
)

const others = `apiVersion: v1
kind: Config
current-context: mine
clusters: [{name: mine, cluster: {server: "https://192.0.2.1:6443"}}]
users: [{name: mine, user: {token: secret}}]
contexts: [{name: mine, context: {cluster: mine, user: mine}}]
`

const manifests = `apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: agent-1
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, image: "knarr.dev/test:1", imagePullPolicy: Never, command: [testbox, serve, --port, "8080", --hostname]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: v1
kind: Pod
metadata: {name: pulled}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: pulled, image: "%s", command: [testbox, serve, --port, "8081"]}
`

func TestClustersSideBySide(t *testing.T) {
	u := newUser(t)
	kubeconfig := filepath.Join(u.home, "config")
	if err := os.WriteFile(kubeconfig, []byte(others), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(kubeconfig)
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "note"), []byte("from outside\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := u.knarr(t, "up", "--nodes", "2", "--kubeconfig", kubeconfig, "--image-archive", testImages,
		"--port", "0:30080", "--volume", volume+":/volume:ro")
	published := regexp.MustCompile(`is at (127\.0\.0\.1:\d+)`).FindStringSubmatch(up)
	if published == nil {
		t.Fatalf("no published port is told: %s", up)
	}
	u.knarr(t, "up", "--name", "other", "--kubeconfig", kubeconfig)
	kubectl := func(t *testing.T, args ...string) string {
		t.Helper()
		return u.knarr(t, append([]string{"kubectl", "--kubeconfig", kubeconfig}, args...)...)
	}

	t.Run("have contexts beside the user's own", func(t *testing.T) {
		if now := kubectl(t, "config", "current-context"); now != "knarr-other\n" {
			t.Errorf("the current context is %q", now)
		}
		for context, want := range map[string]string{"knarr-dev": "agent-1 server", "knarr-other": "server"} {
			if nodes := kubectl(t, "--context", context, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"); nodes != want {
				t.Errorf("nodes of %s are %q", context, nodes)
			}
		}
		if _, err := clientcmd.Load([]byte(u.knarr(t, "kubeconfig", "other"))); err != nil {
			t.Error(err)
		}
	})
	t.Run("have addresses and states of their own", func(t *testing.T) {
		list := u.knarr(t, "list")
		for _, want := range []string{`dev +ready +2 +https://127\.0\.0\.1:\d+ +127\.0\.0\.1:\d+:30080`, `other +ready +1 `} {
			if !regexp.MustCompile(want).MatchString(list) {
				t.Errorf("no %q in:\n%s", want, list)
			}
		}
		a := kubectl(t, "--context", "knarr-dev", "get", "node", "server", "-o", "jsonpath={.status.addresses[0].address}")
		b := kubectl(t, "--context", "knarr-other", "get", "node", "server", "-o", "jsonpath={.status.addresses[0].address}")
		if a == b || !strings.HasPrefix(a, "10.99.") || !strings.HasPrefix(b, "10.99.") {
			t.Errorf("addresses of the servers are %s and %s", a, b)
		}
	})
	t.Run("keep their names", func(t *testing.T) {
		_, errs, code := u.try("up", "--name", "other", "--kubeconfig", kubeconfig)
		if code != 1 {
			t.Errorf("exit code %d", code)
		}
		one(t, errs, "there is a cluster other")
	})
	t.Run("have shells and logs of each node", func(t *testing.T) {
		if out := u.knarr(t, "shell", "agent-1", "--", "sh", "-c", "hostname; cat /volume/note; knarr status -o json | grep -c ready"); !strings.HasPrefix(out, "agent-1\nfrom outside\n") {
			t.Errorf("in agent-1: %q", out)
		}
		if _, _, code := u.try("shell", "--name", "other", "--", "sh", "-c", "exit 5"); code != 5 {
			t.Errorf("exit code of a shell is %d", code)
		}
		if log := u.knarr(t, "logs", "agent-1", "--name", "dev"); !strings.Contains(log, "node=agent-1") {
			t.Errorf("log of agent-1: %s", log)
		}
		_, errs, _ := u.try("logs", "nobody")
		one(t, errs, "it has server, agent-1")
	})
	hasImage := func(t *testing.T) {
		t.Helper()
		if images := u.knarr(t, "shell", "--name", "other", "--", "knarr", "ctr", "images", "list", "-q"); !strings.Contains(images, harness.TestImage) {
			t.Errorf("images are %s", images)
		}
	}
	t.Run("take images that another was given without reading them again", func(t *testing.T) {
		reads := watchReads(t, testImages)
		u.knarr(t, "load", testImages, "--name", "other")
		if reads() {
			t.Error("the archive was read")
		}
		hasImage(t)
		u.knarr(t, "shell", "--name", "other", "--", "knarr", "ctr", "images", "remove", "--sync", harness.TestImage)
		// A disk that rots: the archive is read, and no wrong image comes of it.
		blobs, _ := filepath.Glob(filepath.Join(u.shared, "images", "blobs", "sha256", "*"))
		for _, blob := range blobs {
			rot(t, blob)
		}
		u.knarr(t, "load", testImages, "--name", "other")
		if !reads() {
			t.Errorf("the archive was not read, though %d blobs were damaged", len(blobs))
		}
		hasImage(t)
		u.knarr(t, "shell", "--name", "other", "--", "knarr", "ctr", "images", "remove", "--sync", harness.TestImage)
	})
	t.Run("take images from an archive on stdin, and refuse damaged ones", func(t *testing.T) {
		archive, err := os.ReadFile(testImages)
		if err != nil {
			t.Fatal(err)
		}
		damaged := filepath.Join(t.TempDir(), "damaged.tar")
		if err := os.WriteFile(damaged, archive[:len(archive)/2], 0o600); err != nil {
			t.Fatal(err)
		}
		_, errs, code := u.try("load", damaged, "--name", "other")
		if code != 1 {
			t.Errorf("a damaged archive: exit code %d", code)
		}
		one(t, errs, "damaged.tar")
		cmd := u.command("load", "-", "--name", "other")
		cmd.Stdin = strings.NewReader(string(archive))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		hasImage(t)
	})
	t.Run("publish ports and pull by way of this machine", func(t *testing.T) {
		registry := harness.StartLocalRegistry(t)
		registry.Push(t, "app:1")
		file := filepath.Join(t.TempDir(), "pods.yaml")
		if err := os.WriteFile(file, fmt.Appendf(nil, manifests, registry.Image("app:1")), 0o600); err != nil {
			t.Fatal(err)
		}
		kubectl(t, "--context", "knarr-dev", "create", "-f", file)
		kubectl(t, "--context", "knarr-dev", "wait", "pod/web", "pod/pulled", "--for=condition=Ready", "--timeout=2m")
		if registry.Asked("GET app/manifests/") == 0 {
			t.Error("the registry was not asked")
		}
		client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		answer := ""
		waitFor(t, "an answer at the published port", func() bool {
			got, err := client.Get("http://" + published[1])
			if err != nil {
				return false
			}
			defer got.Body.Close()
			body, err := io.ReadAll(got.Body)
			answer = string(body)
			return err == nil
		})
		if !strings.Contains(answer, "web") {
			t.Errorf("the published port answers %q", answer)
		}
	})
	t.Run("go one by one, and their contexts with them", func(t *testing.T) {
		u.knarr(t, "down", "other")
		if contexts := kubectl(t, "config", "get-contexts", "-o", "name"); contexts != "knarr-dev\nmine\n" {
			t.Errorf("contexts are %q", contexts)
		}
		u.knarr(t, "down")
		if contexts := kubectl(t, "config", "get-contexts", "-o", "name"); contexts != "mine\n" {
			t.Errorf("contexts are %q", contexts)
		}
	})
}

// watchReads tells whether somebody has read a file since it was asked before.
func watchReads(t *testing.T, path string) func() bool {
	t.Helper()
	fd, err := syscall.InotifyInit1(syscall.IN_NONBLOCK | syscall.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if _, err := syscall.InotifyAddWatch(fd, path, syscall.IN_ACCESS); err != nil {
		t.Fatal(err)
	}
	return func() (read bool) {
		for events := make([]byte, 4096); ; read = true {
			if n, err := syscall.Read(fd, events); n <= 0 || err != nil {
				return read
			}
		}
	}
}

// rot changes a byte in the middle of a file.
func rot(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestMistakesAreOneLineAndLeaveNothing(t *testing.T) {
	taken, err := newListener(t)
	if err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("no program"), 0o644); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(t.TempDir(), "damaged.tar")
	if err := os.WriteFile(damaged, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	settings := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(settings, []byte("cluster-cidr: 10.43.0.0/16\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"no command":                    {[]string{"run"}, 2, "give a command"},
		"a command that does not exist": {[]string{"run", "--", "no-such-command"}, 127, "no-such-command: no such command"},
		"a file that is no command":     {[]string{"run", "--", plain}, 126, "permission denied"},
		"a wrong name":                  {[]string{"up", "--name", "Not_A_Name"}, 2, `"Not_A_Name": want`},
		"a taken port":                  {[]string{"run", "--port", taken + ":80", "--", "true"}, 1, "port " + taken + " of this machine is taken"},
		"a wrong port":                  {[]string{"up", "--port", "http"}, 2, `port "http": has no colon`},
		"a damaged archive":             {[]string{"run", "--image-archive", damaged, "--", "true"}, 1, damaged},
		"no archive":                    {[]string{"up", "--image-archive", damaged + ".gz"}, 2, "no such file"},
		"a wrong way out":               {[]string{"up", "--net", "bridge"}, 2, "--net bridge: give none, or nat"},
		"a volume that is not there":    {[]string{"run", "--volume", "/no/such/folder:/srv", "--", "true"}, 1, "/no/such/folder"},
		"settings that do not fit":      {[]string{"run", "--config", settings, "--", "true"}, 1, "10.43.0.0/16"},
		"a cluster that is not there":   {[]string{"down", "nobody"}, 1, "there is no cluster"},
	} {
		t.Run(what, func(t *testing.T) {
			u := newUser(t)
			_, errs, code := u.try(c.args...)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			one(t, errs, c.says)
		})
	}
	t.Run("not root", func(t *testing.T) {
		u := newUser(t)
		cmd := u.command("run", "--", "true")
		var errs strings.Builder
		cmd.Stderr = &errs
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		err := cmd.Run()
		if errors.Is(err, fs.ErrPermission) {
			t.Skipf("others may not run %s", u.exe)
		}
		if err == nil {
			t.Error("it ran")
		}
		one(t, errs.String(), "run it with sudo")
	})
	t.Run("without root's rights, as in a container", func(t *testing.T) {
		u := newUser(t)
		cmd := u.command("run", "--", "true")
		cmd.Args = append([]string{"capsh", "--drop=cap_sys_admin", "--", "-c", `exec "$0" "$@"`}, append([]string{u.exe}, cmd.Args[1:]...)...)
		if cmd.Path = "/usr/sbin/capsh"; gone(cmd.Path) {
			t.Skip("capsh is not installed")
		}
		var errs strings.Builder
		cmd.Stderr = &errs
		if err := cmd.Run(); err == nil {
			t.Error("it ran")
		}
		one(t, errs.String(), "--privileged")
	})
}
