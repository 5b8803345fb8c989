// Package install tests install.sh as users run it: with a POSIX shell and little
// else, from a folder and over HTTP. What it calls in the end is a program that
// only notes how; `knarr install` itself is tested elsewhere.
package install

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/knarr-dev/knarr/pkg/release"
)

// TestMain plays Knarr where this program has its name: see below.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) != "knarr" {
		os.Exit(m.Run())
	}
	if err := os.WriteFile(os.Getenv("NOTES"), []byte(strings.Join(os.Args[1:], "\n")+"\n"), 0o644); err != nil {
		os.Exit(1)
	}
}

// program notes how it was called, and installs itself.
const program = `#!/bin/sh
printf '%s\n' "$@" > "$NOTES"
mkdir -p "$INSTALL_KNARR_ROOT/usr/local/bin"
[ "$0" = "$INSTALL_KNARR_ROOT/usr/local/bin/knarr" ] || cp "$0" "$INSTALL_KNARR_ROOT/usr/local/bin/knarr"
`

// made is a release in a folder, and the script that came with it.
type made struct {
	dir, script string
}

func makeRelease(t *testing.T, arch string) made {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	m := made{dir: t.TempDir()}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var sums strings.Builder
	// Bytes that do not pack make the file large enough to be cut in two.
	noise := make([]byte, 1<<18)
	rand.Read(noise)
	for name, text := range map[string]string{"knarr-" + arch: program + "exit 0\n" + string(noise), "knarr-crictl-" + arch: "tool"} {
		var packed bytes.Buffer
		g := gzip.NewWriter(&packed)
		if _, err := g.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256([]byte(text)), name)
		for kind, content := range map[string][]byte{".gz": packed.Bytes(), ".zst": z.EncodeAll([]byte(text), nil)} {
			m.write(t, name+kind, content)
			fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(content), name+kind)
		}
	}
	m.write(t, "sha256sums.txt", []byte(sums.String()))
	hash := sha256.Sum256([]byte(sums.String()))
	signature, err := ecdsa.SignASN1(rand.Reader, key, hash[:])
	if err != nil {
		t.Fatal(err)
	}
	m.write(t, "sha256sums.txt.sig", signature)
	script, err := os.ReadFile("../../install.sh")
	if err != nil {
		t.Fatal(err)
	}
	pemKey := strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})))
	m.script = m.write(t, "install.sh", bytes.Replace(script, []byte("PUBLIC_KEY=''"), []byte("PUBLIC_KEY='"+pemKey+"'"), 1))
	return m
}

func (m made) write(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// machine is a root folder, and a PATH.
type machine struct {
	t     *testing.T
	root  string
	notes string
	path  string
	shell []string
}

// machines are one with the usual tools under dash, and one that has nothing but
// busybox and openssl.
func machines(t *testing.T) map[string]*machine {
	t.Helper()
	dash, err := exec.LookPath("dash")
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := filepath.Abs("../../build/images/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Fatalf("run `make images` first: %v", err)
	}
	all := map[string]*machine{
		"dash":    {path: os.Getenv("PATH"), shell: []string{dash}},
		"busybox": {path: t.TempDir(), shell: []string{busybox, "ash"}},
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(applets)) {
		link(t, busybox, filepath.Join(all["busybox"].path, name))
	}
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal(err)
	}
	link(t, openssl, filepath.Join(all["busybox"].path, "openssl"))
	for _, m := range all {
		m.t, m.root, m.notes = t, t.TempDir(), filepath.Join(t.TempDir(), "notes")
		if err := os.MkdirAll(filepath.Join(m.root, "var", "cache"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func link(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

// run runs the script with variables and arguments.
func (m *machine) run(script string, env []string, args ...string) (string, error) {
	cmd := exec.Command(m.shell[0], append(append(m.shell[1:len(m.shell):len(m.shell)], script), args...)...)
	cmd.Env = append([]string{"PATH=" + m.path, "HOME=" + m.root, "NOTES=" + m.notes, "INSTALL_KNARR_ROOT=" + m.root}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// called is how the new executable was, a word a line; empty if it was not.
func (m *machine) called() string {
	text, err := os.ReadFile(m.notes)
	if err != nil {
		return ""
	}
	return string(text)
}

// files are those below the root.
func (m *machine) files() []string {
	var all []string
	_ = filepath.WalkDir(m.root, func(path string, _ os.DirEntry, err error) error {
		all = append(all, strings.TrimPrefix(path, m.root))
		return err
	})
	return all
}

// site serves a release, and may cut a file short once.
type site struct {
	*httptest.Server
	mu     sync.Mutex
	asked  []string // paths, with ranges
	cutOff string
}

func serve(t *testing.T, m made) *site {
	t.Helper()
	s := new(site)
	files := http.StripPrefix("/v1.2.3", http.FileServer(http.Dir(m.dir)))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, strings.TrimSpace(r.URL.Path+" "+r.Header.Get("Range")))
		cut := s.cutOff != "" && strings.HasSuffix(r.URL.Path, s.cutOff)
		if cut {
			s.cutOff = ""
		}
		s.mu.Unlock()
		switch {
		case r.URL.Path == "/channels/stable":
			fmt.Fprintln(w, "v1.2.3")
		case cut:
			content, err := os.ReadFile(filepath.Join(m.dir, filepath.Base(r.URL.Path)))
			if err != nil {
				t.Error(err)
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write(content[:len(content)/2])
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			}
			panic(http.ErrAbortHandler)
		default:
			files.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *site) requests(part string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.asked), func(a string) bool { return !strings.Contains(a, part) })
}

func TestReleaseIsInstalledAndTheSecondTimeNotFetched(t *testing.T) {
	from := makeRelease(t, "amd64")
	for name, m := range machines(t) {
		t.Run(name, func(t *testing.T) {
			s := serve(t, from)
			for i, env := range [][]string{
				{"INSTALL_KNARR_BASE_URL=" + s.URL + "/"}, {"INSTALL_KNARR_BASE_URL=" + s.URL, "INSTALL_KNARR_VERSION=v1.2.3"},
				{"INSTALL_KNARR_ARTIFACTS=" + from.dir},
			} {
				if out, err := m.run(from.script, env); err != nil {
					t.Fatalf("run %d: %v\n%s", i, err, out)
				}
				if !strings.HasPrefix(m.called(), "install\n") {
					t.Errorf("run %d: knarr was called with %q", i, m.called())
				}
				// The script leaves nothing of its own.
				want := []string{"", "/usr", "/usr/local", "/usr/local/bin", "/usr/local/bin/knarr", "/var", "/var/cache"}
				if got := m.files(); !slices.Equal(got, want) {
					t.Errorf("run %d: there are %q", i, got)
				}
			}
			if got := s.requests("/knarr-"); len(got) != 1 {
				t.Errorf("fetched were %q", got)
			}
			if out, err := m.run(from.script, []string{"INSTALL_KNARR_BASE_URL=" + s.URL, "INSTALL_KNARR_CRICTL=true"}); err != nil || len(s.requests("/knarr-crictl")) != 1 {
				t.Errorf("with crictl %q were fetched: %v\n%s", s.requests("/knarr-"), err, out)
			}
		})
	}
}

func TestWhatIsNotAsReleasedChangesNothing(t *testing.T) {
	for name, m := range machines(t) {
		for file, why := range map[string]string{
			"knarr-amd64": "not what was released", "sha256sums.txt": "not signed", "sha256sums.txt.sig": "not signed",
		} {
			t.Run(name+" "+file, func(t *testing.T) {
				from := makeRelease(t, "amd64")
				for _, f := range []string{file, file + ".gz", file + ".zst"} {
					content, err := os.ReadFile(filepath.Join(from.dir, f))
					if err != nil {
						continue
					}
					content[len(content)/2] ^= 1
					from.write(t, f, content)
				}
				out, err := m.run(from.script, []string{"INSTALL_KNARR_ARTIFACTS=" + from.dir})
				if err == nil || !strings.Contains(out, why) || !strings.Contains(out, "Nothing was changed") {
					t.Errorf("%v\n%s", err, out)
				}
				if m.called() != "" || slices.Contains(m.files(), "/usr") {
					t.Errorf("knarr was called with %q; there are %q", m.called(), m.files())
				}
			})
		}
	}
}

func TestCutOffDownloadGoesOnWhereItEnded(t *testing.T) {
	from := makeRelease(t, "amd64")
	for name, m := range machines(t) {
		t.Run(name, func(t *testing.T) {
			s := serve(t, from)
			file := "/knarr-amd64.gz"
			if _, err := exec.LookPath("zstd"); err == nil && name == "dash" {
				file = "/knarr-amd64.zst"
			}
			s.cutOff = file
			env := []string{"INSTALL_KNARR_BASE_URL=" + s.URL}
			out, err := m.run(from.script, env)
			if err == nil && len(s.requests(file)) < 2 {
				t.Fatalf("half a file was enough:\n%s", out)
			}
			if err != nil {
				if !strings.Contains(out, "run this again") || m.called() != "" {
					t.Errorf("%s; knarr was called with %q", out, m.called())
				}
				if out, err := m.run(from.script, env); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			}
			got := s.requests(file)
			if last := got[len(got)-1]; len(got) != 2 || !strings.Contains(last, "bytes=") {
				t.Errorf("asked for %q", got)
			}
			if !strings.HasPrefix(m.called(), "install\n") {
				t.Errorf("knarr was called with %q", m.called())
			}
		})
	}
}

func TestWithoutAVerifierItStopsUnlessToldToSkip(t *testing.T) {
	from := makeRelease(t, "amd64")
	m := machines(t)["busybox"]
	if err := os.Remove(filepath.Join(m.path, "openssl")); err != nil {
		t.Fatal(err)
	}
	env := []string{"INSTALL_KNARR_ARTIFACTS=" + from.dir}
	if out, err := m.run(from.script, env); err == nil || !strings.Contains(out, "openssl is not here") || m.called() != "" {
		t.Errorf("%v, called with %q\n%s", err, m.called(), out)
	}
	if out, err := m.run("../../install.sh", env); err == nil || !strings.Contains(out, "no key to verify with") {
		t.Errorf("without a key: %v\n%s", err, out)
	}
	out, err := m.run(from.script, append(env, "INSTALL_KNARR_SKIP_SIGNATURE=true"))
	if err != nil || !strings.Contains(out, "warning: the signature is not looked at") || !strings.HasPrefix(m.called(), "install\n") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := m.run(from.script, append(env, "INSTALL_KNARR_SKIP_SIGNATURE=maybe")); err == nil || !strings.Contains(out, "say true or false") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestMachinesAreKnownByWhatTheyCallThemselves(t *testing.T) {
	for machine, arch := range map[string]string{
		"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64", "armv7l": "arm", "armv8l": "arm", "armv6l": "", "riscv64": "", "i686": "",
	} {
		t.Run(machine, func(t *testing.T) {
			m := machines(t)["dash"]
			dir := t.TempDir()
			script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = -m ] && echo %s || echo Linux\n", machine)
			if err := os.WriteFile(filepath.Join(dir, "uname"), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			m.path = dir + ":" + m.path
			from := makeRelease(t, max(arch, "amd64"))
			out, err := m.run(from.script, []string{"INSTALL_KNARR_ARTIFACTS=" + from.dir})
			if arch == "" && (err == nil || !strings.Contains(out, "no release for machines of kind "+machine) || len(m.files()) > 3) {
				t.Errorf("%v\n%s", err, out)
			}
			if arch != "" && (err != nil || m.called() == "") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestVariablesAndArgumentsReachKnarrInstall(t *testing.T) {
	from := makeRelease(t, "amd64")
	for name, m := range machines(t) {
		t.Run(name, func(t *testing.T) {
			out, err := m.run(from.script, []string{
				"INSTALL_KNARR_ARTIFACTS=" + from.dir, "INSTALL_KNARR_EXEC=agent --node-label a=* --debug", "INSTALL_KNARR_NAME=edge",
				"INSTALL_KNARR_BIN_DIR=/opt/my bin", "INSTALL_KNARR_DATA_DIR=/srv/knarr", "INSTALL_KNARR_SKIP_START=true",
				"INSTALL_KNARR_SKIP_ENABLE=1", "INSTALL_KNARR_DRY_RUN=yes",
			}, "--node-name", "a b")
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			words := strings.Split(strings.TrimSpace(m.called()), "\n")
			key := slices.Index(words, "--release-key")
			if key < 0 {
				t.Fatalf("knarr was called with %q", words)
			}
			words = slices.Delete(words, key, key+2)
			want := []string{
				"install", "--dry-run", "--skip-enable", "--skip-start", "--root", m.root, "--data-dir", "/srv/knarr", "--bin-dir", "/opt/my bin",
				"--name", "edge", "--", "agent", "--node-label", "a=*", "--debug", "--node-name", "a b",
			}
			if !slices.Equal(words, want) {
				t.Errorf("knarr was called with %q,\nwant %q", words, want)
			}
		})
	}
}

func TestReleaseIsMadeTwiceTheSameAndInstalls(t *testing.T) {
	dist, tool := t.TempDir(), filepath.Join(t.TempDir(), "knarr-sbom")
	out, err := exec.Command("go", "build", "-o", tool, "../../cmd/knarr-sbom").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"knarr", "knarr-crictl", "knarr-arm64", "knarr-image-amd64.tar"} {
		if err := os.WriteFile(filepath.Join(dist, name), program, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	key := filepath.Join(t.TempDir(), "key.pem")
	if out, err := exec.Command("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	made := func() map[string]string {
		t.Helper()
		cmd := exec.Command("../../scripts/release.sh")
		cmd.Env = append(os.Environ(), "DIST="+dist, "SBOM="+tool, "RELEASE_KEY="+key, "RELEASE_LEVEL=1", "RELEASE_XZ=1", "RELEASE_VERSION=v1.2.3", "RELEASE_DATE=2026-11-28T00:00:00Z")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		files := map[string]string{}
		entries, err := os.ReadDir(filepath.Join(dist, "release"))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			content, err := os.ReadFile(filepath.Join(dist, "release", e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			files[e.Name()] = fmt.Sprintf("%x", sha256.Sum256(content))
		}
		return files
	}
	first, second := made(), made()
	for name, sum := range first {
		// A signature has chance in it.
		if second[name] != sum && name != "sha256sums.txt.sig" {
			t.Errorf("%s is other bytes the second time", name)
		}
	}
	for _, name := range []string{
		"knarr-amd64.xz", "knarr-amd64.zst", "knarr-amd64.gz", "knarr-crictl-amd64.zst", "knarr-arm64.zst", "knarr-image-amd64.tar", "knarr.spdx.json", "install.sh",
		"release.pub", "sha256sums.txt", "sha256sums.txt.sig",
	} {
		if first[name] == "" {
			t.Errorf("there is no %s", name)
		}
	}
	dir := filepath.Join(dist, "release")
	for name, m := range machines(t) {
		if out, err := m.run(filepath.Join(dir, "install.sh"), []string{"INSTALL_KNARR_ARTIFACTS=" + dir}); err != nil || !strings.HasPrefix(m.called(), "install\n") {
			t.Errorf("%s: %v, called with %q\n%s", name, err, m.called(), out)
		}
	}
	public, err := os.ReadFile(filepath.Join(dir, "release.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if err := (release.Source{From: dir, Key: public, Arch: "amd64"}).Fetch(t.Context(), t.TempDir()); err != nil {
		t.Error(err)
	}
	// Where there is XZ Utils, the smallest file is all that is fetched.
	for _, other := range []string{"knarr-amd64.zst", "knarr-amd64.gz"} {
		if err := os.Remove(filepath.Join(dir, other)); err != nil {
			t.Fatal(err)
		}
	}
	m := machines(t)["dash"]
	if out, err := m.run(filepath.Join(dir, "install.sh"), []string{"INSTALL_KNARR_ARTIFACTS=" + dir}); err != nil || !strings.HasPrefix(m.called(), "install\n") {
		t.Errorf("with xz alone: %v, called with %q\n%s", err, m.called(), out)
	}
}

func TestWhereReleasesAreHasToBeKnown(t *testing.T) {
	from := makeRelease(t, "amd64")
	m := machines(t)["dash"]
	for env, why := range map[string]string{
		"INSTALL_KNARR_VERSION=v1": "where are releases", "INSTALL_KNARR_ARTIFACTS=/nowhere": "there is no /nowhere/sha256sums.txt",
	} {
		if out, err := m.run(from.script, []string{env}); err == nil || !strings.Contains(out, why) {
			t.Errorf("%s: %v\n%s", env, err, out)
		}
	}
	if out, err := m.run(from.script, []string{"INSTALL_KNARR_BASE_URL=http://127.0.0.1:1", "INSTALL_KNARR_VERSION=../x"}); err == nil || !strings.Contains(out, "is no version") {
		t.Errorf("%v\n%s", err, out)
	}
}
