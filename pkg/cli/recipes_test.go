package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/knarr-dev/knarr/pkg/cli"
	"github.com/knarr-dev/knarr/pkg/config"
)

// composeService is what of a service of the compose file matters here.
type composeService struct {
	Image, Hostname string
	Privileged      bool
	ReadOnly        bool `yaml:"read_only"`
	Tmpfs, Volumes  []string
	Command         []string
	Environment     map[string]string
}

// imageEnvironment is that of the Dockerfile.
func imageEnvironment(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^ENV (.*)$`).FindSubmatch(text)
	if m == nil {
		t.Fatal("the Dockerfile has no ENV")
	}
	return strings.Fields(string(m[1]))
}

func TestComposeFileStartsAServerAndAgentsThatFindIt(t *testing.T) {
	text, err := os.ReadFile("../../contrib/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// As compose fills in what is not set, and what has to be.
	text = regexp.MustCompile(`\$\{\w+:-([^}]*)\}`).ReplaceAll(text, []byte("$1"))
	text = regexp.MustCompile(`\$\{KNARR_TOKEN:\?[^}]*\}`).ReplaceAll(text, []byte("abcdef.0123456789abcdef"))
	var file struct {
		Services map[string]composeService
		Volumes  map[string]any
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(text, []byte("${")) {
		t.Error("a variable is of no known form")
	}
	if got := slices.Sorted(maps.Keys(file.Services)); !slices.Equal(got, []string{"agent-1", "agent-2", "server"}) {
		t.Fatalf("services are %q", got)
	}
	for name, s := range file.Services {
		t.Run(name, func(t *testing.T) {
			if !s.Privileged || !s.ReadOnly || !slices.Equal(s.Tmpfs, []string{"/run", "/tmp"}) || s.Hostname != name || s.Image != "knarr/knarr:latest" {
				t.Errorf("it is %+v", s)
			}
			for _, v := range s.Volumes {
				volume, _, _ := strings.Cut(v, ":")
				if _, declared := file.Volumes[volume]; !declared {
					t.Errorf("volume %s is not declared", volume)
				}
			}
			if !slices.Contains(s.Volumes, name+":/var/lib/knarr") {
				t.Errorf("state lies in none of %q", s.Volumes)
			}
			for _, e := range imageEnvironment(t) {
				variable, value, _ := strings.Cut(e, "=")
				t.Setenv(variable, value)
			}
			for variable, value := range s.Environment {
				t.Setenv(variable, value)
			}
			cfg := started(t, name, s.Command)
			if cfg.Agent != strings.HasPrefix(name, "agent") || cfg.Token != "abcdef.0123456789abcdef" {
				t.Errorf("agent %v, token %q", cfg.Agent, cfg.Token)
			}
			if cfg.Agent && !slices.Equal(cfg.Servers, []string{"https://server:6443"}) {
				t.Errorf("it joins %q", cfg.Servers)
			}
			if !cfg.Agent && (cfg.Kubeconfig.Path != "/var/lib/knarr/kubeconfig.yaml" || !slices.Contains(cfg.API.TLSSANs, "localhost")) {
				t.Errorf("kubeconfig %s, names %q", cfg.Kubeconfig.Path, cfg.API.TLSSANs)
			}
		})
	}
}

// started is the Config that a command line runs with. It must have nothing to warn of.
func started(t *testing.T, host string, args []string) *config.Config {
	t.Helper()
	t.Setenv("KNARR_CONFIG", emptyFile(t))
	var got *config.Config
	note := func(_ context.Context, cfg *config.Config) error { got = cfg; return nil }
	root := cli.New(cli.Commands{Server: note, Agent: note, Host: func() config.Host {
		return config.Host{
			Name:     host,
			Address:  func(int) (netip.Addr, error) { return netip.MustParseAddr("192.0.2.10"), nil },
			ReadFile: func(string) ([]byte, error) { return []byte("nameserver 127.0.0.11\n"), nil },
			HasGroup: func(string) bool { return true },
		}
	}})
	var said bytes.Buffer
	root.SetOut(&said)
	root.SetErr(&said)
	if code := cli.Execute(t.Context(), root, args); code != 0 || said.Len() > 0 || got == nil {
		t.Fatalf("%q: exit code %d\n%s", args, code, &said)
	}
	return got
}

func emptyFile(t *testing.T) string {
	t.Helper()
	path := t.TempDir() + "/empty.yaml"
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Every command line of Knarr in the recipes is one that it knows.
func TestRecipesUseCommandsThatThereAre(t *testing.T) {
	for file, atLeast := range map[string]int{"../../docs/ci.md": 12, "../../docs/install.md": 4, "../../contrib/compose.yaml": 2} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var commands [][]string
		for _, block := range blocks(string(text)) {
			for line := range strings.Lines(block) {
				commands = append(commands, commandsIn(line)...)
			}
		}
		for _, args := range commands {
			if err := known(args); err != nil {
				t.Errorf("%s: knarr %s: %v", file, strings.Join(args, " "), err)
			}
		}
		if len(commands) < atLeast {
			t.Errorf("%s has %d command lines: %q", file, len(commands), commands)
		}
	}
}

func TestYAMLOfTheRecipesIsYAML(t *testing.T) {
	text, err := os.ReadFile("../../docs/ci.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(text, -1)
	for _, m := range found {
		if err := yaml.Unmarshal(m[1], new(any)); err != nil {
			t.Errorf("%v in\n%s", err, m[1])
		}
	}
	if len(found) < 4 {
		t.Errorf("there are %d recipes", len(found))
	}
}

func TestUnknownCommandsOfRecipesAreFound(t *testing.T) {
	for line, want := range map[string]string{
		"- run: sudo knarr up --nodes 3 && true":                                "",
		"docker run -d --name knarr -v knarr:/x knarr/knarr:latest server --up": "unknown flag",
		"docker exec knarr kubectl get nodes":                                   "",
		"$(knarr asets bin/knarr) go test":                                      "unknown command",
		"knarr run --imag app.tar -- make e2e":                                  "unknown flag",
	} {
		commands := commandsIn(line)
		if len(commands) != 1 {
			t.Errorf("%q has %q", line, commands)
			continue
		}
		if err := known(commands[0]); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// blocks are the code of a Markdown file, or else all of a file.
func blocks(text string) []string {
	if !strings.Contains(text, "```") {
		return []string{text}
	}
	var all []string
	for _, m := range regexp.MustCompile("(?s)```[a-z]*\n(.*?)```").FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

// commandsIn finds knarr's arguments in a line: of the executable, of its image,
// and within a container that is called knarr.
func commandsIn(line string) [][]string {
	var all [][]string
	line, _, _ = strings.Cut(line, "      #")
	for _, m := range regexp.MustCompile(`(?:^|[\s(]|\./)(?:docker exec (?:-i )?)?knarr(?:/knarr:\S+)? ([a-z][^|;&)>]*)`).FindAllStringSubmatch(line, -1) {
		words := strings.Fields(m[1])
		for i, w := range words {
			words[i] = strings.Trim(w, `"'`)
		}
		if words[0] == "knarr" {
			words = words[1:]
		}
		all = append(all, words)
	}
	return all
}

// known tells what is wrong with a command line.
func known(args []string) error {
	root := cli.Builtin()
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if cmd == root {
		return fmt.Errorf("unknown command %q", args[0])
	}
	if cmd.DisableFlagParsing {
		return nil
	}
	return cmd.ParseFlags(rest)
}
