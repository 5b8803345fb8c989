package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/knarr-dev/knarr/pkg/bundle/ocitar"
)

// dockerfile are the instructions of the Dockerfile's last stage.
func dockerfile(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == "FROM" {
			clear(said)
		}
		said[name] = value
	}
	return said
}

func TestDockerfileSaysWhatTheImageDoes(t *testing.T) {
	said, img := dockerfile(t), about()
	list := func(name string) (words []string) {
		if err := json.Unmarshal([]byte(said[name]), &words); err != nil {
			t.Errorf("%s %s: %v", name, said[name], err)
		}
		return words
	}
	if said["FROM"] != "scratch" || said["STOPSIGNAL"] != img.StopSignal {
		t.Errorf("FROM %s, STOPSIGNAL %s", said["FROM"], said["STOPSIGNAL"])
	}
	if got := strings.Fields(said["ENV"]); !slices.Equal(got, img.Env) {
		t.Errorf("ENV is %q, and %q in the image", got, img.Env)
	}
	for name, want := range map[string][]string{"ENTRYPOINT": img.Entrypoint, "CMD": img.Cmd, "VOLUME": img.Volumes} {
		if got := list(name); !slices.Equal(got, want) {
			t.Errorf("%s is %q, and %q in the image", name, got, want)
		}
	}
}

func TestFilesAreLaidIntoAFolder(t *testing.T) {
	root := t.TempDir()
	err := lay(root, []ocitar.File{
		{Name: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{Name: "usr/bin/knarr", Mode: 0o755, Data: []byte("knarr")},
		{Name: "usr/bin/kubectl", Link: "knarr"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(root, "usr/bin/kubectl")); err != nil || string(text) != "knarr" {
		t.Errorf("%q, %v", text, err)
	}
	info, err := os.Stat(filepath.Join(root, "tmp"))
	if err != nil || info.Mode() != fs.ModeDir|fs.ModeSticky|0o777 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestOneFormIsWanted(t *testing.T) {
	for _, j := range []job{{}, {out: "a", root: "b"}} {
		if err := j.run(t.Context()); err == nil || !strings.Contains(err.Error(), "-o FILE or -root FOLDER") {
			t.Error(err)
		}
	}
}
