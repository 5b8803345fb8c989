// Package demo tests what `make run` runs.
package demo

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/knarr-dev/knarr/pkg/throwaway"
	"github.com/knarr-dev/knarr/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

func TestDemoShowsAnAnsweringWorkloadAndLeavesTheMachineAsItWas(t *testing.T) {
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = throwaway.Demo(t.Context(), throwaway.DemoOptions{
		Exe:   harness.Exe(t),
		Image: filepath.Join("..", "..", "build", "images", "test.tar"),
		Once:  true,
		Out:   &out,
	})
	t.Log("\n" + out.String())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(out.Bytes(), []byte("was answered by hello-")) {
		t.Error("no answer is told")
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Errorf("mounts before:\n%s\nafter:\n%s", before, after)
	}
}
