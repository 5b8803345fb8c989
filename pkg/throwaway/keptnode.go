package throwaway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/dial"
	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

// pullSocket is where a node finds who connects to registries for it.
const pullSocket = "/run/knarr-pull"

// serverConfigFile is where the server's configuration lies in its host.
const serverConfigFile = "/etc/knarr/config.yaml"

// exitNotMember is how an agent ends whose node was deleted; it stays away.
const exitNotMember = 3

// add makes a node's host and starts its server or agent.
func (k *keeper) add(ctx context.Context, name string) error {
	exe := k.Config.Exe
	binds := append([]lab.Bind{{Source: filepath.Dir(exe), Target: exeFolder, ReadOnly: true}}, k.Config.Volumes...)
	h, err := k.lab.AddHost(ctx, lab.HostConfig{Name: name, Binds: binds, ResolvConf: k.resolvConfOfHosts()})
	if err != nil {
		return explain(err)
	}
	host := &Host{Host: h, Exe: filepath.Join(exeFolder, filepath.Base(exe))}
	n := &keptNode{name: name, host: host, opts: ServerOptions{
		Args: []string{"--node-name", name, "--pull-socket", pullSocket},
		Env:  append(proxies(), "KNARR_TOKEN="+k.token),
	}}
	if len(k.nodes) > 0 {
		n.opts.Command = "agent"
		n.opts.Args = append(n.opts.Args, "--server", fmt.Sprintf("https://%s:6443", k.nodes[0].host.Addr()))
	} else {
		// What a power cut could take is thrown away anyway.
		n.opts.Args = append(n.opts.Args, "--datastore-synchronous", "normal")
		if err := k.configure(host); err != nil {
			return err
		}
	}
	if n.log, err = os.OpenFile(k.Folder.file(k.Config.Name, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return err
	}
	n.opts.Output = n.log
	k.nodes = append(k.nodes, n)
	k.Record.Nodes = append(k.Record.Nodes, NodeRecord{Name: name, Host: h.Handle()})
	if err := k.servePulls(host); err != nil {
		return err
	}
	if n.now, err = host.Start(n.opts); err != nil {
		return fmt.Errorf("start node %s: %w", name, err)
	}
	return nil
}

// proxies are the variables by which images are pulled through one.
func proxies() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool {
		name, value, _ := strings.Cut(e, "=")
		return value == "" || !slices.Contains(config.ProxyVariables(), name)
	})
}

func (k *keeper) configure(host *Host) error {
	if len(k.Config.ServerConfig) == 0 {
		return nil
	}
	path := host.Path(serverConfigFile)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write the server's configuration: %w", err)
	}
	if err := os.WriteFile(path, k.Config.ServerConfig, 0o600); err != nil {
		return fmt.Errorf("write the server's configuration: %w", err)
	}
	return nil
}

// servePulls connects to registries for a node, from this machine's network:
// the node has no way there.
func (k *keeper) servePulls(host *Host) error {
	l, err := net.Listen("unix", host.Path(pullSocket))
	if err != nil {
		return fmt.Errorf("listen for image pulls: %w", err)
	}
	k.pulls = append(k.pulls, l)
	go dial.ServeSocket(l, dial.Dialer().DialContext)
	return nil
}

// watch starts a node's server again when it has ended. It ends with the host.
func (k *keeper) watch(n *keptNode) {
	for {
		err := n.now.Wait()
		n.now.Close()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == exitNotMember {
			return
		}
		select {
		case <-n.host.Dead():
			k.ended <- fmt.Errorf("node %s ended: its first process is gone", n.name)
			return
		case <-time.After(restartAfter):
		}
		fmt.Fprintf(n.log, "knarr: started again after: %v\n", err)
		if n.now, err = n.host.Start(n.opts); err != nil {
			k.ended <- fmt.Errorf("start node %s again: %w", n.name, err)
			return
		}
	}
}

// await waits until every node is ready by what the API server says, and, if
// asked to, until every pod is.
func (k *keeper) await(ctx context.Context) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", k.Folder.file(k.Config.Name, "kubeconfig"))
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	if len(k.nodes) > 1 {
		nodes := client.CoreV1().Nodes()
		err := untilAll(ctx, &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return nodes.List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return nodes.Watch(ctx, o)
			},
		}, &corev1.Node{}, len(k.nodes), nodeReady)
		if err != nil {
			return fmt.Errorf("wait for nodes: %w", err)
		}
	}
	if !k.Config.AllPods {
		return nil
	}
	pods := client.CoreV1().Pods("")
	err = untilAll(ctx, &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return pods.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return pods.Watch(ctx, o)
		},
	}, &corev1.Pod{}, 0, podReady)
	if err != nil {
		return fmt.Errorf("wait for pods: %w", err)
	}
	return nil
}

// untilAll waits until there are at least so many objects and all are ready.
func untilAll[T metav1.Object](ctx context.Context, lw cache.ListerWatcher, kind T, least int, ready func(T) bool) error {
	unready, seen := map[string]bool{}, map[string]bool{}
	note := func(o any) {
		if obj, ok := o.(T); ok {
			key := obj.GetNamespace() + "/" + obj.GetName()
			seen[key] = true
			delete(unready, key)
			if !ready(obj) {
				unready[key] = true
			}
		}
	}
	done := func() bool { return len(seen) >= least && len(unready) == 0 }
	object, ok := any(kind).(runtime.Object)
	if !ok {
		return fmt.Errorf("%T is no object of the API", kind)
	}
	_, err := watchtools.UntilWithSync(ctx, lw, object, func(s cache.Store) (bool, error) {
		for _, o := range s.List() {
			note(o)
		}
		return done(), nil
	}, func(e watch.Event) (bool, error) {
		note(e.Object)
		if obj, ok := e.Object.(T); ok && e.Type == watch.Deleted {
			key := obj.GetNamespace() + "/" + obj.GetName()
			delete(seen, key)
			delete(unready, key)
		}
		return done(), nil
	})
	if err != nil && len(unready) > 0 {
		var names []string
		for key := range unready {
			names = append(names, strings.TrimPrefix(key, "/"))
		}
		slices.Sort(names)
		return fmt.Errorf("%s: %w", strings.Join(names, ", "), err)
	}
	return err
}

func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func podReady(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
