package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
)

// A Handle is by what another program of root's finds a running host.
type Handle struct {
	Name    string     `json:"name"`
	Addr    netip.Addr `json:"addr"`
	PID     int        `json:"pid"` // the host's first process
	Disk    string     `json:"disk"`
	Cgroups cgroups    `json:"cgroups"`
}

// Handle tells where the host is until it ends or reboots.
func (h *Host) Handle() Handle {
	return Handle{Name: h.cfg.Name, Addr: h.addr, PID: h.PID(), Disk: h.Disk(), Cgroups: h.cgroups}
}

// Disk is the folder of the machine that is the host's file system: its /var, /tmp,
// /root and /opt. What is written to /etc and /run is elsewhere.
func (h *Host) Disk() string { return DiskOf(h.lab.dir, h.cfg.Name) }

// DiskOf is the Disk of a host in a lab with that folder, be they there or not: what
// is put there before is found by the host.
func DiskOf(labDir, host string) string { return filepath.Join(labDir, host, diskDir) }

// Open gives a host that another program made, to run programs in it, to connect
// from it and to reach its files. Closing it lets go of it and does not end it.
// That program must be alive, so that the handle is true.
func Open(handle Handle) (*Host, error) {
	process, err := os.FindProcess(handle.PID)
	if err != nil {
		return nil, fmt.Errorf("find host %s: %w", handle.Name, err)
	}
	run := &running{init: &exec.Cmd{Process: process}}
	if run.pid, err = run.namespace("pid"); err == nil {
		run.net, err = run.namespace("net")
	}
	h := &Host{
		cfg: HostConfig{Name: handle.Name}, addr: handle.Addr, cgroups: handle.Cgroups,
		run: run, cmds: map[*Cmd]struct{}{},
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("find host %s: %w", handle.Name, err), h.Close())
	}
	return h, nil
}

// letGo forgets a host that is another program's.
func (h *Host) letGo() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	run := h.run
	h.run = nil
	if run == nil {
		return nil
	}
	for _, f := range []*os.File{run.pid, run.net} {
		if f != nil {
			f.Close()
		}
	}
	return run.init.Process.Release()
}
