package main

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
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
	for name := range peerFiles() {
		text, err := peerFolder.ReadFile("peer/" + name)
		if err != nil {
			t.Fatal(err)
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
			if out, err := exec.Command("bash", "-n", filepath.Join("peer", name)).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", name, err, out)
			}
		}
	}
}
