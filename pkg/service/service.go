// Package service installs Knarr on a machine: its executable, a unit of the
// init system, and the settings it starts with. What it does is planned first,
// so that it can be shown, and recorded, so that it can be taken back.
//
// What a running node makes on the machine is package host's to know.
package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Places on the machine. They are the same for every installation, so that a
// machine has one at most.
const (
	ConfigDir  = "/etc/knarr"
	RecordFile = ConfigDir + "/install.json"
	// KeyFile holds the public key that releases are signed with.
	KeyFile = ConfigDir + "/release.pub"
	// dropIn is read by every command of Knarr, with the configuration.
	dropIn = ConfigDir + "/config.yaml.d/00-install.yaml"

	// DefaultBinDir is where the executable goes.
	DefaultBinDir = "/usr/local/bin"
	// DefaultName is the unit's.
	DefaultName = "knarr"

	executable = "knarr"
	crictl     = "knarr-crictl"
)

// Init is what starts services on a machine.
type Init string

// The init systems. With None somebody else starts Knarr.
const (
	Systemd Init = "systemd"
	OpenRC  Init = "openrc"
	None    Init = "none"
)

// Inits are the values of an Init.
func Inits() []string { return []string{string(Systemd), string(OpenRC), string(None)} }

// Machine is what is worked on. The zero value is the real one.
type Machine struct {
	// Root is put before every path. With it, no command is run: the init system
	// that runs here is another's.
	Root string
	// Run runs a command of the init system. Default: the command itself, whose
	// output becomes part of the error.
	Run func(ctx context.Context, argv ...string) error
}

func (m *Machine) path(p string) string {
	if m.Root == "" {
		return p
	}
	return filepath.Join(m.Root, p)
}

func (m *Machine) run(ctx context.Context, argv ...string) error {
	if m.Run != nil {
		return m.Run(ctx, argv...)
	}
	if m.Root != "" {
		return nil
	}
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// exists tells whether there is a file, or a link even to nothing.
func (m *Machine) exists(p string) bool {
	_, err := os.Lstat(m.path(p))
	return err == nil
}

// DetectInit looks which init system the machine has.
func (m *Machine) DetectInit() Init {
	switch {
	case m.exists("/run/systemd/system"):
		return Systemd
	case m.exists("/sbin/openrc-run"):
		return OpenRC
	}
	return None
}

// SELinux tells whether SELinux is enforced.
func (m *Machine) SELinux() bool {
	text, err := os.ReadFile(m.path("/sys/fs/selinux/enforce"))
	return err == nil && strings.TrimSpace(string(text)) == "1"
}

// Record is what an installation did, kept in RecordFile.
type Record struct {
	// Name is the unit's, Role server or agent, Args what follows the role.
	Name string   `json:"name"`
	Role string   `json:"role"`
	Args []string `json:"args,omitempty"`
	Init Init     `json:"init"`
	// BinDir has the executable. DataDir, RunDir and Kubeconfig are as configured
	// when it was installed.
	BinDir  string `json:"binDir"`
	DataDir string `json:"dataDir"`
	RunDir  string `json:"runDir"`
	// Enabled is set if the unit starts at boot.
	Enabled bool `json:"enabled"`
	// Files and Dirs were made by the installation, Dirs from the top down. Links
	// lead to the executable.
	Files []string `json:"files"`
	Links []string `json:"links,omitempty"`
	Dirs  []string `json:"dirs,omitempty"`
}

// ErrNotInstalled is in the error of Read when there is no installation.
var ErrNotInstalled = errors.New("knarr is not installed here as a service")

// Read reads the record of the installation.
func (m *Machine) Read() (*Record, error) {
	text, err := os.ReadFile(m.path(RecordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no %s", ErrNotInstalled, RecordFile)
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of the installation: %w", err)
	}
	r := new(Record)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("read the record of the installation in %s (install again to have it made anew): %w", RecordFile, err)
	}
	if !validName(r.Name) {
		return nil, fmt.Errorf("read the record of the installation in %s: %q is no name of a unit", RecordFile, r.Name)
	}
	return r, nil
}

// Executable is where the installed program is.
func (r *Record) Executable() string { return filepath.Join(r.BinDir, executable) }

// EnvFile has the unit's environment.
func (r *Record) EnvFile() string { return filepath.Join(ConfigDir, r.Name+".env") }

// unitFile is where the init system reads the unit; empty without one.
func (r *Record) unitFile() string {
	switch r.Init {
	case Systemd:
		return "/etc/systemd/system/" + r.Name + ".service"
	case OpenRC:
		return "/etc/init.d/" + r.Name
	}
	return ""
}

// Start starts the service. It returns when the init system has been told, which
// for systemd and a server is when the cluster is ready.
func (m *Machine) Start(ctx context.Context, r *Record) error {
	switch r.Init {
	case Systemd:
		if r.Role == "agent" { // its server may start hours later
			return m.run(ctx, "systemctl", "start", "--no-block", r.Name)
		}
		return m.run(ctx, "systemctl", "start", r.Name)
	case OpenRC:
		return m.run(ctx, "rc-service", r.Name, "start")
	}
	return nil
}

// Stop stops the service, whose pods go on.
func (m *Machine) Stop(ctx context.Context, r *Record) error {
	switch r.Init {
	case Systemd:
		return m.run(ctx, "systemctl", "stop", r.Name)
	case OpenRC:
		return m.run(ctx, "rc-service", "--ifstarted", r.Name, "stop")
	}
	return nil
}

// restart starts it anew with another executable or other settings.
func (m *Machine) restart(ctx context.Context, r *Record) error {
	switch r.Init {
	case Systemd:
		argv := []string{"systemctl", "restart", r.Name}
		if r.Role == "agent" {
			argv = slices.Insert(argv, 2, "--no-block")
		}
		return m.run(ctx, argv...)
	case OpenRC:
		return m.run(ctx, "rc-service", r.Name, "restart")
	}
	return nil
}

func (m *Machine) running(ctx context.Context, r *Record) bool {
	switch r.Init {
	case Systemd:
		return m.run(ctx, "systemctl", "is-active", "--quiet", r.Name) == nil
	case OpenRC:
		return m.run(ctx, "rc-service", "--quiet", r.Name, "status") == nil
	}
	return true // nobody would start it
}

// validName tells whether a unit can have the name.
func validName(name string) bool {
	return name != "" && len(name) <= 64 && name[0] != '-' && name[0] != '.' && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}
