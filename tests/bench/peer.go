package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// peer is upstream's Kubernetes as separate processes, with the flags that
// kubeadm gives them. All that kubeadm does before it starts them is done
// beforehand: certificates, kubeconfigs, configuration files. So is the import
// of images. The only process missing is a DNS server.
type peer struct {
	programs *programs
	image    string
}

var _ subject = (*peer)(nil)

func (p *peer) name() string { return peerName }

func (p *peer) version(context.Context) (string, error) { return p.programs.version, nil }

func (p *peer) executables() ([]string, error) { return p.programs.files() }

func (p *peer) binds() []lab.Bind {
	return []lab.Bind{
		{Source: p.programs.dir, Target: peerBin, ReadOnly: true},
		{Source: p.programs.bundle.Dir, Target: peerBundle, ReadOnly: true},
	}
}

func (p *peer) supervised() bool { return true }

func (p *peer) kubeconfig() string { return peerConf + "/admin.conf" }

// lastWords are start.sh's, which name the process, and that process's own
// where its lines can be told from those of the others.
func (p *peer) lastWords(log []string) []string {
	for i, l := range slices.Backward(log) {
		var name string
		var pid int
		if _, err := fmt.Sscanf(l, "peer: %s (process %d) ended by itself", &name, &pid); err != nil {
			continue
		}
		before := log[:i]
		own := slices.DeleteFunc(slices.Clone(before), func(l string) bool { return klogProcess(l) != pid })
		if len(own) == 0 {
			own = before // etcd's or containerd's, which lack the number
		}
		return append([]string{l}, last(own)...)
	}
	return last(log)
}

// klogProcess is the process that wrote a line of Kubernetes' log format: 0 for
// other lines.
func klogProcess(line string) int {
	f := strings.Fields(line)
	if len(f) < 3 {
		return 0
	}
	pid, err := strconv.Atoi(f[2])
	if err != nil {
		return 0
	}
	return pid
}

func (p *peer) command(ctx context.Context, h *lab.Host) *lab.Cmd {
	c := h.Command(ctx, "/bin/bash", peerConf+"/start.sh")
	c.Env = append(c.Env, "NODE="+h.Name(), "ADDRESS="+h.Addr().String())
	return c
}

func (p *peer) prepare(ctx context.Context, h *lab.Host) error {
	image, err := os.ReadFile(p.image)
	if err != nil {
		return fmt.Errorf("%w: scripts/images.sh makes it", err)
	}
	if err := writeFile(h, "/tmp/test.tar", image, 0o644); err != nil {
		return err
	}
	if err := p.configure(h); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := h.Command(ctx, "/bin/sh", peerConf+"/preload.sh").CombinedOutput()
	if err != nil {
		return fmt.Errorf("preload images of peer: %w\n%s", err, out)
	}
	return nil
}

// configure writes certificates, kubeconfigs, scripts and configuration.
func (p *peer) configure(h *lab.Host) error {
	certs, err := pki.Ensure(pki.Config{
		Dir:      h.Path(peerConf + "/pki"),
		NodeName: h.Name(), NodeIPs: []netip.Addr{h.Addr()},
		ServiceIP: netip.AddrFrom4([4]byte{10, 43, 0, 1}),
	})
	if err != nil {
		return fmt.Errorf("make certificates of peer: %w", err)
	}
	for name, leaf := range map[string]*pki.Leaf{
		"admin": certs.Admin, "kubelet": certs.Kubelet, "scheduler": certs.Scheduler,
		"controller-manager": certs.ControllerManager, "kube-proxy": certs.KubeProxy,
	} {
		text, err := certs.Kubeconfig(leaf, "https://127.0.0.1:6443").YAML()
		if err != nil {
			return err
		}
		if err := writeFile(h, filepath.Join(peerConf, name+".conf"), text, 0o600); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(h.Path(peerConf+"/manifests"), 0o755); err != nil {
		return fmt.Errorf("make folder of static pods: %w", err)
	}
	return writePeerFiles(h)
}
