package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// lossy drops three of ten packets between this machine and others, each way.
const lossy = `add table inet lossy; ` +
	`add chain inet lossy in { type filter hook input priority -400; policy accept; }; ` +
	`add chain inet lossy out { type filter hook output priority -400; policy accept; }; ` +
	`add rule inet lossy in iifname eth0 numgen random mod 100 < 30 drop; ` +
	`add rule inet lossy out oifname eth0 numgen random mod 100 < 30 drop`

// mute drops what this machine says to others, not what it hears.
const mute = `add table inet mute; add chain inet mute out { type filter hook output priority -400; policy accept; }; ` +
	`add rule inet mute out oifname eth0 drop`

// Three machines, and everything that happens to them.
func TestClusterOutlivesFaults(t *testing.T) {
	server := harness.Start(t, harness.Options{Args: []string{"--kube-controller-manager-arg=node-monitor-grace-period=20s"}})
	token := "KNARR_TOKEN=" + server.Token(t)
	one := harness.Start(t, harness.Options{Join: server, Name: "edge-1", Env: []string{token}})
	two := harness.Prepare(t, harness.Options{Join: server, Name: "edge-2", Env: []string{token}})
	two.Resume(t)
	ns := server.Namespace(t)
	server.Create(t, ns, kube.Pod("on-1", kube.On("edge-1"), kube.Serve("")), kube.Pod("on-2", kube.On("edge-2"), kube.Serve("")))
	containers := map[string]string{}
	for _, name := range []string{"on-1", "on-2"} {
		containers[name] = server.WaitPodRunning(t, ns, name).Status.ContainerStatuses[0].ContainerID
	}
	// kept is what must hold after each fault.
	kept := func(t *testing.T) {
		t.Helper()
		for name, container := range containers {
			p := server.WaitPodRunning(t, ns, name)
			if p.Status.ContainerStatuses[0].ContainerID != container {
				t.Errorf("pod %s was restarted", name)
			}
		}
		for _, node := range []string{"edge-1", "edge-2"} {
			waitNode(t, server, node, corev1.ConditionTrue)
		}
		nodes, err := server.Client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		if err != nil || len(nodes.Items) != 3 {
			t.Errorf("nodes: %d, %v", len(nodes.Items), err)
		}
	}
	runs := func(t *testing.T, name, node string) {
		t.Helper()
		server.Create(t, ns, kube.Pod(name, kube.On(node), kube.Serve(name)))
		server.WaitPodRunning(t, ns, name)
		server.WaitFor(t, "its log", func(context.Context) (bool, error) {
			_, err := server.KubectlErr("logs", "-n", ns, name)
			return err == nil, err
		})
	}

	t.Run("an agent is killed", func(t *testing.T) {
		one.Kill(t)
		one.Resume(t)
		runs(t, "after-kill", "edge-1")
		kept(t)
	})
	t.Run("the server is killed under load", func(t *testing.T) {
		var load sync.WaitGroup
		for i := range 10 {
			load.Go(func() {
				pod := kube.Pod(fmt.Sprint("load-", i), kube.Label("fault", "load"), kube.On(fmt.Sprint("edge-", 1+i%2)))
				for t.Context().Err() == nil {
					_, err := server.Client.CoreV1().Pods(ns).Create(t.Context(), pod, metav1.CreateOptions{})
					if err == nil || apierrors.IsAlreadyExists(err) {
						return
					}
					time.Sleep(50 * time.Millisecond)
				}
			})
		}
		server.Kill(t)
		server.Resume(t)
		load.Wait()
		for i := range 10 {
			server.WaitPodRunning(t, ns, fmt.Sprint("load-", i))
		}
		server.Kubectl(t, "delete", "pod", "-n", ns, "-l", "fault=load", "--wait=false", "--grace-period=0", "--force")
		kept(t)
	})
	t.Run("one hears the others and is not heard", func(t *testing.T) {
		one.Exec(t, nft, mute)
		waitNode(t, server, "edge-1", corev1.ConditionUnknown)
		server.Create(t, ns, kube.Pod("while-mute", kube.On("edge-1")))
		one.Exec(t, nft, "delete table inet mute")
		server.WaitPodRunning(t, ns, "while-mute")
		kept(t)
	})
	t.Run("NAT forgets its mappings", func(t *testing.T) {
		line := throughRelay(t, server, two, 0)
		// Connections of before do not pass the relay.
		two.Restart(t)
		runs(t, "by-relay", "edge-2")
		if line.forget() == 0 {
			t.Fatal("nothing went through the relay")
		}
		runs(t, "after-forgetting", "edge-2")
		kept(t)
		two.Exec(t, nft, "delete table ip relay")
		two.Restart(t)
	})
	t.Run("three of ten packets are lost and the others late", func(t *testing.T) {
		throughRelay(t, server, two, 150*time.Millisecond)
		two.Exec(t, nft, lossy)
		two.Restart(t)
		runs(t, "by-a-bad-line", "edge-2")
		two.Exec(t, nft, "delete table inet lossy; delete table ip relay")
		two.Restart(t)
		kept(t)
	})
	t.Run("its link goes and comes", func(t *testing.T) {
		one.Exec(t, "ip", "link", "set", "eth0", "down")
		one.WaitFor(t, "the agent to notice", func(ctx context.Context) (bool, error) {
			r, err := one.StatusErr(ctx)
			return err == nil && r.Agent.Offline, err
		})
		one.Exec(t, "sh", "-c", "ip link set eth0 up; sleep 2; ip route add default via 10.99.0.1")
		runs(t, "after-replug", "edge-1")
		kept(t)
		reachEachOther(t, server, ns, "on-1", "on-2")
	})
	t.Run("a thousand wrong joins", func(t *testing.T) {
		before := len(server.Log(t))
		wrongJoins(t, server, 1000)
		began := time.Now()
		server.Kubectl(t, "get", "nodes")
		t.Logf("kubectl get nodes took %s", time.Since(began).Round(time.Millisecond))
		said := server.Log(t)[before:]
		if lines := strings.Count(said, "\n"); lines > 50 {
			t.Errorf("the server wrote %d lines of log:\n%.2000s", lines, said)
		}
		kept(t)
	})
	t.Run("two come with one name at one moment", func(t *testing.T) {
		twins := make([]*harness.Node, 2)
		for i := range twins {
			twins[i] = harness.Prepare(t, harness.Options{Join: server, Name: fmt.Sprint("twin-", i), Env: []string{token}, Args: []string{"--node-name", "twin"}, Images: []string{}})
		}
		for _, n := range twins {
			if err := n.Launch(); err != nil {
				t.Fatal(err)
			}
		}
		server.WaitFor(t, "one of them to be refused", func(context.Context) (bool, error) { return twins[0].Ended() || twins[1].Ended(), nil })
		waitNode(t, server, "twin", corev1.ConditionTrue)
		refused, member := twins[0], twins[1]
		if member.Ended() {
			refused, member = member, refused
		}
		if member.Ended() {
			t.Fatal("both were refused")
		}
		if err := refused.Wait(t); err == nil || !strings.Contains(refused.Log(t), "free it: kubectl delete") {
			t.Errorf("it was refused without a word on how to free the name: %v\n%s", err, refused.Log(t))
		}
		member.Stop(t)
		server.Kubectl(t, "delete", "node", "twin")
	})
	t.Run("its disk is wiped", func(t *testing.T) {
		two.Stop(t)
		two.Reboot(t)
		two.Exec(t, "sh", "-c", "find /var/lib/knarr/agent -mindepth 1 -maxdepth 1 ! -name images -exec rm -rf {} +; rm -rf /var/lib/kubelet/* /var/lib/cni")
		if err := two.Launch(); err != nil {
			t.Fatal(err)
		}
		if err := two.Wait(t); err == nil || !strings.Contains(two.Log(t), "kubectl delete node edge-2") {
			t.Errorf("a machine without its key is let in, or is not told how: %v", err)
		}
		server.Kubectl(t, "delete", "node", "edge-2")
		two.Resume(t)
		server.WaitPod(t, ns, "on-2", "to run anew", func(p *corev1.Pod) bool {
			s := p.Status.ContainerStatuses
			return len(s) == 1 && s[0].State.Running != nil && s[0].ContainerID != containers["on-2"]
		})
		runs(t, "after-wipe", "edge-2")
	})
}

// waitNode waits until a node's condition Ready is as wanted.
func waitNode(t *testing.T, server *harness.Node, name string, want corev1.ConditionStatus) {
	t.Helper()
	server.WaitFor(t, fmt.Sprintf("node %s to be ready: %s", name, want), func(ctx context.Context) (bool, error) {
		n, err := server.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady {
				return c.Status == want, nil
			}
		}
		return false, nil
	})
}

// wrongJoins asks for certificates with tokens that nobody made.
func wrongJoins(t *testing.T, server *harness.Node, count int) {
	t.Helper()
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialContext:     server.Host.DialContext,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // who comes with a made-up token trusts anybody
	}}
	defer client.CloseIdleConnections()
	next := make(chan int)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range next {
				body := `{"apiVersion":"certificates.k8s.io/v1","kind":"CertificateSigningRequest","metadata":{"generateName":"wrong-"}}`
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL()+"/apis/certificates.k8s.io/v1/certificatesigningrequests", bytes.NewBufferString(body))
				if err != nil {
					t.Error(err)
					continue
				}
				req.Header.Set("Content-Type", "application/json")
				req.Header.Set("Authorization", fmt.Sprintf("Bearer %06d.0123456789abcdef", i))
				resp, err := client.Do(req)
				if err != nil {
					t.Error(err)
					continue
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusUnauthorized {
					t.Errorf("a wrong token is answered %s", resp.Status)
				}
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	wg.Wait()
}
