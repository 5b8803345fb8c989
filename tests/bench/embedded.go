package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// embedded times a control plane in a Go program, and the pair that envtest starts
// beside it, both by the program in the folder embedded.
func (b *bench) embedded(ctx context.Context, s subject) error {
	program, err := b.buildEmbedded(ctx)
	if err != nil {
		return err
	}
	way, env := "knarr", []string{"TMPDIR=" + b.work}
	if p, ok := s.(*peer); ok {
		way, env = "envtest", append(env, "KUBEBUILDER_ASSETS="+p.programs.dir)
	}
	out, err := command(ctx, b.work, env, program, way)
	if err != nil {
		return err
	}
	var took map[string]float64
	if err := json.Unmarshal([]byte(out), &took); err != nil {
		return fmt.Errorf("read what %s printed: %w", program, err)
	}
	for name, seconds := range took {
		b.results.of(s.name()).add("embedded."+name, seconds)
	}
	return nil
}

// buildEmbedded builds the program with the flags of this one's environment, so
// that it shares what was compiled.
func (b *bench) buildEmbedded(ctx context.Context) (string, error) {
	root, err := command(ctx, "", nil, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/knarr-dev/knarr")
	if err != nil {
		return "", fmt.Errorf("build the program with a control plane: %w", err)
	}
	program := filepath.Join(b.work, "embedded")
	if _, err := command(ctx, root, nil, "go", "build", "-ldflags=-s -w", "-o", program, "./tests/bench/embedded"); err != nil {
		return "", fmt.Errorf("build the program with a control plane: %w", err)
	}
	return program, nil
}

// apartCalm is how long a control plane has been ready when its memory is measured.
const apartCalm = 60 * time.Second

// apart times knarr server --control-plane-only as a user has it, and measures its
// memory a minute later.
func (b *bench) apart(ctx context.Context, k *knarr) (err error) {
	cmd := exec.CommandContext(ctx, k.file, "server", "--control-plane-only")
	cmd.Env = append(os.Environ(), "TMPDIR="+b.work)
	told, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	drained := make(chan struct{})
	defer func() {
		err = errors.Join(err, cmd.Process.Signal(syscall.SIGTERM))
		<-drained // Wait closes the pipe
		err = errors.Join(err, cmd.Wait())
	}()
	ready, said := make(chan struct{}), &strings.Builder{}
	go func() {
		defer close(drained)
		isReady := false
		for lines := bufio.NewScanner(told); lines.Scan(); {
			if !isReady && strings.Contains(lines.Text(), "msg=ready ") {
				isReady = true
				close(ready)
			}
			if !isReady {
				fmt.Fprintln(said, lines.Text())
			}
		}
	}()
	select {
	case <-ready:
	case <-drained:
		return fmt.Errorf("knarr server --control-plane-only was not ready: %s", said)
	}
	b.results.of(knarrName).add("apart.ready", time.Since(begin).Seconds())
	select {
	case <-time.After(apartCalm):
	case <-ctx.Done():
		return ctx.Err()
	}
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", cmd.Process.Pid))
	if err != nil {
		return err
	}
	pss, _, err := parseRollup(string(rollup))
	if err != nil {
		return err
	}
	b.results.of(knarrName).add("apart.pss", float64(pss)/(1<<20))
	return nil
}
