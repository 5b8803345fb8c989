package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// throwaway times clusters that are thrown away, as a user's shell would: from
// the start of the command to its end.
func (b *bench) throwaway(ctx context.Context, k *knarr) error {
	home := filepath.Join(b.work, "home")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	env := []string{"HOME=" + home, "KUBECONFIG=" + filepath.Join(home, "config"), "KNARR_THROWAWAY_DIR=" + filepath.Join(b.work, "clusters"), "KNARR_CACHE_DIR=" + filepath.Join(b.work, "cache")}
	// The command notes when, by the machine's clock, as this program does.
	moment := filepath.Join(b.work, "running")
	pod := fmt.Sprintf("kubectl run %[1]s --image=knarr.dev/test:1 --image-pull-policy=Never --command -- testbox serve --port 8080 >/dev/null && "+
		"kubectl wait pod/%[1]s --for=jsonpath='{.status.phase}'=Running --timeout=2m >/dev/null && date +%%s%%N >%[2]s", podName, moment)
	for _, m := range []struct {
		key  string
		args []string
	}{
		{"throwaway.true", []string{"run", "--", "true"}},
		{"throwaway.pod", []string{"run", "--image-archive", k.image, "--", "bash", "-c", pod}},
		{"throwaway.up", []string{"up", "--name", "bench", "--nodes", "3"}},
		{"throwaway.down", []string{"down", "bench"}},
	} {
		begin := time.Now()
		if _, err := command(ctx, b.work, env, k.file, m.args...); err != nil {
			return err
		}
		b.results.of(knarrName).add(m.key, time.Since(begin).Seconds())
		if m.key != "throwaway.pod" {
			continue
		}
		text, err := os.ReadFile(moment)
		if err != nil {
			return err
		}
		ns, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			return fmt.Errorf("read when the pod was Running: %w", err)
		}
		b.results.of(knarrName).add("throwaway.running", time.Unix(0, ns).Sub(begin).Seconds())
	}
	return nil
}
