package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

const registriesFile = "/etc/knarr/registries.yaml"

// The file is the node's: only one test may write it.
func TestRegistriesFileIsAppliedWithoutARestart(t *testing.T) {
	s := newSpace(t)
	mirror := s.StartRegistry(t, harness.RegistryOptions{SelfSigned: true, User: "anna", Password: "right", Tokens: true})
	for tag := 1; tag <= 6; tag++ {
		mirror.Push(t, fmt.Sprintf("copies/app:%d", tag))
	}
	s.Write(t, "/etc/knarr/mirror.pem", mirror.CA)
	t.Cleanup(func() { _ = os.Remove(s.Host.Path(registriesFile)) }) // gone already, unless the test has failed
	began := s.Status(t).PID
	logged := func(words string) {
		t.Helper()
		s.WaitFor(t, "the log to tell "+words, func(context.Context) (bool, error) { return strings.Contains(s.Log(t), words), nil })
	}
	run := func(pod, name string) {
		t.Helper()
		s.create(kube.Pod(pod, image(name)))
		s.running(pod)
		_, tag, _ := strings.Cut(name, "app:")
		want(t, "the edition of "+pod, s.in(pod, "cat", "/edition"), "copies/app:"+tag)
	}
	access := fmt.Sprintf("\nconfigs:\n  %q:\n    auth: {username: anna, password: right}\n    tls: {ca_file: /etc/knarr/mirror.pem}\n", mirror.Addr)
	rewriting := fmt.Sprintf("mirrors:\n  apps.example.org:\n    endpoint: [\"https://%s:1\", \"https://%s\"]\n    rewrite: {\"^team/(.*)$\": \"copies/$1\"}\n",
		strings.TrimSuffix(mirror.Addr, ":5000"), mirror.Addr)
	// Nobody is at the first endpoint: the next one is asked.
	s.Write(t, registriesFile, rewriting+access)
	run("rewritten", "apps.example.org/team/app:1")

	s.Write(t, registriesFile, "mirors: {}\n"+access)
	logged(registriesFile + ":1: mirors is not a key; did you mean mirrors?")
	run("as-before", "apps.example.org/team/app:2")

	s.Write(t, registriesFile, access)
	run("by-its-own-name", mirror.Image("copies/app:3"))

	insecure := strings.Replace(access, "ca_file: /etc/knarr/mirror.pem", "insecure_skip_verify: true", 1)
	s.Write(t, registriesFile, fmt.Sprintf("mirrors: {\"*\": {endpoint: [\"https://%s/v2\"]}}\n", mirror.Addr)+insecure)
	run("from-anywhere", "elsewhere.example.net/copies/app:4")

	s.Write(t, registriesFile, strings.Replace(access, "right", "wrong", 1))
	s.create(kube.Pod("refused", image(mirror.Image("copies/app:5"))))
	s.notPulled("refused", "401 Unauthorized")

	s.Exec(t, "rm", registriesFile)
	s.create(kube.Pod("untrusted", image(mirror.Image("copies/app:6"))))
	s.notPulled("untrusted", "certificate signed by unknown authority")

	if now := s.Status(t).PID; now != began {
		t.Errorf("the server was restarted: process %d became %d", began, now)
	}
}
