package throwaway

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

func TestPortsAreRead(t *testing.T) {
	for text, want := range map[string]string{
		"8080:80":             "127.0.0.1:8080:80",
		"0:30080/tcp":         "127.0.0.1:0:30080",
		"0.0.0.0:443:30443":   "0.0.0.0:443:30443",
		"[::1]:8080:80":       "[::1]:8080:80",
		"80":                  "no colon",
		"8080:0":              "1 to 65535",
		"8080:65536":          "1 to 65535",
		"99999:80":            "not an address and a port",
		"example.org:8080:80": "not an address and a port",
		"53:53/udp":           "only TCP",
		"":                    "no colon",
	} {
		p, err := ParsePort(text)
		got := p.String()
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestVolumesAreRead(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"/a:/b":        "/a>/b",
		"./x:/b/":      here + "/x>/b",
		"/a:/b:ro":     "/a>/b ro",
		"/a":           "want HOST:NODE",
		"/a:/b:rw":     "want HOST:NODE",
		":/b":          "want HOST:NODE",
		"/a:b":         "absolute path",
		"/a:/":         "absolute path",
		"/a:/proc/x":   "kernel's",
		"/a:/x/../sys": "kernel's",
	} {
		v, err := ParseVolume(text)
		got := v.Source + ">" + v.Target
		if v.ReadOnly {
			got += " ro"
		}
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestVolumesAreWhereANodeCanHaveThem(t *testing.T) {
	here := []string{"/srv", "/usr", "/usr/share"}
	for path, ok := range map[string]bool{"/volume": true, "/volume/a": true, "/var/a": true, "/srv": true, "/usr/share": true, "/srv/a": false, "/usr/share/a": false} {
		if err := checkTarget(path, func(p string) bool { return slices.Contains(here, p) }); (err == nil) != ok {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestTooLittleRoomIsTold(t *testing.T) {
	if err := diskRoom("/srv", 100<<20, leastDisk); err == nil || !strings.Contains(err.Error(), "only 100 MiB are free in /srv") {
		t.Errorf("%v", err)
	}
	if err := diskRoom("/srv", leastDisk, leastDisk); err != nil {
		t.Error(err)
	}
	sysctls := t.TempDir()
	if err := os.WriteFile(filepath.Join(sysctls, "max_user_instances"), []byte("128\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for err, want := range map[error]string{
		unix.EMFILE: "raise sysctl fs.inotify.max_user_instances, which is 128",
		unix.ENOSPC: "raise sysctl fs.inotify.max_user_watches, which is unknown",
	} {
		if got := watchRoom(err, sysctls); got == nil || !strings.Contains(got.Error(), want) {
			t.Errorf("%v, want %s", got, want)
		}
	}
}

func kubeconfig(t *testing.T, path, name, server string) *clientcmdapi.Config {
	t.Helper()
	c := clientcmdapi.NewConfig()
	c.Clusters[name] = &clientcmdapi.Cluster{Server: server}
	c.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: "of " + name}
	c.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	c.CurrentContext = name
	if path != "" {
		if err := clientcmd.WriteToFile(*c, path); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestAContextComesAndGoesAndOthersStay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	kubeconfig(t, path, "mine", "https://192.0.2.1:6443")
	rec := &Record{Name: "dev", Server: "https://127.0.0.1:12345", Kubeconfig: path}
	read := func() *clientcmdapi.Config {
		c, err := clientcmd.LoadFromFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if err := addContext(rec, kubeconfig(t, "", "knarr-dev", rec.Server)); err != nil {
		t.Fatal(err)
	}
	if c := read(); c.CurrentContext != "knarr-dev" || len(c.Contexts) != 2 || c.AuthInfos["mine"].Token != "of mine" {
		t.Errorf("added: %+v", c)
	}
	other := *rec
	other.Server = "https://127.0.0.1:54321"
	if err := forgetContext(&other); err != nil || len(read().Contexts) != 2 {
		t.Errorf("another's entry of that name was removed: %v", err)
	}
	if err := forgetContext(rec); err != nil {
		t.Fatal(err)
	}
	if c := read(); c.CurrentContext != "" || len(c.Contexts) != 1 || len(c.Clusters) != 1 || len(c.AuthInfos) != 1 {
		t.Errorf("removed: %+v", c)
	}

	made := &Record{Name: "dev", Server: rec.Server, Kubeconfig: filepath.Join(t.TempDir(), "sub", "config"), KubeconfigMade: true}
	if err := addContext(made, kubeconfig(t, "", "knarr-dev", rec.Server)); err != nil {
		t.Fatal(err)
	}
	if err := forgetContext(made); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(made.Kubeconfig); !os.IsNotExist(err) {
		t.Errorf("a file made for it stays: %v", err)
	}
}

func TestClaimsAreOfOneAndLeftoversGo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	f := folder(filepath.Join(t.TempDir(), "clusters"))
	claim := func(name string) (*os.File, error) { return f.claim(&Record{Name: name, ID: "id-of-" + name}) }
	one, err := claim("one")
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	if _, err := claim("one"); err == nil || !strings.Contains(err.Error(), "there is a cluster one") {
		t.Errorf("a name is taken twice: %v", err)
	}
	two, err := claim("two")
	if err != nil {
		t.Fatal(err)
	}
	if rec, err := f.read("two"); err != nil || rec.Slot != 1 {
		t.Errorf("%+v, %v", rec, err)
	}
	two.Close() // its keeper died
	if three, err := claim("three"); err != nil {
		t.Error(err)
	} else {
		defer three.Close()
	}
	if _, err := os.Stat(f.dir("two")); !os.IsNotExist(err) {
		t.Errorf("a dead cluster's folder stays: %v", err)
	}
	if _, err := f.read("one"); err != nil {
		t.Errorf("a live one's does not: %v", err)
	}
	var live unix.Stat_t
	if err := unix.Stat(f.file("one", "lock"), &live); err != nil {
		t.Error(err)
	}
}

func TestImagesComeFromWhereTheyAreNamed(t *testing.T) {
	dir := t.TempDir()
	archive := filepath.Join(dir, "app.tar")
	layout := filepath.Join(dir, "layout")
	for path, text := range map[string]string{archive: "archive", filepath.Join(layout, "oci-layout"): "{}", filepath.Join(layout, "index.json"): "index"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	copied := func(text string) []byte {
		i, err := ParseImage(text, strings.NewReader("stdin"))
		if err != nil {
			t.Fatal(err)
		}
		var to bytes.Buffer
		if _, err := i.source.Read(t.Context(), &to); err != nil {
			t.Fatal(err)
		}
		return to.Bytes()
	}
	if got := copied(archive); string(got) != "archive" {
		t.Errorf("from an archive: %q", got)
	}
	if got := copied("-"); string(got) != "stdin" {
		t.Errorf("from stdin: %q", got)
	}
	names := ""
	for r := tar.NewReader(bytes.NewReader(copied(layout))); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names += h.Name + " "
	}
	if names != "index.json oci-layout " {
		t.Errorf("from a folder: %s", names)
	}
	for _, wrong := range []string{dir, filepath.Join(dir, "no.tar"), "./no", "Not An Image"} {
		if _, err := ParseImage(wrong, nil); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", wrong, err)
		}
	}
}

func TestAKubeconfigIsFoundFromElsewhere(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	c := Config{Name: "dev", Kubeconfig: "config"}
	if err := c.check(); err != nil || c.Kubeconfig != filepath.Join(dir, "config") {
		t.Errorf("got %s, %v", c.Kubeconfig, err)
	}
}
