package cluster

import (
	"bufio"
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// nft is the packet filter's program that Knarr brings.
const nft = "/var/lib/knarr/bundle/current/bin/nft"

// behindNAT drops every connection that others begin to this node.
const behindNAT = `add table inet nat-in-between; add chain inet nat-in-between in { type filter hook input priority -500; policy accept; }; ` +
	`add rule inet nat-in-between in iifname eth0 ct state established,related accept; add rule inet nat-in-between in iifname eth0 drop`

// A node behind NAT: the server can begin no connection to it, nor do packets of
// the pod network arrive.
func TestServerReachesNodesThroughTheirTunnels(t *testing.T) {
	// Certificates of a minute, which are renewed after 42 to 54 seconds.
	server := harness.Start(t, harness.Options{Args: []string{"--kube-controller-manager-arg=cluster-signing-duration=60s"}})
	agent := harness.Start(t, harness.Options{Join: server, Name: "edge-1", Env: []string{"KNARR_TOKEN=" + server.Token(t)},
		Args: []string{"--node-external-ip", "192.0.2.77"}})
	agent.Exec(t, nft, behindNAT)
	ns := server.Namespace(t)
	server.Create(t, ns, kube.Pod("there", kube.On("edge-1"), kube.Shell(`i=0; while :; do echo line $i; i=$((i+1)); sleep 0.2; done`)),
		kube.Pod("web", kube.On("edge-1"), kube.Serve("through the tunnel")))
	server.WaitPodRunning(t, ns, "there")
	server.WaitPodRunning(t, ns, "web")

	t.Run("logs", func(t *testing.T) {
		server.WaitFor(t, "a line of the log", func(context.Context) (bool, error) {
			out, err := server.KubectlErr("logs", "-n", ns, "there")
			return strings.Contains(out, "line 0"), err
		})
	})
	t.Run("exec", func(t *testing.T) {
		if out := server.Kubectl(t, "exec", "-n", ns, "there", "--", "cat", "/etc/hostname"); strings.TrimSpace(out) != "there" {
			t.Errorf("exec: %q", out)
		}
	})
	t.Run("pods by the API server's proxy", func(t *testing.T) {
		out := server.Kubectl(t, "get", "--raw", "/api/v1/namespaces/"+ns+"/pods/web:8080/proxy/")
		if !strings.Contains(out, "through the tunnel") {
			t.Errorf("proxy: %q", out)
		}
	})
	t.Run("metrics of the kubelet", func(t *testing.T) {
		if out := server.Kubectl(t, "get", "--raw", "/api/v1/nodes/edge-1/proxy/stats/summary"); !strings.Contains(out, "edge-1") {
			t.Errorf("summary: %.200q", out)
		}
	})
	t.Run("status tells of it", func(t *testing.T) {
		a := agent.Status(t).Agent
		if a == nil || a.Node != "edge-1" || len(a.Servers) == 0 || a.Servers[0].Tunnel.IsZero() || a.Server == "" || time.Since(a.LastContact) > time.Minute {
			t.Fatalf("agent: %+v", a)
		}
		uses := map[string]bool{}
		for _, c := range a.Certificates {
			uses[c.Use] = time.Until(c.Expires) > 0
		}
		if !uses["client"] || !uses["serving"] {
			t.Errorf("certificates: %+v", a.Certificates)
		}
		if out := agent.Exec(t, agent.Exe, "status"); !strings.Contains(out, "serving certificate") || !strings.Contains(out, "10.99.0.2:6443") {
			t.Errorf("status:\n%s", out)
		}
	})
	t.Run("a log that is followed ends with its tunnel, and does not hang", func(t *testing.T) {
		stream, err := server.Client.CoreV1().Pods(ns).GetLogs("there", &corev1.PodLogOptions{Follow: true}).Stream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		lines := bufio.NewScanner(stream)
		if !lines.Scan() {
			t.Fatalf("no line: %v", lines.Err())
		}
		agent.Kill(t)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for lines.Scan() {
			}
		}()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Error("it still waits 30 s after the agent was killed")
		}
		agent.Resume(t)
		server.WaitFor(t, "the log through the next tunnel", func(context.Context) (bool, error) {
			out, err := server.KubectlErr("logs", "-n", ns, "there", "--tail=1")
			return strings.HasPrefix(out, "line "), err
		})
	})
	t.Run("its address outside is told", func(t *testing.T) {
		if out := server.Kubectl(t, "get", "node", "edge-1", "-o", `jsonpath={.status.addresses[?(@.type=="ExternalIP")].address}`); out != "192.0.2.77" {
			t.Errorf("external addresses: %q", out)
		}
	})
	t.Run("certificates are renewed while it runs", func(t *testing.T) {
		expires := func(ctx context.Context) (map[string]time.Time, error) {
			r, err := agent.StatusErr(ctx)
			if err != nil {
				return nil, err
			}
			all := map[string]time.Time{}
			for _, c := range r.Agent.Certificates {
				all[c.Use] = c.Expires
			}
			return all, nil
		}
		before, err := expires(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		agent.WaitFor(t, "both certificates to be renewed", func(ctx context.Context) (bool, error) {
			now, err := expires(ctx)
			return err == nil && now["client"].After(before["client"]) && now["serving"].After(before["serving"]), err
		})
		if out := server.Kubectl(t, "exec", "-n", ns, "there", "--", "cat", "/etc/hostname"); strings.TrimSpace(out) != "there" {
			t.Errorf("exec: %q", out)
		}
		server.Create(t, ns, kube.Pod("after", kube.On("edge-1")))
		server.WaitPodRunning(t, ns, "after")
	})
}
