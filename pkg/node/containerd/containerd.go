// Package containerd runs containerd, with its CRI service, in this process.
// Only the shims, one a pod, are processes of their own: they outlive this one.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/sirupsen/logrus"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/ociruntime"
	ownversion "github.com/knarr-dev/knarr/pkg/version"
)

// Config is what containerd is told.
type Config struct {
	// Root keeps images and snapshots: <data-dir>/agent/containerd.
	Root string
	// State keeps sockets and what a reboot forgets: <run-dir>/containerd.
	State string
	// Snapshotter is overlayfs or native.
	Snapshotter string
	// PauseImage is the name of the image of a pod's first container.
	PauseImage string
	// Executables returns the folders of runc and its shim, and of the CNI
	// plugins. It is called once the components of Needs are ready.
	Executables func() (bin, cni string)
	// Runtimes are those that pods may choose beside runc.
	Runtimes []ociruntime.Runtime
	// SystemdCgroup lets systemd make the pods' cgroups.
	SystemdCgroup bool
	// RestrictOOMScoreAdj never asks for a lower oom_score_adj than our own, for
	// hosts that do not allow it.
	RestrictOOMScoreAdj bool
	// DisableAppArmor leaves AppArmor profiles alone.
	DisableAppArmor bool
	// Redirect may replace what an image is pulled from, at each pull. The new
	// source is used until ctx ends. Nil replaces nothing.
	Redirect func(ctx context.Context, source any) (any, error)
	// Pulling, if set, is called when the pull of an image begins, and what it
	// returns with the bytes that have come and that are to come, until ctx ends.
	Pulling func(ctx context.Context, image string) func(done, total int64)
}

// Socket is where the CRI and containerd's own API are served.
func (c Config) Socket() string { return filepath.Join(c.State, "containerd.sock") }

// callMetrics counts calls where nobody reads it, and can't be made twice in a process.
const callMetrics = string(plugins.MetricsPlugin) + ".grpc-prometheus"

// Containerd is the component.
type Containerd struct {
	cfg Config
}

var _ component.Component = (*Containerd)(nil)

// New returns the component; nothing happens until Run.
func New(cfg Config) *Containerd { return &Containerd{cfg: cfg} }

// Name implements component.Component.
func (c *Containerd) Name() string { return "containerd" }

// Needs implements component.Component. The CNI configuration has to be there
// first, because containerd tells a network ready when it has read one.
func (c *Containerd) Needs() []string { return []string{"bundle", "cni"} }

// Run implements component.Component. It is ready when the CRI answers.
func (c *Containerd) Run(ctx context.Context, ready chan<- struct{}) error {
	if v := ownversion.Get().Containerd; v != "" {
		version.Version = v // without link flags it has none
	}
	cfg, err := c.server()
	if err != nil {
		return err
	}
	if err := server.CreateTopLevelDirectories(cfg); err != nil {
		return fmt.Errorf("create folders of containerd: %w", err)
	}
	tmp := filepath.Join(cfg.Root, "tmpmounts")
	if err := mount.SetTempMountLocation(tmp); err != nil {
		return fmt.Errorf("set folder of temporary mounts %s: %w", tmp, err)
	}
	if _, err := mount.CleanupTempMounts(0); err != nil {
		return fmt.Errorf("unmount what an earlier containerd left in %s: %w", tmp, err)
	}
	// A socket file of a killed process would refuse the new listener.
	for _, socket := range []string{c.cfg.Socket(), c.cfg.Socket() + ".ttrpc"} {
		if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove old socket: %w", err)
		}
	}
	registerRedirected()
	registerOrdered()
	failed := make(chan struct{}, 1)
	// containerd takes a shim that it can't ask for a dead one, and kills its pod:
	// also when it can't since its own start was called off. So it finds them all,
	// which takes milliseconds, before it hears of a stop.
	own, end := context.WithCancel(withoutExit(context.WithoutCancel(ctx), failed))
	defer end()
	s, err := server.New(withPulls(own, pulls{c.cfg.Redirect, c.cfg.Pulling}), cfg)
	if err != nil {
		return fmt.Errorf("create containerd: %w", err)
	}
	defer s.Stop()
	defer context.AfterFunc(ctx, end)()
	if err := s.Start(own); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	s.Wait()
	close(ready)
	select {
	case <-ctx.Done():
		return nil
	case <-failed:
		return errors.New("containerd serves no more; its last word is in the log")
	}
}

// withoutExit has containerd tell of a server that failed, where it would end the
// process: it takes a stop for that which comes before the server has begun.
func withoutExit(ctx context.Context, failed chan<- struct{}) context.Context {
	std := logrus.StandardLogger()
	return log.WithLogger(ctx, logrus.NewEntry(&logrus.Logger{
		Out: std.Out, Hooks: std.Hooks, Formatter: std.Formatter, Level: std.GetLevel(),
		ExitFunc: func(int) {
			select {
			case failed <- struct{}{}:
			default:
			}
		},
	}))
}

func (c *Containerd) server() (*srvconfig.Config, error) {
	bin, cni := c.cfg.Executables()
	runtimes, err := c.runtimes(bin)
	if err != nil {
		return nil, err
	}
	type table = map[string]any
	return &srvconfig.Config{
		Version: version.ConfigVersion,
		Root:    c.cfg.Root,
		State:   c.cfg.State,
		RequiredPlugins: []string{
			orderedCRI, "io.containerd.snapshotter.v1." + c.cfg.Snapshotter,
		},
		DisabledPlugins: []string{localTransfer, upstreamCRI, callMetrics},
		Plugins: table{
			redirectedTransfer: table{
				"unpack_config": []table{{
					"platform":    platforms.Format(platforms.DefaultSpec()),
					"snapshotter": c.cfg.Snapshotter,
					"differ":      defaults.DefaultDiffer,
				}},
			},
			"io.containerd.server.v1.grpc":  table{"address": c.cfg.Socket()},
			"io.containerd.server.v1.ttrpc": table{"address": c.cfg.Socket() + ".ttrpc"},
			"io.containerd.nri.v1.nri":      table{"disable": true},
			"io.containerd.cri.v1.images": table{
				"snapshotter":   c.cfg.Snapshotter,
				"pinned_images": table{"sandbox": c.cfg.PauseImage},
				// Seconds. The kubelet asks for the sum once a minute.
				"stats_collect_period": 60,
			},
			"io.containerd.cri.v1.runtime": table{
				// Reads every container's cgroups for `crictl stats` alone, by
				// default once a second: the kubelet asks cAdvisor.
				"stats_collect_period":   "30s",
				"stats_retention_period": "5m",
				"containerd": table{
					"default_runtime_name": "runc",
					"runtimes":             runtimes,
				},
				"cni": table{
					// Other networks' plugins are found where everyone puts them.
					"bin_dirs": []string{cni, "/opt/cni/bin"},
					"conf_dir": "/etc/cni/net.d",
				},
				"enable_unprivileged_ports":           true,
				"enable_unprivileged_icmp":            true,
				"tolerate_missing_hugetlb_controller": true,
				"disable_hugetlb_controller":          true,
				"restrict_oom_score_adj":              c.cfg.RestrictOOMScoreAdj,
				"disable_apparmor":                    c.cfg.DisableAppArmor,
			},
		},
	}, nil
}

// runtimes tells containerd how to run runc, which it does unless a pod names
// another, and the others that this machine has.
func (c *Containerd) runtimes(bin string) (map[string]any, error) {
	type table = map[string]any
	like := func(program string) table {
		return table{
			"runtime_type": ociruntime.RuncType,
			"runtime_path": filepath.Join(bin, "containerd-shim-runc-v2"),
			"options":      table{"BinaryName": program, "SystemdCgroup": c.cfg.SystemdCgroup},
		}
	}
	all := table{"runc": like(filepath.Join(bin, "runc"))}
	for _, r := range c.cfg.Runtimes {
		if !r.IsShim() {
			program, err := r.Program(filepath.Join(filepath.Dir(c.cfg.Root), "runtimes"))
			if err != nil {
				return nil, err
			}
			all[r.Handler] = like(program)
			continue
		}
		all[r.Handler] = table{
			"runtime_type": r.Type, "runtime_path": r.Path,
			// A virtual machine has devices of its own; and these runtimes are
			// tuned by annotations of pods.
			"privileged_without_host_devices": r.Handler == "kata",
			"pod_annotations":                 []string{"io.katacontainers.*", "dev.gvisor.*"},
		}
	}
	return all, nil
}
