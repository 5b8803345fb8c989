package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/pkg/status"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

const (
	lookUpPod  = "lookups"
	lookUpName = "kubernetes.default.svc.cluster.local"
	// lookUpEvery is the time between two.
	lookUpEvery = 50 * time.Millisecond

	spewPod = "spew"
	// spewRest is what follows the number in each of its lines, in bytes.
	spewRest = 86
	// absence is how long the process stays away.
	absence = 10 * time.Second
	// spewTime is how long the pod writes before and after: little enough that
	// the kubelet, which does it at 10 MiB, never rotates its log.
	spewTime = time.Second
	// shareDir is where the pod reports, in the host.
	shareDir = "/var/lib/bench"
)

// restarts measures what pods notice of Knarr's restarts.
func (b *bench) restarts(ctx context.Context, n *node) error {
	s := b.results.of(n.subject.name())
	if _, err := n.timeStart(ctx); err != nil {
		return err
	}
	if err := n.planned(ctx, s); err != nil {
		return err
	}
	b.say("  planned: longest look-up %.3f s", s.Samples["restart.lookup"][len(s.Samples["restart.lookup"])-1])
	if err := n.absent(ctx, s); err != nil {
		return err
	}
	b.say("  absent: longest write %.3f s", s.Samples["absence.blocked"][len(s.Samples["absence.blocked"])-1])
	return nil
}

// planned restarts Knarr in place, while a pod looks up a name twenty times a
// second, whether or not it has got the answers to those before.
func (n *node) planned(ctx context.Context, s *system) error {
	var log string
	err := n.while(ctx, "look-ups", func(ctx context.Context) (err error) {
		pod := kube.Pod(lookUpPod, kube.Testbox("probe", "lookup", lookUpName, "--every="+lookUpEvery.String(), "--timeout=20s"))
		log, err = n.runPod(ctx, pod)
		return err
	})
	if err != nil {
		return err
	}
	if err := n.rest(ctx, calmTime); err != nil {
		return err
	}
	return n.while(ctx, "planned restart", func(ctx context.Context) error {
		before, err := n.status(ctx)
		if err != nil {
			return err
		}
		earlier, err := lookUps(log)
		if err != nil {
			return err
		}
		first, begin := len(earlier), time.Now()
		if err := n.cmd.Process.Signal(unix.SIGHUP); err != nil {
			return err
		}
		err = try(ctx, func() (bool, error) {
			now, err := n.status(ctx)
			return err == nil && now.Ready && now.StartedAt.After(before.StartedAt), err
		})
		if err != nil {
			return fmt.Errorf("wait for the new process: %w", err)
		}
		// At least as many as were begun meanwhile. One that waits is missing.
		end := first + int(time.Since(begin)/lookUpEvery) + 1
		return try(ctx, func() (bool, error) {
			all, err := lookUps(log)
			if err != nil {
				return true, err
			}
			for i := range end {
				if _, ok := all[i]; !ok {
					return false, fmt.Errorf("look-up %d of %d has not ended", i, end)
				}
			}
			longest, failed := time.Duration(0), 0
			for i := first; i < end; i++ {
				longest = max(longest, all[i].took)
				if all[i].result != "ok" {
					failed++
				}
			}
			s.add("restart.lookup", longest.Seconds())
			s.add("restart.failed", float64(failed))
			return true, nil
		})
	})
}

// absent stops Knarr for a while, in which a pod writes a megabyte a second to
// its log.
func (n *node) absent(ctx context.Context, s *system) error {
	if err := os.MkdirAll(n.host.Path(shareDir), 0o755); err != nil {
		return err
	}
	var log string
	err := n.while(ctx, "writer", func(ctx context.Context) (err error) {
		log, err = n.runPod(ctx, kube.Pod(spewPod, kube.Testbox("spew", "--rate=1MB/s", "--report="+shareDir+"/longest"),
			kube.Mount("share", shareDir, kube.HostFolder(shareDir))))
		return err
	})
	if err != nil {
		return err
	}
	if err := n.rest(ctx, spewTime); err != nil {
		return err
	}
	if err := n.stop(); err != nil {
		return err
	}
	select {
	case <-time.After(absence):
	case <-ctx.Done():
		return ctx.Err()
	}
	size, err := fileSize(log)
	if err != nil {
		return err
	}
	if err := n.start(ctx); err != nil {
		return err
	}
	err = n.while(ctx, "absence", func(ctx context.Context) error {
		return try(ctx, func() (bool, error) {
			now, err := fileSize(log)
			return now > size, err
		})
	})
	if err != nil {
		return err
	}
	if err := n.rest(ctx, spewTime); err != nil {
		return err
	}
	report, err := os.ReadFile(n.host.Path(shareDir + "/longest"))
	if err != nil {
		return err
	}
	longest, err := time.ParseDuration(strings.TrimSpace(string(report)))
	if err != nil {
		return err
	}
	text, err := containerLog(log)
	if err != nil {
		return err
	}
	lost, err := linesLost(text)
	if err != nil {
		return err
	}
	s.add("absence.blocked", longest.Seconds())
	s.add("absence.lost", float64(lost))
	return nil
}

func (n *node) status(ctx context.Context) (*status.Report, error) {
	return status.Fetch(ctx, n.host.Path("/run/knarr/status.sock"))
}

// runPod creates a pod and waits until it has logged something. The log is that
// of its only container, which has its name.
func (n *node) runPod(ctx context.Context, pod *corev1.Pod) (log string, err error) {
	client, hangUp, err := n.client()
	if err != nil {
		return "", err
	}
	defer hangUp()
	if err := createPod(ctx, client, pod); err != nil {
		return "", err
	}
	if err := awaitPod(ctx, client, pod.Name); err != nil {
		return "", err
	}
	pod, err = client.CoreV1().Pods("default").Get(ctx, pod.Name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	log = n.host.Path(fmt.Sprintf("/var/log/pods/%s_%s_%s/%s/0.log", pod.Namespace, pod.Name, pod.UID, pod.Name))
	return log, try(ctx, func() (bool, error) {
		size, err := fileSize(log)
		return size > 0, err
	})
}

func fileSize(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// containerLog is what a container wrote, out of a log of one file.
func containerLog(path string) (string, error) {
	files, err := filepath.Glob(path + "*")
	if err != nil {
		return "", err
	}
	if len(files) > 1 {
		return "", fmt.Errorf("the kubelet has rotated %s: %d files", path, len(files))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for record := range strings.Lines(string(data)) {
		// A time, a stream, and whether the line is whole or only part of one.
		f := strings.SplitN(record, " ", 4)
		if len(f) < 4 || !strings.HasSuffix(record, "\n") {
			continue // being written
		}
		if f[2] == "P" {
			f[3] = strings.TrimSuffix(f[3], "\n")
		}
		text.WriteString(f[3])
	}
	return text.String(), nil
}

type lookUp struct {
	took   time.Duration
	result string // ok, or what went wrong
}

// lookUps are those that have ended, by their number.
func lookUps(log string) (map[int]lookUp, error) {
	text, err := containerLog(log)
	if err != nil {
		return nil, err
	}
	all := map[int]lookUp{}
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 3)
		if len(f) < 3 {
			return nil, fmt.Errorf("log of look-ups: line %q", line)
		}
		i, err := strconv.Atoi(f[0])
		if err != nil {
			return nil, fmt.Errorf("log of look-ups: %w", err)
		}
		took, err := time.ParseDuration(f[1])
		if err != nil {
			return nil, fmt.Errorf("log of look-ups: %w", err)
		}
		all[i] = lookUp{took, f[2]}
	}
	return all, nil
}

// linesLost are those that lack in a text of numbered lines, from the first to
// the last that is there.
func linesLost(text string) (int, error) {
	seen, last := map[int]bool{}, -1
	for line := range strings.Lines(text) {
		number, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		i, err := strconv.Atoi(number)
		if err != nil || len(rest) != spewRest {
			continue // a line cut short is lost
		}
		seen[i], last = true, max(last, i)
	}
	if last < 0 {
		return 0, errors.New("no numbered line was logged")
	}
	return last + 1 - len(seen), nil
}
