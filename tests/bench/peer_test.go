package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

func TestMain(m *testing.M) {
	if lab.MaybeInit() {
		return
	}
	m.Run()
}

func TestPeerFilesAreWhatTheirReadersExpect(t *testing.T) {
	files, err := peerFiles(peerValues{
		Node: "node1", Address: "10.99.0.2", Dir: "/etc/kubernetes", PKI: "/etc/kubernetes/pki",
		Bin: "/opt/peer/bin", Bundle: "/opt/peer/bundle",
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if strings.Contains(string(text), "{{.") || strings.Contains(string(text), "<no value>") {
			t.Errorf("%s has a hole:\n%s", name, text)
		}
		switch filepath.Ext(name) {
		case ".yaml":
			var v map[string]any
			if err := yaml.UnmarshalStrict(text, &v); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		case ".conflist":
			if !json.Valid(text) {
				t.Errorf("%s is no JSON:\n%s", name, text)
			}
		case ".sh":
			file := filepath.Join(t.TempDir(), "script")
			if err := os.WriteFile(file, text, 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("bash", "-n", file).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", name, err, out)
			}
		}
	}
}
