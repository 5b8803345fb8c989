package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// What a running node stands on is taken away, and it puts it back.
func TestNodeMendsWhatIsTakenFromIt(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	n.Create(t, "default",
		kube.Pod("one", kube.Label("of", "pair"), kube.Serve("hello"), kube.Ready(kube.HTTP("/", 8080))),
		kube.Pod("two", kube.Label("of", "pair"), kube.Serve("hello"), kube.Ready(kube.HTTP("/", 8080))))
	n.WaitPods(t, "default", "of=pair", 2)

	t.Run("a shim is killed", func(t *testing.T) { killShims(t, n, "one") })
	t.Run("all shims are killed", func(t *testing.T) { killShims(t, n, "one", "two") })
	t.Run("its overlay link is deleted", func(t *testing.T) {
		n.Exec(t, "ip", "link", "delete", "flannel.1")
		n.WaitFor(t, "flannel.1", func(ctx context.Context) (bool, error) {
			_, err := n.ExecErr(ctx, "ip", "link", "show", "flannel.1")
			return err == nil, err
		})
	})
	t.Run("the pods' bridge is deleted", func(t *testing.T) {
		n.Exec(t, "ip", "link", "delete", "cni0")
		for _, pod := range []string{"one", "two"} {
			reach(t, n, pod)
		}
		other := n.WaitPodRunning(t, "default", "two").Status.PodIP
		n.WaitFor(t, "a pod to reach another", func(ctx context.Context) (bool, error) {
			_, err := n.KubectlErr("exec", "one", "--", "testbox", "get", "--timeout", "2s", "http://"+other+":8080")
			return err == nil, err
		})
	})
	if n.Ended() {
		t.Error("the server has ended")
	}
}

// reach waits until a pod answers the node.
func reach(t *testing.T, n *harness.Node, pod string) {
	t.Helper()
	n.WaitFor(t, "an answer of pod "+pod, func(ctx context.Context) (bool, error) {
		p := n.WaitPodRunning(t, "default", pod)
		conn, err := n.Host.DialContext(ctx, "tcp", p.Status.PodIP+":8080")
		if err != nil {
			return false, err
		}
		return true, conn.Close()
	})
}

// killShims kills the processes that hold pods, and waits until the pods run in
// new containers.
func killShims(t *testing.T, n *harness.Node, pods ...string) {
	before := map[string]string{}
	for _, name := range pods {
		before[name] = n.WaitPodRunning(t, "default", name).Status.ContainerStatuses[0].ContainerID
		sandbox := strings.TrimSpace(n.Exec(t, n.Exe, "crictl", "pods", "--name", name, "--state", "ready", "-q"))
		killed := 0
		for line := range strings.Lines(n.Exec(t, "ps", "-eo", "pid,args")) {
			pid, args, _ := strings.Cut(strings.TrimSpace(line), " ")
			if strings.Contains(args, "containerd-shim") && strings.Contains(args, sandbox) {
				n.Exec(t, "kill", "-9", pid)
				killed++
			}
		}
		if killed != 1 {
			t.Fatalf("pod %s has %d shims", name, killed)
		}
	}
	for name, was := range before {
		n.WaitPod(t, "default", name, "in a new container", func(p *corev1.Pod) bool {
			return harness.PodReady(p) && p.Status.ContainerStatuses[0].ContainerID != was
		})
		reach(t, n, name)
	}
}

// Pods take all the memory that the whole node has; pods are killed for it, and
// Knarr is not.
func TestPodsThatExhaustTheMemoryDoNotEndTheNode(t *testing.T) {
	if !*all {
		t.Skip("make chaos: in one of four runs the node read its files again and again for a minute before it started the next pod")
	}
	n := harness.Prepare(t, harness.Options{})
	if err := n.Host.Limit(1 << 30); err != nil {
		t.Skip("needs the memory cgroup:", err)
	}
	n.Resume(t)
	pid := n.Status(t).PID
	for i := range 4 {
		n.Create(t, "default", kube.Pod(fmt.Sprintf("greedy-%d", i), kube.Testbox("alloc", "400MiB")))
	}
	// The kernel ends the pods' processes, not ours.
	n.WaitFor(t, "a pod to be killed for its memory", func(ctx context.Context) (bool, error) {
		for i := range 4 {
			out, err := n.KubectlErr("get", "pod", fmt.Sprintf("greedy-%d", i), "-o", "jsonpath={.status.containerStatuses[0].restartCount}{.status.phase}{.status.reason}")
			if err != nil {
				return false, err
			}
			if !strings.HasPrefix(out, "0") && out != "Pending" || strings.Contains(out, "Evicted") {
				return true, nil
			}
		}
		return false, errors.New("none was")
	})
	if n.Ended() {
		t.Fatal("the server was killed")
	}
	n.Kubectl(t, "delete", "pods", "--all", "--now", "--wait=false")
	for i := range 4 {
		n.WaitGone(t, "default", fmt.Sprintf("greedy-%d", i))
	}
	n.Create(t, "default", kube.Pod("after", kube.Serve("after")))
	n.WaitPodRunning(t, "default", "after")
	if now := n.Status(t).PID; now != pid {
		t.Errorf("process %d is now %d", pid, now)
	}
}

// A fault in each component of a server and of an agent, both at work: what is
// retried comes back by itself, and new pods are served as before; the rest does not
// fail with it. What is optional stays away. A critical one ends the process, and no
// pod.
func TestFaultInEachComponentLeavesTheRestAtWork(t *testing.T) {
	server := harness.Start(t, harness.Options{Args: []string{"--embedded-registry"}})
	agent := harness.Start(t, harness.Options{Join: server, Name: "edge", Env: []string{"KNARR_TOKEN=" + server.Token(t)}})
	containers := map[string]string{}
	for _, node := range []string{"node", "edge"} {
		server.Create(t, "default", kube.Pod("steady-"+node, kube.On(node), kube.Serve("steady")), kube.Service("steady-"+node, kube.For("steady-"+node), kube.Port(80, 8080)))
		containers[node] = server.WaitPodRunning(t, "default", "steady-"+node).Status.ContainerStatuses[0].ContainerID
	}
	t.Run("of a server", func(t *testing.T) { failEach(t, server, server, "node") })
	t.Run("of an agent", func(t *testing.T) { failEach(t, agent, server, "edge") })
	for node, was := range containers {
		if now := server.WaitPodRunning(t, "default", "steady-"+node).Status.ContainerStatuses[0].ContainerID; now != was {
			t.Errorf("a pod of node %s that nobody touched was in container %s and is in %s", node, was, now)
		}
	}
}

// failEach has the components of n, whose node has that name, fail one after the
// other, those that end the process last.
func failEach(t *testing.T, n, server *harness.Node, node string) {
	all := n.Status(t).Components
	for _, class := range []component.Class{component.Retried, component.Optional, component.Critical} {
		for _, c := range all {
			if c.Class != class {
				continue
			}
			t.Run(c.Name, func(t *testing.T) {
				if class == component.Critical {
					failCritical(t, n, c.Name)
				} else {
					failOne(t, n, c.Name, class)
				}
				serves(t, server, node, "after-"+c.Name)
			})
		}
	}
}

func failOne(t *testing.T, n *harness.Node, name string, class component.Class) {
	t.Helper()
	others := func() map[string]component.Status {
		all := map[string]component.Status{}
		for _, c := range n.Status(t).Components {
			if c.Name != name {
				all[c.Name] = c
			}
		}
		return all
	}
	before, pid := others(), n.Status(t).PID
	n.Fail(t, name)
	n.WaitFor(t, name+" to have failed, and to be ready again if it is retried", func(ctx context.Context) (bool, error) {
		r, err := n.StatusErr(ctx)
		if err != nil {
			return false, err
		}
		for _, c := range r.Components {
			if c.Name == name && (c.LastError != component.ErrInjected.Error() || class == component.Retried && c.State != component.StateReady) {
				return false, fmt.Errorf("it is %s after %q", c.State, c.LastError)
			}
		}
		return true, nil
	})
	if now := n.Status(t).PID; now != pid {
		t.Errorf("process %d is now %d", pid, now)
	}
	for other, c := range others() {
		if c.Restarts != before[other].Restarts || c.State != before[other].State {
			t.Errorf("%s failed, too: it is %s after %q", other, c.State, c.LastError)
		}
	}
}

func failCritical(t *testing.T, n *harness.Node, name string) {
	t.Helper()
	n.Fail(t, name)
	if err := n.Wait(t); err == nil {
		t.Error("the process ended as if all was well")
	}
	if want := "component " + name + " failed: " + component.ErrInjected.Error(); !strings.Contains(n.Log(t), want) {
		t.Errorf("the log does not say %q", want)
	}
	n.Resume(t)
}

// serves runs a new pod on the node, which finds a Service by its name, and whose log
// is read.
func serves(t *testing.T, server *harness.Node, node, name string) {
	t.Helper()
	server.Create(t, "default", kube.Pod(name, kube.On(node), kube.Serve("hello")))
	server.WaitPodRunning(t, "default", name)
	server.WaitFor(t, "a new pod to reach a Service", func(ctx context.Context) (bool, error) {
		out, err := server.KubectlErr("exec", name, "--", "testbox", "get", "--timeout", "2s", "http://steady-"+node)
		return strings.TrimSpace(out) == "steady", err
	})
	server.Kubectl(t, "logs", name)
	server.Kubectl(t, "delete", "pod", name, "--now", "--wait=false")
}

// Each component's class, and a fault of each class: what is retried leaves the
// rest at work and comes back by itself once its cause is mended.
func TestEachComponentFailsAsItsClassSays(t *testing.T) {
	const schedulerConfig = "/etc/knarr/scheduler.yaml"
	n := harness.Prepare(t, harness.Options{Args: []string{
		"--kube-scheduler-arg=config=" + schedulerConfig,
	}})
	harness.CopyFile(t, harness.Testbox(t), n.Host.Path("/opt/testbox"), 0o755)
	launch(t, n)
	t.Run("retried", func(t *testing.T) {
		failing(t, n, "scheduler", schedulerConfig)
		n.Connect(t)
		n.WaitFor(t, "everything else to be ready", func(ctx context.Context) (bool, error) {
			r, err := n.StatusErr(ctx)
			if err != nil {
				return false, err
			}
			for _, c := range r.Components {
				if c.Name != "scheduler" && c.State != component.StateReady {
					return false, fmt.Errorf("%s is %s", c.Name, c.State)
				}
			}
			return true, nil
		})
		if n.Said("READY=1") {
			t.Error("READY=1 was said without a scheduler")
		}
		n.Write(t, schedulerConfig, "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n"+
			"leaderElection: {leaderElect: false}\nclientConnection: {kubeconfig: /etc/knarr/kubeconfig.yaml}\n")
		n.WaitReady(t)
		for _, c := range n.Status(t).Components {
			want := component.Retried
			switch c.Name {
			case "kubelet":
				want = component.Critical
			case "nodeport", "registries", "authorities":
				want = component.Optional
			}
			if c.Class != want {
				t.Errorf("%s is %v, want %v", c.Name, c.Class, want)
			}
		}
	})
	t.Run("critical", func(t *testing.T) {
		n.Stop(t)
		holdKubelet := n.Host.Command(t.Context(), "/opt/testbox", "serve", "--port", "10250")
		if err := holdKubelet.Start(); err != nil {
			t.Fatal(err)
		}
		before := len(n.Log(t))
		launch(t, n)
		if err := n.Wait(t); err == nil {
			t.Error("a server without a kubelet ended as if all was well")
		}
		if said := n.Log(t)[before:]; !strings.Contains(said, "10250") {
			t.Errorf("the port is not named:\n%s", said)
		}
		if err := holdKubelet.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		n.Resume(t)
	})
}
