package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"
)

// A Cmd is an [exec.Cmd] that runs in a host. Its Process is the program
// itself, not a helper: signals and exit status are the program's, and Kill
// ends it and only it.
//
// Start returns once the program's own code is about to run, so that a clock
// started then measures the program alone; a program that isn't there is an
// error of Start. The program is looked up on the host's PATH. The environment
// starts small (PATH, HOME, TERM, LANG), not as a copy of this program's; the
// working folder is / or Dir, in the host. It has a session of its own: set
// SysProcAttr to nil for one that should own the terminal. SysProcAttr must
// not ask for Pdeathsig: the thread that starts it ends at once.
type Cmd struct {
	*exec.Cmd
	host *Host
	name string
	once sync.Once
	err  error
}

// Command makes a Cmd that runs in all of the host's namespaces and its
// cgroup. It is killed when ctx ends.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	c := exec.CommandContext(ctx, "/proc/self/exe")
	c.Args = append([]string{name}, args...)
	c.Env = hostEnv()
	c.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	return &Cmd{Cmd: c, host: h, name: name}
}

func hostEnv() []string {
	env := []string{"PATH=" + hostPath, "HOME=/root", "LANG=C.UTF-8"}
	if term := os.Getenv("TERM"); term != "" {
		env = append(env, "TERM="+term)
	}
	return env
}

// Start starts the program. See [Cmd].
func (c *Cmd) Start() error {
	if err := c.start(); err != nil {
		return fmt.Errorf("run %s in host %s: %w", c.name, c.host.cfg.Name, err)
	}
	return nil
}

func (c *Cmd) start() error {
	h := c.host
	// Held until the program runs: the host can't end in between.
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.run == nil {
		return errOff
	}
	report, reportOut, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	spec, err := json.Marshal(enterSpec{
		Init: h.run.init.Process.Pid, Cgroups: h.cgroups.dirs(),
		Report: 3 + len(c.ExtraFiles), Dir: c.Dir,
	})
	if err != nil {
		reportOut.Close()
		return err
	}
	c.Dir = "/" // the host's folder is entered inside
	c.Env = append(c.Env, roleEnv+"="+roleEnter, specEnv+"="+string(spec))
	c.ExtraFiles = append(c.ExtraFiles, reportOut)
	err = onThread(func() error {
		// Only children of this thread are in the pid namespace, not itself.
		if err := enter(h.run.pid); err != nil {
			return err
		}
		return c.Cmd.Start()
	})
	reportOut.Close()
	if err != nil {
		return err
	}
	// Closed by the program's own start, or by a child that says why not.
	said, err := io.ReadAll(report)
	if err == nil && len(said) > 0 {
		err = errors.New(string(said))
	}
	if err != nil {
		_ = c.Process.Kill() // it is about to end anyway
		_ = c.Cmd.Wait()
		return err
	}
	h.cmds[c] = struct{}{}
	return nil
}

// Wait waits for the program to end; see [exec.Cmd.Wait]. It may be called
// more than once.
func (c *Cmd) Wait() error {
	if c.Process == nil {
		return errors.New("lab: not started")
	}
	c.once.Do(func() {
		c.err = c.Cmd.Wait()
	})
	c.host.mu.Lock()
	delete(c.host.cmds, c)
	c.host.mu.Unlock()
	return c.err
}

// Run starts the program and waits for its end.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the program and returns what it wrote to standard output. An
// [exec.ExitError] carries what it wrote to standard error.
func (c *Cmd) Output() ([]byte, error) {
	var out, errs bytes.Buffer
	c.Stdout = &out
	if c.Stderr == nil {
		c.Stderr = &errs
	}
	err := c.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		exit.Stderr = errs.Bytes()
	}
	return out.Bytes(), err
}

// CombinedOutput runs the program and returns all that it wrote.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}
