package cli_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/knarr-dev/knarr/pkg/cli"
	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/knarr-dev/knarr/pkg/status"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"knarr": knarr, "kubectl": knarr, "helm": knarr, "ctr": knarr, "crictl": knarr, "etcd": knarr, "kube-apiserver": knarr})
}

// knarr is the program with functions that only tell what they were given.
func knarr() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	root := cli.New(cli.Commands{
		Server:  server,
		Agent:   agent,
		Check:   check,
		Kubectl: tool("kubectl"),
		Helm:    tool("helm"),
		Ctr:     tool("ctr"),
		Crictl:  tool("crictl"),
		Etcd:    func(_ context.Context, args []string) error { return tool("etcd")(args) },

		APIServer: tool("kube-apiserver"),
		Version: cli.Version{Knarr: "v1.2.3", Kubernetes: "v1.36.4+knarr1", Commit: "0123abcd",
			Parts: []cli.Part{{Name: "containerd", Version: "v2.3.7"}}},
		Host: func() config.Host {
			return config.Host{
				Name:     "Testhost",
				Address:  func(int) (netip.Addr, error) { return netip.MustParseAddr("192.0.2.10"), nil },
				ReadFile: os.ReadFile,
				HasGroup: func(group string) bool { return group == "staff" },
			}
		},
	})
	code := cli.Execute(ctx, root, cli.Dispatch(cli.Arguments()))
	stop()
	os.Exit(code)
}

// server prints its configuration. In debug mode it then serves a status until
// it is told to end.
func server(ctx context.Context, cfg *config.Config) error {
	for _, o := range config.Options() {
		fmt.Printf("%s: %s\n", o.Name, strings.Join(o.Values(cfg), " | "))
	}
	if !cfg.Log.Debug {
		return nil
	}
	s := &status.Server{Socket: cfg.StatusSocket(), Report: func() status.Report {
		return status.Report{Components: []component.Status{
			{Name: "apiserver", State: component.StateRetrying, LastError: "port 6443 is taken"},
			{Name: "kubelet", State: component.StateReady},
		}}
	}}
	ready := make(chan struct{})
	go func() {
		<-ready
		// The script waits for this file, a pipe, to be opened.
		if err := os.WriteFile(filepath.Join(cfg.RunDir, "ready"), []byte("ready\n"), 0o600); err != nil {
			fmt.Println(err)
		}
	}()
	return s.Run(ctx, ready)
}

// agent prints its configuration, and what ps shows of its arguments.
func agent(_ context.Context, cfg *config.Config) error {
	for _, o := range config.AgentOptions() {
		if !o.Secret {
			fmt.Printf("%s: %s\n", o.Name, strings.Join(o.Values(cfg), " | "))
		}
	}
	shown, err := os.ReadFile("/proc/self/cmdline")
	if err != nil {
		return err
	}
	fmt.Printf("a token of %d letters\nps: %s\n", len(cfg.Token), strings.ReplaceAll(string(shown), "\x00", " "))
	return nil
}

// check finds what the name of the data dir says.
func check(cfg *config.Config) host.Report {
	var r host.Report
	r.Add(host.Result{Check: "kernel", What: "kernel 6.1.0"})
	where := filepath.Base(cfg.DataDir)
	if strings.Contains(where, "odd") {
		r.Add(host.Result{Check: "disk", Level: host.Warning, What: "only 1 MiB is free", Where: where, Why: "pods are <evicted>", Do: "make room"})
	}
	if strings.Contains(where, "bad") {
		r.Add(host.Result{Check: "data-dir", Level: host.Error, What: "the data dir can't be written", Where: where, Why: "permission denied", Do: "choose another"})
	}
	return r
}

// exit is how a tool that ran as a process tells its exit code.
type exit int

func (e exit) Error() string { return "exit code" }
func (e exit) ExitCode() int { return int(e) }

// tool prints its arguments; told to fail, it does so as a process would, and
// told to break, as a function.
func tool(name string) func(args []string) error {
	return func(args []string) error {
		fmt.Printf("%s %q\n", name, args)
		switch strings.Join(args, " ") {
		case "fail":
			return exit(42)
		case "break":
			return errors.New("no such cluster")
		}
		return nil
	}
}

func TestCommandLineBehavesAsScriptsSay(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			// The machine's own configuration must not matter.
			file := filepath.Join(env.WorkDir, "empty.yaml")
			env.Setenv("KNARR_CONFIG", file)
			return os.WriteFile(file, nil, 0o600)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":  exits,
			"narrow": narrow,
		},
		RequireExplicitExec: true,
	})
}

// exits runs a command and checks its exit code: exits 2 knarr server --nonsense.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	got := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		coded, ok := errors.AsType[interface {
			error
			ExitCode() int
		}](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = fmt.Sprint(coded.ExitCode())
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// narrow checks that the output of the last command fits 80 columns.
func narrow(ts *testscript.TestScript, _ bool, _ []string) {
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		if line = strings.TrimRight(line, "\n"); len([]rune(line)) > 80 || strings.Contains(line, "\t") {
			ts.Fatalf("wider than 80 columns, or a tab: %q", line)
		}
	}
}
