// Package node is the list of what a machine needs to run pods.
package node

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/pkg/bundle"
	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/dial"
	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/knarr-dev/knarr/pkg/node/containerd"
	"github.com/knarr-dev/knarr/pkg/node/images"
	"github.com/knarr-dev/knarr/pkg/node/kubelet"
	"github.com/knarr-dev/knarr/pkg/node/nftwatch"
	"github.com/knarr-dev/knarr/pkg/node/pulls"
	"github.com/knarr-dev/knarr/pkg/node/registries"
	"github.com/knarr-dev/knarr/pkg/ociruntime"
	"github.com/knarr-dev/knarr/pkg/part"
)

// pauseImage holds a pod's namespaces. It comes out of the bundle.
const pauseImage = "knarr.dev/pause:1"

// Node is the part.
type Node struct {
	// Bundle is where the executables come from.
	Bundle *bundle.Archive
	// Facts are what the node adapts itself to.
	Facts host.Facts
	// NewCluster is set if the store did not exist before this start.
	NewCluster bool
	// SetSysctls sets kernel parameters and keeps a record of the old values.
	SetSysctls func([]host.Sysctl) error
	// ControlPlane is set on a machine that has a control plane.
	ControlPlane bool
	// Tables are packet-filter tables of other parts, to be kept whole.
	Tables []nftwatch.Table
}

var _ part.Part = (*Node)(nil)

// Components implements part.Part.
func (n *Node) Components(env *part.Env) ([]component.Spec, error) {
	c := env.Config
	b := &executables{archive: n.Bundle, dir: BundleDir(c)}
	net, rules := n.network(env)
	specs := append(net, component.Spec{Component: component.Func("bundle", nil, b.run), Class: component.Retried})

	cri, needs := c.Node.ContainerRuntimeEndpoint, []string{"pki"}
	if cri == "" {
		sources := registries.New(c.Node.PrivateRegistry, env.Log)
		if c.Node.PullSocket != "" {
			sources.Dial = dial.Socket(c.Node.PullSocket)
		}
		ctr := containerd.Config{
			Root:                filepath.Join(c.AgentDir(), "containerd"),
			State:               filepath.Join(c.RunDir, "containerd"),
			Snapshotter:         c.Node.Snapshotter,
			PauseImage:          pauseImage,
			Executables:         b.dirs,
			SystemdCgroup:       n.Facts.CgroupDriver == host.DriverSystemd,
			RestrictOOMScoreAdj: n.Facts.RestrictOOMScoreAdj,
			DisableAppArmor:     !n.Facts.AppArmor || n.Facts.UserNamespace,
			Redirect:            sources.Redirect,
			Pulling:             pulls.New(pulls.Config{Client: env.Client, Node: c.Node.Name, Log: env.Log}).Pulling,
			Runtimes:            ociruntime.Find(os.Getenv("PATH")),
		}
		cri = ctr.Socket()
		folder := images.NewFolder(filepath.Join(c.AgentDir(), "images"), cri, c.Node.Snapshotter, env.Log)
		needs = append(needs, "containerd", "builtin-images", folder.FirstLook().Name())
		if c.EmbeddedRegistry {
			specs = append(specs, embeddedRegistry(env, sources, ctr))
		}
		specs = append(specs,
			component.Spec{Component: sources, Class: component.Optional},
			component.Spec{Component: containerd.New(ctr), Class: component.Retried},
			component.Spec{Component: images.NewBuiltin(cri, c.Node.Snapshotter, images.Embedded{
				Image: pauseImage, ID: n.Bundle.ID(), Open: func() (io.ReadCloser, error) { return b.image("pause") },
			}), Class: component.Retried},
			component.Spec{Component: folder, Class: component.Retried},
			component.Spec{Component: folder.FirstLook(), Class: component.Retried},
		)
	}

	if err := os.MkdirAll(c.Node.PodManifestPath, 0o700); err != nil {
		return nil, fmt.Errorf("create folder of static pods (--pod-manifest-path): %w", err)
	}
	lease, report := c.KubeletTimes()
	kl := kubelet.New(kubelet.Config{
		NodeName:        c.Node.Name,
		NodeIPs:         c.Node.IPs,
		ExternalIPs:     c.Node.ExternalIPs,
		Labels:          append([]string{"node.kubernetes.io/instance-type=knarr"}, c.Node.Labels...),
		Taints:          c.Node.Taints,
		ClientCA:        func() string { return env.Access().ClientCA },
		ServingCert:     func() string { return env.Access().KubeletServing },
		CertDir:         filepath.Join(c.AgentDir(), "kubelet-pki"),
		Client:          func() *rest.Config { return env.RESTConfig(part.Kubelet) },
		CRI:             cri,
		Tells:           c.Node.ContainerRuntimeEndpoint == "",
		CgroupDriver:    n.Facts.CgroupDriver,
		ClusterDNS:      c.Network.ClusterDNS,
		ClusterDomain:   c.Network.ClusterDomain,
		ResolvConf:      c.Node.ResolvConf,
		PodManifestPath: c.Node.PodManifestPath,
		VolumePluginDir: filepath.Join(c.AgentDir(), "volume-plugins"),
		Kubeconfig:      filepath.Join(c.AgentDir(), "kubelet.kubeconfig"),
		OOMScoreAdj:     n.oomScoreAdj(),
		UserNamespace:   n.Facts.UserNamespace,
		Args:            slices.Concat(credentialProvider(c.Node), c.KubeletProfile(), c.Node.KubeletArgs),
		LeaseDuration:   lease,
		ReportFrequency: report,
		CSI:             &env.CSI,
	}, needs...)
	services, err := n.services(env, rules)
	if err != nil {
		return nil, err
	}
	return append(append(specs, services...),
		// A second kubelet in one process fails on its own metrics: its end ends us.
		component.Spec{Component: kl, Class: component.Critical},
		component.Spec{Component: &registration{env: env, controlPlane: n.ControlPlane, since: time.Now()}, Class: component.Retried},
	), nil
}

// credentialProvider are the kubelet's flags for programs that give credentials
// for image pulls.
func credentialProvider(n config.Node) []string {
	if n.CredentialProviderConfig == "" {
		return nil
	}
	return []string{
		"image-credential-provider-config=" + n.CredentialProviderConfig,
		"image-credential-provider-bin-dir=" + n.CredentialProviderBinDir,
	}
}

// oomScoreAdj is how the kernel shall treat this process when memory is short.
// Where the value cannot be lowered the kubelet is told to leave it.
func (n *Node) oomScoreAdj() int32 {
	if n.Facts.RestrictOOMScoreAdj {
		return int32(n.Facts.OOMScoreAdj)
	}
	return -999
}

// BundleDir is where the executables of a node are unpacked.
func BundleDir(c *config.Config) string { return filepath.Join(c.DataDir, "bundle") }

// executables unpacks the bundle and makes this process find what is in it.
type executables struct {
	archive  *bundle.Archive
	dir      string
	unpacked atomic.Pointer[bundle.Unpacked]
}

func (e *executables) run(ctx context.Context, ready chan<- struct{}) error {
	u, err := e.archive.Unpack(e.dir)
	if err != nil {
		return err
	}
	e.unpacked.Store(u)
	// kube-proxy, the rules and CNI plugins run nft by its name.
	path := u.BinDir + string(os.PathListSeparator) + os.Getenv("PATH")
	if err := os.Setenv("PATH", path); err != nil {
		return fmt.Errorf("set PATH: %w", err)
	}
	close(ready)
	if err := u.Settle(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func (e *executables) dirs() (bin, cni string) {
	u := e.unpacked.Load()
	return u.BinDir, u.CNIDir
}

func (e *executables) image(name string) (io.ReadCloser, error) {
	path, err := e.unpacked.Load().Image(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open image %s of the bundle: %w", name, err)
	}
	return f, nil
}
