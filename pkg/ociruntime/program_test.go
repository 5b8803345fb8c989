package ociruntime

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestCrunIsGivenAVersionOfTheSpecificationThatItKnows(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's made")
	crun := filepath.Join(t.TempDir(), "cr'un")
	if err := os.WriteFile(crun, []byte("#!/bin/sh\nprintf '%s\\n' \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := Runtime{Handler: "crun", Path: crun}.Program(dir)
	if err != nil {
		t.Fatal(err)
	}
	bundle := t.TempDir()
	config := filepath.Join(bundle, "config.json")
	for given, want := range map[string]string{
		`{"ociVersion":"1.3.0","a":"{\"ociVersion\":\"1.3.0\""}`: `{"ociVersion":"1.0.2","a":"{\"ociVersion\":\"1.3.0\""}`,
		`{"ociVersion":"1.0.1","a":1}`:                           `{"ociVersion":"1.0.1","a":1}`,
	} {
		if err := os.WriteFile(config, []byte(given), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), program, "--root", "/r", "create", "--bundle", bundle, "two words").Output()
		if want := "--root\n/r\ncreate\n--bundle\n" + bundle + "\ntwo words\n"; err != nil || string(out) != want {
			t.Errorf("crun was given %q, %v", out, err)
		}
		if got, err := os.ReadFile(config); err != nil || string(got) != want {
			t.Errorf("%s became %s, %v", given, got, err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), program, "state", "x").Output(); err != nil || string(out) != "state\nx\n" {
		t.Errorf("without a bundle: %q, %v", out, err)
	}
	if plain, err := (Runtime{Handler: "youki", Path: "/usr/bin/youki"}).Program(dir); err != nil || plain != "/usr/bin/youki" {
		t.Errorf("youki is run by %s, %v", plain, err)
	}
}
