package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// PlanRemove undoes an installation. What a running node has made is not part of
// it: that has to be undone between the first step, which stops the service, and
// the others. With keepConfig the configuration's folder stays.
func (m *Machine) PlanRemove(r *Record, keepConfig bool) (stop, rest *Plan) {
	s, p := &planner{m: m, r: r, plan: &Plan{Before: r}}, &planner{m: m, r: r, plan: &Plan{Before: r}}
	switch r.Init {
	case Systemd:
		s.command("systemctl", "disable", r.Name)
		s.command("systemctl", "stop", r.Name)
	case OpenRC:
		s.command("rc-service", "--ifstarted", r.Name, "stop")
		if r.Enabled {
			s.command("rc-update", "del", r.Name)
		}
	}
	for _, path := range r.Links {
		if to, err := os.Readlink(m.path(path)); err == nil && (to == executable || to == r.Executable()) {
			p.remove(path)
		}
	}
	for _, path := range r.Files {
		// The record goes last: until then the removal can be repeated.
		if path != RecordFile && m.exists(path) {
			p.remove(path)
		}
	}
	if r.Init == Systemd {
		p.command("systemctl", "daemon-reload")
		// It may not have failed.
		p.step("forget that the unit may have failed", func(ctx context.Context) error {
			_ = m.run(ctx, "systemctl", "reset-failed", r.Name)
			return nil
		})
	}
	p.remove(RecordFile)
	for _, dir := range slices.Backward(r.Dirs) {
		if !m.exists(dir) {
			continue
		}
		if dir == ConfigDir && !keepConfig {
			p.step("remove "+dir+" with all that is in it", func(context.Context) error { return os.RemoveAll(m.path(dir)) })
			continue
		}
		p.step("remove "+dir+" if it is empty", func(context.Context) error {
			err := os.Remove(m.path(dir))
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EBUSY) {
				return nil
			}
			return err
		})
	}
	return s.plan, p.plan
}

func (p *planner) remove(path string) {
	p.step("remove "+path, func(context.Context) error {
		if err := os.Remove(p.m.path(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", filepath.Base(path), err)
		}
		return nil
	})
}
