package main

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
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

func TestThePeersLastWordsAreThoseOfTheProcessThatEnded(t *testing.T) {
	log := []string{
		"I1121 10:21:21.1     253 server.go:1] fine",
		`E1121 10:21:21.2     254 run.go:72] "command failed"`,
		"I1121 10:21:21.3     253 server.go:1] still fine",
		"time=now level=info msg=fine",
		"peer: kubelet (process 254) ended by itself: exit status 1",
		"I1121 10:21:21.4     253 server.go:1] fine to the end",
	}
	if got := (*peer)(nil).lastWords(log); !slices.Equal(got, []string{log[4], log[1]}) {
		t.Errorf("last words are %q", got)
	}
	log[4] = "peer: etcd (process 9) ended by itself: exit status 1"
	if got := (*peer)(nil).lastWords(log); !slices.Equal(got, []string{log[4], log[0], log[1], log[2], log[3]}) {
		t.Errorf("last words of one whose lines have no number are %q", got)
	}
	if got := (*peer)(nil).lastWords(log[:3]); !slices.Equal(got, log[:3]) {
		t.Errorf("last words of no process are %q", got)
	}
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
