package service

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fake is a machine in a folder, whose init system notes what it is told.
type fake struct {
	Machine
	said   []string
	active bool
	source string
}

func newFake(t *testing.T, marker string) *fake {
	t.Helper()
	f := &fake{}
	f.Root = t.TempDir()
	f.Run = func(_ context.Context, argv ...string) error {
		line := strings.Join(argv, " ")
		if strings.Contains(line, "is-active") || strings.HasSuffix(line, "status") {
			if !f.active {
				return errors.New("inactive")
			}
			return nil
		}
		f.said = append(f.said, line)
		if strings.Contains(line, "start") {
			f.active = true
		}
		return nil
	}
	f.put(t, marker, "")
	for _, dir := range []string{"/usr/local/bin", "/etc/systemd/system", "/etc/init.d", "/var/log"} {
		if err := os.MkdirAll(f.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f.source = filepath.Join(t.TempDir(), "knarr")
	for name, text := range map[string]string{"knarr": "program 1", "knarr-crictl": "tool"} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(f.source), name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

const (
	systemdMarker = "/run/systemd/system/x"
	openRCMarker  = "/sbin/openrc-run"
)

func (f *fake) put(t *testing.T, path, text string) {
	t.Helper()
	path = f.path(path)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (f *fake) read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(f.path(path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// install plans and applies, and returns the plan.
func (f *fake) install(t *testing.T, o Options) *Plan {
	t.Helper()
	o.Source, o.DataDir, o.RunDir = f.source, "/var/lib/knarr", "/run/knarr"
	p, err := f.PlanInstall(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

// files lists all that is on the machine, with modes and where links lead.
func (f *fake) files(t *testing.T) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(f.Root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := info.Mode().String() + " " + strings.TrimPrefix(path, f.Root)
		if to, err := os.Readlink(path); err == nil {
			line += " -> " + to
		}
		all = append(all, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestInstallMakesAServiceOfSystemd(t *testing.T) {
	f := newFake(t, systemdMarker)
	f.put(t, "/usr/bin/kubectl", "the user's own")
	before := f.files(t)
	o := Options{
		Args: []string{"--tls-san", "a b", "--node-label=x=$y%z"}, Env: []string{"KNARR_TOKEN=a\"b$c`d\\e f"},
		SetDataDir: true, Key: []byte("public\n"),
	}
	plan, err := f.PlanInstall(t.Context(), Options{Source: f.source, DataDir: "/var/lib/knarr", Args: o.Args})
	if err != nil {
		t.Fatal(err)
	}
	if now := f.files(t); !slices.Equal(now, before) || len(f.said) > 0 {
		t.Errorf("planning changed the machine: %q, %q", now, f.said)
	}
	if !strings.Contains(plan.String(), "write /etc/systemd/system/knarr.service (mode 0644)\nrun systemctl daemon-reload\nrun systemctl enable knarr\nstart knarr\n") {
		t.Errorf("the plan is\n%s", plan)
	}
	f.install(t, o)

	unit := f.read(t, "/etc/systemd/system/knarr.service")
	for _, line := range []string{
		"Type=notify", "TimeoutStartSec=0", "Delegate=yes", "KillMode=process", "WatchdogSec=3min", "LimitNOFILE=1048576",
		"OOMScoreAdjust=-999", "TasksMax=infinity", "Restart=always", "After=network-online.target local-fs.target time-sync.target firewalld.service",
		"EnvironmentFile=-/etc/knarr/knarr.env", `ExecStart=/usr/local/bin/knarr server --tls-san "a b" --node-label=x=$$y%%z`,
	} {
		if !strings.Contains(unit, "\n"+line+"\n") {
			t.Errorf("the unit has no line %q:\n%s", line, unit)
		}
	}
	if want := []string{"systemctl daemon-reload", "systemctl enable knarr", "systemctl start knarr"}; !slices.Equal(f.said, want) {
		t.Errorf("systemd was told %q", f.said)
	}
	now := strings.Join(f.files(t), "\n")
	for _, line := range []string{
		"-rw------- /etc/knarr/knarr.env", "-rw------- /etc/knarr/install.json", "-rwxr-xr-x /usr/local/bin/knarr",
		"-rwxr-xr-x /usr/local/bin/knarr-crictl", "/usr/local/bin/ctr -> knarr", "/usr/local/bin/crictl -> knarr",
	} {
		if !strings.Contains(now, line) {
			t.Errorf("there is no %q in\n%s", line, now)
		}
	}
	if strings.Contains(now, "bin/kubectl ->") {
		t.Error("a kubectl that was there is hidden by a link")
	}
	if text := f.read(t, dropIn); text != "data-dir: \"/var/lib/knarr\"\n" {
		t.Errorf("the drop-in says %q", text)
	}
	if got := f.Environment(plan.Record); !slices.Equal(got, o.Env) {
		t.Errorf("the environment reads as %q", got)
	}
	// A shell, as OpenRC's, reads the same.
	out, err := exec.Command("sh", "-c", ". "+f.path("/etc/knarr/knarr.env")+`; printf %s "$KNARR_TOKEN"`).Output()
	if err != nil || "KNARR_TOKEN="+string(out) != o.Env[0] {
		t.Errorf("a shell reads %q: %v", out, err)
	}
}

func TestASecondInstallChangesNothingOrUpgrades(t *testing.T) {
	f := newFake(t, systemdMarker)
	f.install(t, Options{Role: "agent", Args: []string{"--node-label", "a=b"}, Env: []string{"KNARR_URL=https://192.0.2.1:6443", "KNARR_TOKEN=t"}})
	f.said = nil
	before := f.files(t)
	if p := f.install(t, Options{}); len(p.Steps) != 0 || !slices.Equal(f.files(t), before) || len(f.said) > 0 {
		t.Errorf("a second install did\n%s%q", p, f.said)
	}
	if err := os.WriteFile(f.source, []byte("program 2"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := f.install(t, Options{})
	if f.read(t, "/usr/local/bin/knarr") != "program 2" || !slices.Equal(f.said, []string{"systemctl restart --no-block knarr"}) {
		t.Errorf("an upgrade did\n%s%q", p, f.said)
	}
	if p.Record.Role != "agent" || !slices.Equal(p.Record.Args, []string{"--node-label", "a=b"}) {
		t.Errorf("the upgrade made it %+v", p.Record)
	}
	f.install(t, Options{Env: []string{"KNARR_TOKEN=", "KNARR_NODE_NAME=n"}})
	if got := f.Environment(p.Record); !slices.Equal(got, []string{"KNARR_NODE_NAME=n", "KNARR_URL=https://192.0.2.1:6443"}) {
		t.Errorf("changed, the environment is %q", got)
	}
	unit := f.read(t, "/etc/systemd/system/knarr.service")
	if !strings.Contains(unit, "RestartPreventExitStatus=3\n") {
		t.Error("the agent of a deleted node would start again and again")
	}
}

func TestWhatAnInstallationCannotBecomeIsRefused(t *testing.T) {
	f := newFake(t, systemdMarker)
	f.install(t, Options{})
	before := f.files(t)
	for what, o := range map[string]Options{
		"role": {Role: "agent"}, "name": {Name: "other"}, "folder of the executable": {BinDir: "/opt/bin"},
		"can't be the name": {Name: "../../evil"}, "line break": {Env: []string{"KNARR_X=a\nb"}},
	} {
		o.Source, o.DataDir = f.source, "/var/lib/knarr"
		if _, err := f.PlanInstall(t.Context(), o); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !slices.Equal(f.files(t), before) {
		t.Error("something was changed")
	}
}

func TestRemovalLeavesTheMachineAsItWas(t *testing.T) {
	for _, marker := range []string{systemdMarker, openRCMarker} {
		f := newFake(t, marker)
		f.put(t, "/usr/bin/ctr", "the user's own")
		before := f.files(t)
		f.install(t, Options{Name: "knarr-test", SetDataDir: true, Key: []byte("k")})
		f.put(t, "/etc/knarr/registries.yaml", "made later")
		r, err := f.Read()
		if err != nil {
			t.Fatal(err)
		}
		f.said = nil
		stop, rest := f.PlanRemove(r, false)
		for _, p := range []*Plan{stop, rest} {
			if err := p.Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if after := f.files(t); !slices.Equal(after, before) {
			t.Errorf("before\n%s\nafter\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
		if len(f.said) < 2 {
			t.Errorf("the init system was told %q", f.said)
		}
		if _, err := f.Read(); !errors.Is(err, ErrNotInstalled) {
			t.Errorf("after the removal: %v", err)
		}
	}
}

func TestRemovalLeavesWhatWasThereBefore(t *testing.T) {
	f := newFake(t, systemdMarker)
	f.put(t, "/etc/knarr/config.yaml", "debug: true\n")
	before := f.files(t)
	r := f.install(t, Options{}).Record
	stop, rest := f.PlanRemove(r, false)
	for _, p := range []*Plan{stop, rest} {
		if err := p.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if after := f.files(t); !slices.Equal(after, before) {
		t.Errorf("before\n%s\nafter\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

func TestOpenRCScriptIsAScript(t *testing.T) {
	f := newFake(t, openRCMarker)
	args := []string{"--node-label", "a='b c'", `--x=$"\`}
	f.install(t, Options{Args: args, Env: []string{"KNARR_DEBUG=true"}})
	if want := []string{"rc-update add knarr default", "rc-service knarr start"}; !slices.Equal(f.said, want) {
		t.Errorf("OpenRC was told %q", f.said)
	}
	script := f.path("/etc/init.d/knarr")
	if st, err := os.Stat(script); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("the script: %v, %v", st, err)
	}
	// OpenRC evaluates the arguments once more, which yields the words again.
	out, err := exec.Command("sh", "-euc", `RC_SVCNAME=knarr; . "$1"; eval "set -- $command_args"; printf '%s\n' "$@"; depend() { :; }; start_pre`, "sh", script).CombinedOutput()
	if want := strings.Join(append([]string{"server"}, args...), "\n") + "\n"; err != nil || string(out) != want {
		t.Errorf("the words are %q, want %q: %v", out, want, err)
	}
	if !strings.Contains(f.read(t, "/etc/init.d/knarr"), "supervisor=\"supervise-daemon\"\n") {
		t.Error("nobody starts it again")
	}
}

func TestWithARootNoCommandIsRun(t *testing.T) {
	f := newFake(t, systemdMarker)
	f.Run = nil
	before := f.files(t)
	p := f.install(t, Options{})
	if strings.Contains(p.String(), "systemctl") || strings.Contains(p.String(), "start ") {
		t.Errorf("the plan is\n%s", p)
	}
	// It starts when that machine boots.
	link := "/etc/systemd/system/multi-user.target.wants/knarr.service"
	if to, err := os.Readlink(f.path(link)); err != nil || to != "../knarr.service" {
		t.Errorf("%s leads to %q: %v", link, to, err)
	}
	if p := f.install(t, Options{}); len(p.Steps) > 0 {
		t.Errorf("the second time\n%s", p)
	}
	stop, rest := f.PlanRemove(p.Record, false)
	for _, p := range []*Plan{stop, rest} {
		if err := p.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if after := f.files(t); !slices.Equal(after, before) {
		t.Errorf("before\n%s\nafter\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}
