package service

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/knarr-dev/knarr/pkg/durable"
)

// Options say what to install.
type Options struct {
	// Name is the unit's. Default: that of the installation there is, else knarr.
	Name string
	// Role is server or agent. Default: that of the installation there is, else
	// server. Args follow it. Nil: they stay as they are.
	Role string
	Args []string
	// Env are variables for the unit, NAME=VALUE. They are added to those that it
	// has; one with no value is removed.
	Env []string
	// Source is the executable to install. knarr-crictl is taken from beside it.
	Source string
	// BinDir defaults to that of the installation there is, else DefaultBinDir.
	BinDir string
	// SetDataDir writes DataDir where every command of Knarr reads it. DataDir and
	// RunDir are as configured, for the record.
	SetDataDir      bool
	DataDir, RunDir string
	// Key is the public key of releases, PEM. Empty: it stays as it is.
	Key []byte
	// Init defaults to what the machine has.
	Init Init
	// SkipStart leaves the service as it is, SkipEnable does not have it started
	// at boot.
	SkipStart, SkipEnable bool
}

// Plan is what is to be done, step by step. Without steps all is done already.
type Plan struct {
	Steps  []Step
	Record *Record // of what will be
	Before *Record // of what was; nil if this is the first installation
}

// Step is a part of a plan.
type Step struct {
	Text string // tells a person what is done
	do   func(context.Context) error
}

// String lists the steps, one a line.
func (p *Plan) String() string {
	var b strings.Builder
	for _, s := range p.Steps {
		b.WriteString(s.Text + "\n")
	}
	return b.String()
}

// Apply does what is planned. After a failure the rest is not done; planning and
// applying again goes on from there.
func (p *Plan) Apply(ctx context.Context) error {
	for _, s := range p.Steps {
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.Text, err)
		}
	}
	return nil
}

// planner puts a plan together.
type planner struct {
	m    *Machine
	o    Options
	plan *Plan
	r    *Record
	// changed is set if the service has to be started anew for what is planned.
	changed bool
}

func (p *planner) step(text string, do func(context.Context) error) {
	p.plan.Steps = append(p.plan.Steps, Step{text, do})
}

// PlanInstall compares the machine with what o asks for. It changes nothing.
func (m *Machine) PlanInstall(ctx context.Context, o Options) (*Plan, error) {
	before, err := m.Read()
	if err != nil && !errors.Is(err, ErrNotInstalled) {
		return nil, err
	}
	p := &planner{m: m, o: o, plan: &Plan{Before: before}}
	if p.r, err = m.intended(o, before); err != nil {
		return nil, err
	}
	p.plan.Record = p.r
	env, err := m.intendedEnv(o, before, p.r)
	if err != nil {
		return nil, err
	}

	if err := p.copy(o.Source, p.r.Executable()); err != nil {
		return nil, err
	}
	tools := []string{"kubectl", "ctr"}
	beside, there := filepath.Join(filepath.Dir(o.Source), crictl), filepath.Join(p.r.BinDir, crictl)
	if _, err := os.Stat(beside); err == nil {
		if err := p.copy(beside, there); err != nil {
			return nil, err
		}
		tools = append(tools, "crictl")
	} else if m.exists(there) {
		tools = append(tools, "crictl")
	}
	for _, tool := range tools {
		p.link(tool)
	}
	if o.SetDataDir {
		if err := p.write(dropIn, 0o644, "data-dir: "+yamlQuote(o.DataDir)+"\n"); err != nil {
			return nil, err
		}
	}
	if err := p.write(p.r.EnvFile(), 0o600, env); err != nil {
		return nil, err
	}
	if len(o.Key) > 0 {
		if err := p.write(KeyFile, 0o644, string(o.Key)); err != nil {
			return nil, err
		}
	}
	if unit := p.r.unitFile(); unit != "" {
		mode := fs.FileMode(0o644)
		if p.r.Init == OpenRC {
			mode = 0o755
			p.r.Files = append(p.r.Files, "/var/log/"+p.r.Name+".log")
		}
		had := len(p.plan.Steps)
		if err := p.write(unit, mode, p.r.unit()); err != nil {
			return nil, err
		}
		if p.r.Init == Systemd && len(p.plan.Steps) > had {
			p.command("systemctl", "daemon-reload")
		}
	}
	p.enableInRoot()
	p.record()
	p.enable()
	p.start(ctx)
	return p.plan, nil
}

// intended is the record of what will be.
func (m *Machine) intended(o Options, before *Record) (*Record, error) {
	r := &Record{Name: DefaultName, Role: "server", BinDir: DefaultBinDir, Init: m.DetectInit()}
	if before != nil {
		*r = *before
		r.Files, r.Links, r.Dirs = slices.Clone(before.Files), slices.Clone(before.Links), slices.Clone(before.Dirs)
		r.Args = slices.Clone(before.Args)
	}
	if o.Name != "" {
		r.Name = o.Name
	}
	if o.Role != "" {
		r.Role = o.Role
	}
	if o.Args != nil {
		r.Args = o.Args
	}
	if o.BinDir != "" {
		r.BinDir = filepath.Clean(o.BinDir)
	}
	if o.Init != "" {
		r.Init = o.Init
	}
	r.DataDir, r.RunDir = o.DataDir, o.RunDir
	if !validName(r.Name) {
		return nil, fmt.Errorf("%q can't be the name of a unit: use letters, digits, dots, dashes and underscores", r.Name)
	}
	if !filepath.IsAbs(r.BinDir) {
		return nil, fmt.Errorf("folder of the executable %q: give it from / on", r.BinDir)
	}
	if before == nil {
		return r, nil
	}
	for _, c := range []struct{ what, old, now string }{
		{"the name", before.Name, r.Name}, {"the folder of the executable", before.BinDir, r.BinDir},
		{"the init system", string(before.Init), string(r.Init)}, {"the role", before.Role, r.Role},
		{"the data dir", before.DataDir, r.DataDir},
	} {
		if c.old != c.now {
			return nil, fmt.Errorf("%s of the installation here is %s: to have %s, run %q first, which removes the node", c.what, c.old, c.now, "knarr uninstall")
		}
	}
	return r, nil
}

// intendedEnv is the text of the environment file.
func (m *Machine) intendedEnv(o Options, before, r *Record) (string, error) {
	var vars []string
	if before != nil {
		text, err := os.ReadFile(m.path(before.EnvFile()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("read the environment of the installation here: %w", err)
		}
		vars = parseEnvironment(string(text))
	}
	for _, v := range o.Env {
		name, value, _ := strings.Cut(v, "=")
		vars = slices.DeleteFunc(vars, func(have string) bool { return strings.HasPrefix(have, name+"=") })
		if value != "" {
			vars = append(vars, v)
		}
	}
	slices.Sort(vars)
	return environment(vars)
}

// Environment is what the unit of the installation gets: NAME=VALUE.
func (m *Machine) Environment(r *Record) []string {
	text, _ := os.ReadFile(m.path(r.EnvFile())) // none is an empty one
	return parseEnvironment(string(text))
}

// made records a file and the folders that it needs.
func (p *planner) made(path string, list *[]string) {
	if !slices.Contains(*list, path) {
		*list = append(*list, path)
	}
	var dirs []string
	for d := filepath.Dir(path); !p.m.exists(d) && !slices.Contains(p.r.Dirs, d); d = filepath.Dir(d) {
		dirs = append(dirs, d)
	}
	slices.Reverse(dirs)
	p.r.Dirs = append(p.r.Dirs, dirs...)
}

// write plans a file, unless it is as it should be.
func (p *planner) write(path string, mode fs.FileMode, text string) error {
	have, err := os.ReadFile(p.m.path(path))
	if err == nil && string(have) == text {
		if st, err := os.Stat(p.m.path(path)); err == nil && st.Mode().Perm() == mode {
			return nil
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	p.made(path, &p.r.Files)
	p.changed = true
	p.step(fmt.Sprintf("write %s (mode %04o)", path, mode), func(context.Context) error {
		return p.m.replace(path, mode, strings.NewReader(text))
	})
	return nil
}

// copy plans a copy of a program, unless the same is there.
func (p *planner) copy(from, to string) error {
	if from == "" {
		return errors.New("no executable to install was named")
	}
	same, err := sameContent(from, p.m.path(to))
	if err != nil {
		return fmt.Errorf("compare %s with %s: %w", from, to, err)
	}
	if same {
		// One that was there before any installation is not ours to remove; the
		// program that installs itself where it lies becomes ours.
		if p.plan.Before == nil {
			p.made(to, &p.r.Files)
		}
		return nil
	}
	p.made(to, &p.r.Files)
	p.changed = true
	p.step(fmt.Sprintf("copy %s to %s", from, to), func(context.Context) error {
		f, err := os.Open(from)
		if err != nil {
			return err
		}
		defer f.Close()
		return p.m.replace(to, 0o755, f)
	})
	return nil
}

// link plans a link by a tool's name, where the machine has no such tool.
func (p *planner) link(tool string) {
	path := filepath.Join(p.r.BinDir, tool)
	for _, dir := range []string{p.r.BinDir, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/snap/bin"} {
		if p.m.exists(filepath.Join(dir, tool)) {
			return
		}
	}
	p.made(path, &p.r.Links)
	p.step(fmt.Sprintf("link %s to %s", path, executable), func(context.Context) error {
		return os.Symlink(executable, p.m.path(path))
	})
}

// record plans the record as the first step, so that what is made after it is
// never forgotten.
func (p *planner) record() {
	p.made(RecordFile, &p.r.Files)
	slices.Sort(p.r.Files)
	p.r.Files = slices.Compact(p.r.Files)
	if !p.o.SkipEnable && p.r.Init != None {
		p.r.Enabled = true
	}
	text, err := json.MarshalIndent(p.r, "", "  ")
	if err != nil {
		return // strings alone can't fail
	}
	text = append(text, '\n')
	if have, err := os.ReadFile(p.m.path(RecordFile)); err == nil && bytes.Equal(have, text) {
		return
	}
	p.plan.Steps = slices.Insert(p.plan.Steps, 0, Step{fmt.Sprintf("write %s (mode 0600)", RecordFile), func(context.Context) error {
		return p.m.replace(RecordFile, 0o600, bytes.NewReader(text))
	}})
}

func (p *planner) command(argv ...string) {
	if p.m.Root != "" && p.m.Run == nil {
		return
	}
	p.step("run "+strings.Join(argv, " "), func(ctx context.Context) error { return p.m.run(ctx, argv...) })
}

// enableInRoot has the service start at the boot of a machine that does not run
// now: by the link that its init system would make.
func (p *planner) enableInRoot() {
	if p.o.SkipEnable || p.m.Root == "" || p.m.Run != nil {
		return
	}
	path, to := "", ""
	switch p.r.Init {
	case Systemd:
		path, to = "/etc/systemd/system/multi-user.target.wants/"+p.r.Name+".service", "../"+p.r.Name+".service"
	case OpenRC:
		path, to = "/etc/runlevels/default/"+p.r.Name, p.r.unitFile()
	}
	if path == "" || p.m.exists(path) {
		return
	}
	p.made(path, &p.r.Files)
	p.step(fmt.Sprintf("link %s to %s", path, to), func(context.Context) error {
		if err := os.MkdirAll(filepath.Dir(p.m.path(path)), 0o755); err != nil {
			return err
		}
		return os.Symlink(to, p.m.path(path))
	})
}

func (p *planner) enable() {
	if p.o.SkipEnable || p.plan.Before != nil && p.plan.Before.Enabled {
		return
	}
	switch p.r.Init {
	case Systemd:
		p.command("systemctl", "enable", p.r.Name)
	case OpenRC:
		p.command("rc-update", "add", p.r.Name, "default")
	}
}

// start plans the start, or a restart if anything has changed.
func (p *planner) start(ctx context.Context) {
	if p.o.SkipStart || p.r.Init == None || p.m.Root != "" && p.m.Run == nil {
		return
	}
	running := p.plan.Before != nil && p.m.running(ctx, p.r)
	if running && !p.changed {
		return
	}
	text, do := "start "+p.r.Name, p.m.Start
	if running {
		text, do = "restart "+p.r.Name+" (its pods go on)", p.m.restart
	}
	p.step(text, func(ctx context.Context) error { return do(ctx, p.r) })
}

// replace puts a file in its place in one step, so that at no time a part of it
// is there, also after a power cut.
func (m *Machine) replace(path string, mode fs.FileMode, from io.Reader) error {
	path = m.path(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return durable.Replace(path, mode, from)
}

func sameContent(a, b string) (bool, error) {
	sa, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	sb, err := os.Stat(b)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if os.SameFile(sa, sb) {
		return true, nil
	}
	if sa.Size() != sb.Size() {
		return false, nil
	}
	fa, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer fb.Close()
	bufA, bufB := make([]byte, 1<<16), make([]byte, 1<<16)
	for {
		na, errA := io.ReadFull(fa, bufA)
		nb, errB := io.ReadFull(fb, bufB)
		if !bytes.Equal(bufA[:na], bufB[:nb]) {
			return false, nil
		}
		if errA != nil || errB != nil {
			done := func(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
			if done(errA) && done(errB) {
				return true, nil
			}
			return false, errors.Join(errA, errB)
		}
	}
}

// yamlQuote writes a string of YAML, in its form that is JSON's too.
func yamlQuote(s string) string {
	b, _ := json.Marshal(s) // a string can't fail
	return string(b)
}
