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

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/pkg/durable"
	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// edgeName is the host, and the node, of an agent.
const edgeName = "edge"

// agent is `knarr agent` with its defaults.
type agent struct {
	*knarr
	url, token string
}

func (a *agent) command(ctx context.Context, h *lab.Host) *lab.Cmd {
	c := h.Command(ctx, knarrInHost, "agent", "--server", a.url)
	c.Env = append(c.Env, "KNARR_TOKEN="+a.token)
	return c
}

// agent measures a second machine that joins the server on n.
func (b *bench) agent(ctx context.Context, k *knarr, n *node) (err error) {
	if _, err := n.timeStart(ctx); err != nil {
		return err
	}
	token, err := os.ReadFile(n.host.Path(filepath.Join(knarrDataDir, "server/node-token")))
	if err != nil {
		return fmt.Errorf("read the server's token: %w", err)
	}
	own, err := k.copied(b.work)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(own.file)) }()
	a := &agent{knarr: own, url: fmt.Sprintf("https://%s:6443", n.host.Addr()), token: strings.TrimSpace(string(token))}
	edge := &node{subject: a, log: n.log}
	// The folder that the lab takes for the host's disk.
	if edge.disk, err = loopDisk(ctx, filepath.Join(n.lab.Dir(), edgeName)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, edge.disk.close()) }()
	if edge.host, err = n.lab.AddHost(ctx, lab.HostConfig{Name: edgeName, Binds: own.binds()}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, edge.host.Close()) }()
	if err := k.prepare(ctx, edge.host); err != nil {
		return err
	}
	if err := n.rest(ctx, calmTime); err != nil {
		return err
	}
	s := b.results.of(n.subject.name())
	if err := b.timeJoin(ctx, s, n, edge); err != nil {
		return err
	}
	if err := edge.restUntil(ctx, idleFrom); err != nil {
		return err
	}
	wire, err := onTheWire(ctx, edge.host)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := edge.idle(ctx, s, "agent", idleFrom, idleTo); err != nil {
		return err
	}
	after, err := onTheWire(ctx, edge.host)
	if err != nil {
		return err
	}
	s.add("agent.wire", float64(after-wire)/1024/time.Since(began).Seconds())
	mem, err := memory(edge.host.CgroupDirs(), edge.host.PID())
	if err != nil {
		return err
	}
	s.add("agent.knarr", mebibytes(mem.byProgram["knarr"]))
	return edge.stop()
}

// copied is the same program in a file of its own, as another machine has it. Two
// nodes that run one file share its pages: each would count half of them, and the
// kernel gives those back by two mebibytes or not at all.
func (k *knarr) copied(dir string) (*knarr, error) {
	from, err := os.Open(k.file)
	if err != nil {
		return nil, fmt.Errorf("copy the agent's executable: %w", err)
	}
	defer from.Close()
	to := filepath.Join(dir, "knarr-"+edgeName)
	if err := durable.Replace(to, 0o755, from); err != nil {
		return nil, fmt.Errorf("copy the agent's executable: %w", err)
	}
	return &knarr{file: to}, nil
}

// timeJoin starts an agent that knows nobody, with a pod that waits for its node.
func (b *bench) timeJoin(ctx context.Context, s *system, n, edge *node) error {
	client, hangUp, err := n.client()
	if err != nil {
		return err
	}
	defer hangUp()
	const name = "on-the-edge"
	if err := createPod(ctx, client, kube.Pod(name, kube.Node(corev1.LabelHostname, edgeName))); err != nil {
		return err
	}
	if err := edge.start(ctx); err != nil {
		return err
	}
	var ready, running time.Duration
	err = edge.while(ctx, "join", func(ctx context.Context) error {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return edge.note(&ready, awaitNode(ctx, client, edgeName)) })
		g.Go(func() error { return edge.note(&running, awaitPod(ctx, client, name)) })
		return g.Wait()
	})
	if err != nil {
		return err
	}
	s.add("agent.node", ready.Seconds())
	s.add("agent.running", running.Seconds())
	b.say("  join: node %.3f s, pod running %.3f s", ready.Seconds(), running.Seconds())
	return nil
}

// onTheWire is how many bytes have passed the host's link, both ways.
func onTheWire(ctx context.Context, h *lab.Host) (int64, error) {
	var sum int64
	for _, way := range []string{"rx", "tx"} {
		text, err := h.Command(ctx, "cat", "/sys/class/net/eth0/statistics/"+way+"_bytes").Output()
		if err != nil {
			return 0, fmt.Errorf("count the bytes of a link: %w", err)
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("count the bytes of a link: %w", err)
		}
		sum += n
	}
	return sum, nil
}
